"""What goes wrong while somebody looks: each time a sentence and a way on, and nothing that was typed is lost."""

from __future__ import annotations

import gzip
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import expect

from factory.ledger import Ledger
from factory.spec import RequestState, Trial

from .conftest import MakeTab, Tab
from .filled import Filled

pytestmark = pytest.mark.slow

LINE = {"name": "bad-input-line", "title": "A line", "families": ["constant", "linear"]}
expect.set_options(timeout=15_000)
FITTED = {"parameters": {}, "state": "succeeded", "folds": (0,), "fold_scores": (0.8,), "cost_s": 1.5}


def signed_in(filled: Filled, make_tab: MakeTab, path: str = "", **looks: object) -> Tab:
    tab = make_tab(filled.address, **looks)
    tab.sign_in(filled.token)
    if path:
        tab.go(path)
    return tab


def sign_in_again(tab: Tab, filled: Filled) -> None:
    tab.page.wait_for_url("**/sign-in**")
    tab.page.locator("#token").fill(filled.token)
    tab.page.locator("button.big").click()


def order(tab: Tab) -> None:
    tab.page.get_by_role("button", name="Order this variant").click()


def published(filled: Filled, **changes: object) -> None:
    headers = {"authorization": f"Bearer {filled.token}"}
    place = f"{filled.address}/api/v1/recipes/{LINE['name']}"
    httpx.put(place, json={**LINE, **changes}, headers=headers).raise_for_status()


def searching(filled: Filled, name: str) -> str:
    """Return a request that is being searched, with two trials."""
    headers = {"authorization": f"Bearer {filled.token}"}
    digest = filled.pages["form"].partition("dataset=")[2]
    document = {"team": "growth", "name": name, "recipe": "tabular-auto", "budget": {"time_s": 60}}
    sent = {**document, "dataset": {"upload": digest, "target": "target"}}
    answer = httpx.post(f"{filled.address}/api/v1/requests", json=sent, headers=headers).raise_for_status()
    request_id = str(answer.json()["id"])
    filled.ledger.admit(request_id)
    for state in (RequestState.PREPARING, RequestState.SEARCHING):
        filled.ledger.advance(request_id, state, f"{state.value.title()}.")
    for number, score in enumerate((0.5, 0.8)):
        filled.ledger.record_trial(request_id, Trial(number=number, family="linear", score=score, **FITTED))
    return request_id


# --- forms -----------------------------------------------------------------------------


def test_a_stale_form_says_what_is_new_and_keeps_what_was_typed(filled: Filled, make_tab: MakeTab) -> None:
    published(filled)
    tab = signed_in(filled, make_tab, f"{filled.pages['form']}&recipe={LINE['name']}")
    tab.page.locator("#f-name").fill("stale")
    published(filled, families=["linear", "kernel"])
    order(tab)
    told = tab.page.locator("#notices .warn")
    expect(told).to_contain_text("The recipe was changed while this form was open")
    expect(told).to_contain_text("is now linear, kernel")
    assert tab.page.locator("#f-name").input_value() == "stale"
    order(tab)
    tab.page.wait_for_url("**/requests/r-*")
    assert tab.complaints == []


def test_going_back_after_ordering_orders_nothing_again(filled: Filled, make_tab: MakeTab) -> None:
    tab = signed_in(filled, make_tab, filled.pages["form"])
    tab.page.locator("#f-name").fill("went-back")
    order(tab)
    tab.page.wait_for_url("**/requests/r-*")
    tab.page.go_back()
    tab.page.locator("#order").wait_for()
    assert tab.page.locator("button.big").get_attribute("aria-busy") is None
    tab.go("/requests?variant=went-back")
    assert tab.page.locator("tbody tr").count() == 1


