"""Declaring a batch in a browser: typed once, shown its next runs, declared once, deleted after a question."""

from __future__ import annotations

import pytest

from .conftest import MakeTab, Tab
from .filled import Filled, wine

pytestmark = pytest.mark.slow


@pytest.fixture
def tab(filled: Filled, make_tab: MakeTab) -> Tab:
    tab = make_tab(filled.address, timezone_id="Europe/Berlin")
    tab.sign_in(filled.token)
    tab.go("/variants/growth.churn")
    tab.page.get_by_role("link", name="Predict by a schedule").click()
    tab.page.wait_for_url("**/batches/new**")
    return tab


def test_a_batch_is_declared_once_however_often_one_clicks_and_deleted(tab: Tab, filled: Filled) -> None:
    page = tab.page
    page.locator("#b-name").fill("clicked")
    assert page.locator("#b-time_zone").input_value() == "Europe/Berlin"
    page.locator("#file").set_input_files(
        {"name": "new.csv", "mimeType": "text/csv", "buffer": wine()[:20].to_csv(index=False).encode()}
    )
    page.get_by_text("It is uploaded, and chosen.").wait_for()
    assert page.locator("#b-upload option:checked").inner_text() == "new.csv"
    assert page.locator("#b-name").input_value() == "clicked", "the upload keeps what was typed"
    page.get_by_label("At an interval").check()
    page.locator("#b-n").fill("90")
    page.locator("[name=unit]").select_option("m")
    page.locator("#due li").nth(4).wait_for()
    page.locator("#b-n").fill("none")
    page.locator("#due", has_text="is not as").wait_for()
    page.locator("#b-n").fill("90")
    page.locator("#due li").nth(4).wait_for()
    page.get_by_role("button", name="Declare this batch").dblclick()
    page.wait_for_url("**/batches/growth.clicked")
    assert "every 90 minutes" in page.locator(".head").inner_text()
    assert [one.name for one in filled.ledger.batches()].count("growth.clicked") == 1
    page.get_by_role("button", name="Delete").click()
    page.get_by_role("button", name="Leave it").click()
    assert page.url.endswith("/batches/growth.clicked")
    page.get_by_role("button", name="Delete").click()
    page.get_by_role("button", name="Delete it").click()
    page.get_by_text("The batch is deleted").wait_for()
    assert tab.complaints == []


def test_the_log_of_a_run_is_searched(filled: Filled, make_tab: MakeTab) -> None:
    tab = make_tab(filled.address)
    tab.sign_in(filled.token)
    tab.go(filled.pages["batch-run"])
    assert tab.page.locator("#log-text").inner_text().count("\n") >= 2
    tab.page.locator("#log-search").fill("PREDICTING")
    tab.page.locator("#log-found", has_text="1").wait_for()
    assert tab.page.locator("#log-text").inner_text() == "Predicting by growth.churn/2."


def test_what_is_refused_is_told_at_its_field_which_gets_the_focus(tab: Tab) -> None:
    page = tab.page
    page.locator("#b-name").fill("refused")
    page.get_by_label("Files by their path").check()
    page.locator("#b-path").fill("/etc/passwd")
    page.get_by_label("Weekly").check()
    page.get_by_role("button", name="Declare this batch").click()
    page.locator("#w-path").wait_for()
    assert page.evaluate("document.activeElement.id") == "b-path"
    assert page.locator("#b-name").input_value() == "refused"
    page.get_by_label("Hourly").check()
    page.locator("#due li", has_text=":00").nth(4).wait_for()
    assert tab.complaints == []


def test_a_session_that_ended_comes_back_to_the_form_as_it_was(tab: Tab, filled: Filled) -> None:
    page = tab.page
    page.locator("#b-name").fill("kept")
    page.get_by_label("As cron writes it").check()
    page.locator("#b-cron").fill("15 6 * * *")
    page.context.clear_cookies()
    page.get_by_role("button", name="Declare this batch").click()
    page.wait_for_url("**/sign-in**")
    page.locator("#token").fill(filled.token)
    page.locator("button.big").click()
    page.wait_for_url("**/batches/new**")
    assert page.locator("#b-name").input_value() == "kept"
    assert page.locator("#b-cron").input_value() == "15 6 * * *"
    assert page.get_by_label("As cron writes it").is_checked()
    page.locator("#due li", has_text="6:15").nth(4).wait_for()


def test_a_batch_is_declared_without_scripts(filled: Filled, make_tab: MakeTab) -> None:
    tab = make_tab(filled.address, java_script_enabled=False)
    tab.sign_in(filled.token)
    tab.go(filled.pages["batch-new"])
    tab.page.locator("#b-name").fill("plain")
    tab.page.locator("#b-upload").select_option(index=1)
    tab.page.get_by_label("Hourly").check()
    tab.page.locator("#b-minute").fill("75")
    tab.page.get_by_role("button", name="Show the next runs").click()
    assert "75" in tab.page.locator("#due").inner_text()
    tab.page.locator("#b-minute").fill("45")
    tab.page.get_by_role("button", name="Show the next runs").click()
    assert tab.page.locator("#due li").count() == 5
    tab.page.get_by_role("button", name="Declare this batch").click()
    tab.page.wait_for_url("**/batches/growth.plain")
    assert "hourly at minute 45" in tab.page.locator(".head").inner_text()