def test_a_session_that_ends_after_another_recipe_was_chosen_comes_back_to_it(
    filled: Filled, make_tab: MakeTab
) -> None:
    tab = signed_in(filled, make_tab, filled.pages["form"])
    tab.page.locator("#f-name").fill("switched")
    tab.page.locator("input[name=recipe][value=tabular-fast]").check()
    tab.page.wait_for_url("**recipe=tabular-fast**")
    assert tab.page.locator("#f-name").input_value() == "switched"
    assert tab.page.locator("#f-budget-time-s").input_value() == "30", "nobody had touched it"
    tab.page.get_by_text("Search", exact=True).click()
    assert tab.page.locator("[name=families]:not(:checked)").count() == 0
    tab.page.locator("#f-budget-time-s").fill("47")
    tab.page.context.clear_cookies()
    order(tab)
    sign_in_again(tab, filled)
    tab.page.wait_for_url("**/new/form**recipe=tabular-fast**")
    assert tab.page.locator("#f-name").input_value() == "switched"
    assert tab.page.locator("#f-budget-time-s").input_value() == "47"


def test_a_session_that_ends_after_a_refused_order_comes_back_to_the_form(filled: Filled, make_tab: MakeTab) -> None:
    tab = signed_in(filled, make_tab, filled.pages["form"])
    tab.page.locator("#f-name").fill("refused")
    tab.page.locator("#f-budget-time-s").fill("1.400,5")
    order(tab)
    tab.page.locator("#notices .bad").wait_for()
    expect(tab.page.locator("[data-wrong='budget.time_s']")).to_contain_text("may be read in several ways")
    tab.page.locator("#f-budget-time-s").fill("14,400")
    tab.page.context.clear_cookies()
    order(tab)
    sign_in_again(tab, filled)
    tab.page.wait_for_url("**/new/form**")
    assert tab.page.locator("#f-name").input_value() == "refused"
    assert tab.page.locator("#f-budget-time-s").input_value() == "14,400"


def test_small_forms_keep_what_was_typed_with_the_error_at_the_field(filled: Filled, make_tab: MakeTab) -> None:
    tab = signed_in(filled, make_tab, filled.pages["deployment"])
    tab.page.locator("#version").select_option("1")  # the newest one was turned down by its gate
    tab.page.locator("#as").select_option("canary")
    tab.page.locator("#percent").fill("250")
    tab.page.locator("#why").fill("A first look at it.")
    tab.page.get_by_role("button", name="Serve it so").click()
    tab.page.locator("#notices .bad").wait_for()
    assert tab.page.locator("#why").input_value() == "A first look at it."
    assert tab.page.locator("#percent").get_attribute("aria-invalid") == "true"
    expect(tab.page.locator("#wrong-percent")).to_contain_text("100")
    tab.page.locator("#percent").fill("25")
    tab.page.context.clear_cookies()
    tab.page.get_by_role("button", name="Serve it so").click()
    sign_in_again(tab, filled)
    tab.page.wait_for_url(f"**{filled.pages['deployment']}")
    assert tab.page.locator("#why").input_value() == "A first look at it."
    tab.page.get_by_role("button", name="Serve it so").click()
    expect(tab.page.locator("#notices .ok")).to_contain_text("It is served so from now on.")


def test_a_token_is_shown_once_without_leaving_the_page(filled: Filled, make_tab: MakeTab) -> None:
    tab = signed_in(filled, make_tab, "/team")
    tab.page.get_by_text("Make a token").click()
    tab.page.locator("#token-name").fill("from the browser")
    tab.page.get_by_role("button", name="Make it").click()
    expect(tab.page.locator("#secret")).to_contain_text("mvf_")
    assert tab.complaints == []


# --- uploads -----------------------------------------------------------------------------


def test_files_that_are_too_large_or_unpack_to_far_more_are_refused(
    filled: Filled, make_tab: MakeTab, tmp_path: Path
) -> None:
    tab = signed_in(filled, make_tab, "/new")
    huge = tmp_path / "huge.csv"
    with huge.open("wb") as file:
        file.truncate(2_100_000_000)
    tab.page.locator("#file").set_input_files(huge)
    message = tab.page.locator("#notices [role=alert]")
    expect(message).to_contain_text("the most that is taken is 2 GB")
    bomb = tmp_path / "bomb.csv.gz"
    bomb.write_bytes(gzip.compress(b"a,b\n" + b"1,2\n" * 20_000_000, 6))
    tab.page.locator("#file").set_input_files(bomb)
    expect(message).to_contain_text("times as large when it is unpacked", timeout=60_000)
    assert tab.page.url.endswith("/new")
    good = b"age,churned\n" + b"".join(b"%d,%s\n" % (k % 50, b"yes" if k % 3 else b"no") for k in range(60))
    tab.page.locator("#file").set_input_files({"name": "good.csv", "mimeType": "text/csv", "buffer": good})
    tab.page.wait_for_url("**/new/form**")


# --- what is down ----------------------------------------------------------------------------


def test_a_form_says_when_the_portal_does_not_answer(filled: Filled, make_tab: MakeTab) -> None:
    tab = signed_in(filled, make_tab, filled.pages["form"])
    tab.page.locator("#quote dl").wait_for()
    tab.page.context.set_offline(True)
    tab.page.locator("#f-name").fill("offline")
    expect(tab.page.locator("#notices")).to_contain_text(
        "The factory does not answer. What you have typed is still here"
    )
    tab.page.context.set_offline(False)
    tab.page.locator("#f-name").fill("online-again")
    expect(tab.page.locator("#notices")).to_be_empty()
    tab.page.locator("#quote dl").wait_for()
    assert tab.page.locator("#f-name").input_value() == "online-again"


def test_a_request_says_when_the_portal_does_not_answer_and_goes_on(filled: Filled, make_tab: MakeTab) -> None:
    request_id = searching(filled, "away")
    tab = signed_in(filled, make_tab, f"/requests/{request_id}")
    tab.page.route("**/live", lambda route: route.abort())
    filled.ledger.note(request_id, "search", "Something was found out.")
    told = tab.page.locator("#notices")
    expect(told).to_contain_text("The factory does not answer. This page is as it was at")
    assert "Something was found out." not in tab.page.locator("#live").inner_text()
    tab.page.unroute("**/live")
    expect(tab.page.locator("#live")).to_contain_text("Something was found out.")
    expect(told).to_be_empty()


def test_pages_say_when_no_controller_works(filled: Filled, make_tab: MakeTab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ledger, "leader", lambda *_: None)
    tab = signed_in(filled, make_tab)
    tab.page.wait_for_timeout(1_100)  # for which what was seen of the controller is good
    for path in ("/", "/requests", filled.pages["form"], filled.pages["request-waiting"]):
        tab.go(path)
        expect(tab.page.locator(".standing")).to_contain_text("No controller works at the moment")
    assert tab.complaints == []


# --- while one looks ---------------------------------------------------------------------------


def test_a_trial_that_is_recorded_shows_in_chart_and_leaderboard(filled: Filled, make_tab: MakeTab) -> None:
    request_id = searching(filled, "live")
    tab = signed_in(filled, make_tab, f"/requests/{request_id}")
    tab.page.locator("#scores .main-svg").first.wait_for()
    asked: list[str] = []
    tab.page.on("request", lambda request: asked.append(request.url))
    filled.ledger.record_trial(request_id, Trial(number=2, family="xgboost", score=0.91, **FITTED))
    lost = {**FITTED, "state": "failed", "folds": (), "fold_scores": ()}
    filled.ledger.record_trial(request_id, Trial(number=3, family="tabm", **lost))
    first = tab.page.locator("#leaders tbody tr").first
    expect(first).to_contain_text("XGBoost #2")
    expect(first).to_contain_text("0.9100")
    expect(tab.page.locator("#best")).to_have_text("0.9100")
    expect(tab.page.locator("#n-trials")).to_have_text("4")
    drawn = "document.getElementById('scores').data.map((one) => [one.name, one.x, one.y])"
    found = {name: (x, y) for name, x, y in tab.page.evaluate(drawn)}
    assert found["XGBoost"] == ([2], [0.91])
    assert found["Failed"][0] == [3]
    assert found["Best so far"] == ([0, 1, 2, 3], [0.5, 0.8, 0.91, 0.91])
    tab.page.wait_for_timeout(4_500)
    assert not [url for url in asked if url.startswith(filled.address)], "what came is drawn, nothing is fetched"
    assert tab.complaints == []


def test_a_question_and_the_focus_stay_while_the_page_changes(filled: Filled, make_tab: MakeTab) -> None:
    request_id = searching(filled, "asked")
    tab = signed_in(filled, make_tab, f"/requests/{request_id}")
    tab.page.locator("#live .events").focus()
    filled.ledger.advance(request_id, RequestState.EVALUATING, "Evaluating.")
    expect(tab.page.locator("#live .events")).to_contain_text("Evaluating.")
    assert tab.page.evaluate("document.activeElement.className") == "events"
    tab.page.get_by_role("button", name="Cancel").click()
    dialog = tab.page.get_by_role("dialog", name="Shall this request end?")
    dialog.wait_for()
    filled.ledger.note(request_id, "search", "One more event.")
    expect(tab.page.locator("#live .events")).to_contain_text("One more event.")
    assert dialog.is_visible()
    dialog.get_by_role("button", name="End it").click()
    expect(tab.page.locator("#notices")).to_contain_text("The request is asked to end.")
    assert filled.ledger.request(request_id).cancel_requested_at is not None


def test_a_chart_in_a_folded_part_is_drawn_when_that_is_opened(filled: Filled, make_tab: MakeTab) -> None:
    tab = signed_in(filled, make_tab, filled.pages["request"])
    tab.page.get_by_text("Learning curves").click()
    tab.page.locator("#curves .main-svg").first.wait_for()
    assert tab.page.evaluate("document.querySelector('#curves .main-svg').clientWidth") > 500


# --- keyboard and phone ----------------------------------------------------------------------------


def test_an_order_is_made_with_the_keyboard_alone(filled: Filled, make_tab: MakeTab) -> None:
    tab = signed_in(filled, make_tab, filled.pages["form"])
    keys = tab.page.keyboard

    def walk_to(wanted: str) -> None:
        for _ in range(80):
            keys.press("Tab")
            if tab.page.evaluate("(wanted) => document.activeElement.matches(wanted)", wanted):
                return
        raise AssertionError(f"{wanted} is not reached")

    walk_to(".skip")
    keys.press("Enter")
    walk_to("#f-dataset-target")
    walk_to("input[name=recipe]")
    keys.press("ArrowDown")
    tab.page.wait_for_url("**recipe=**")
    walk_to(".skip")
    keys.press("Enter")
    walk_to("#f-name")
    keys.press("Control+A")
    keys.type("by-keyboard")
    walk_to("#f-budget-time-s")
    keys.press("Control+A")
    keys.type("60")
    walk_to("button.big")
    outline = tab.page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid", "where the keyboard is can be seen"
    keys.press("Enter")
    tab.page.wait_for_url("**/requests/r-*")
    assert tab.heading == "growth.by-keyboard"


def test_a_filter_waits_until_its_choice_is_made(filled: Filled, make_tab: MakeTab) -> None:
    tab = signed_in(filled, make_tab, "/requests")
    tab.page.locator("#state").focus()
    for _ in range(3):
        tab.page.keyboard.press("ArrowDown")
    tab.page.wait_for_timeout(300)
    assert tab.page.url.endswith("/requests")
    tab.page.keyboard.press("Enter")
    tab.page.wait_for_url("**/requests?state=queued**")
    tab.page.locator("#state").select_option("failed")
    tab.page.wait_for_url("**state=failed**")


def test_on_a_phone_the_quote_stays_in_sight_and_charts_say_what_their_marks_are(
    filled: Filled, make_tab: MakeTab
) -> None:
    tab = signed_in(filled, make_tab, filled.pages["form"], size="phone")
    expect(tab.page.locator("#quote-short")).to_contain_text("sec")
    box = tab.page.locator(".order-bar").bounding_box()
    assert box is not None
    assert 600 < box["y"] < 740 - box["height"] + 1
    tab.go(filled.pages["request"])
    tab.page.locator("#scores").scroll_into_view_if_needed()
    expect(tab.page.locator("#scores + ul.legend")).to_contain_text("CatBoost")
    expect(tab.page.locator("#scores + ul.legend")).to_contain_text("Failed")
    fits = (
        "document.querySelector('#leaders').scrollWidth <= document.querySelector('#leaders').parentElement.clientWidth"
    )
    assert tab.page.evaluate(fits), "no column is cut off"
