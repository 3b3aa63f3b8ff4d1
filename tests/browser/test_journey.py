"""The whole journey in a real browser against a real stack: a table in hand, and a variant that answers."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from sklearn.datasets import load_breast_cancer

import factory
from factory.spec import Quota, RequestState
from tests.whole_stack import Stack, running_stack

from .conftest import MakeTab, Tab

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

MAKING_MS = 240_000
"""Until a request of 20 seconds is through, on a machine that is busy."""


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with running_stack() as started:
        yield started


@pytest.fixture(scope="module")
def token(stack: Stack) -> str:
    with factory.Client(stack.url, stack.admin) as operator:
        operator.create_team("clinic", quota=Quota(cpus=2))
        return str(operator.issue_token("ann", team="clinic", scopes=["read", "submit", "deploy"]).secret)


@pytest.fixture(scope="module")
def table(stack: Stack) -> Path:
    path = stack.home.parent / "tumours.csv"
    load_breast_cancer(as_frame=True).frame.rename(columns=lambda name: name.replace(" ", "_")).to_csv(
        path, index=False
    )
    return path


def order(tab: Tab, table: Path) -> str:
    """Upload the table, order a variant of it, and return the request's id."""
    page = tab.page
    page.get_by_role("link", name="New variant").first.click()
    page.locator("#file").set_input_files(table)
    page.wait_for_url("**/new/form**")
    page.locator("[name='dataset.target']").select_option("target")
    page.locator("input[name=recipe][value=tabular-fast]").check(force=True)
    page.wait_for_url("**recipe=tabular-fast**")
    page.locator("#f-name").fill("tumour")
    page.locator("[name='budget.time_s']").fill("20")
    page.locator("#quote dl").wait_for()
    page.get_by_role("button", name="Order this variant").click()
    page.wait_for_url("**/requests/r-*")
    return page.url.rpartition("/")[2]


def watch(tab: Tab, request_id: str, stack: Stack, token: str) -> None:
    """Watch the request live until its variant is there, without a reload by hand."""
    page = tab.page
    page.locator("#leaders tbody tr").first.wait_for(timeout=MAKING_MS)
    page.get_by_role("link", name="See the variant").wait_for(timeout=MAKING_MS)
    with factory.Client(stack.url, token) as client:
        # One that is no better than the champion is turned down, and kept.
        assert client.request(request_id).state in (RequestState.REGISTERED, RequestState.REJECTED)


def try_it(tab: Tab) -> None:
    page = tab.page
    page.get_by_role("link", name="Try it").click()
    page.get_by_role("button", name="Predict").click()
    page.locator("#answer .figure-of b").wait_for()
    assert page.locator("#answer .figure-of b").inner_text() in ("0", "1")
    page.locator("#answer table.added tr").first.wait_for()
    page.get_by_label("mean_radius").fill("large")
    page.get_by_role("button", name="Predict").click()
    refused = page.locator("#answer [role=alert]")
    refused.wait_for()
    assert "mean_radius" in refused.inner_text()
    assert page.get_by_label("mean_radius").input_value() == "large"


def take_away(tab: Tab) -> None:
    """Download the version, and read whether there is an ONNX file of it."""
    page = tab.page
    page.locator("#export > summary").click()
    page.locator("#onnx :is(a, b)").first.wait_for(timeout=MAKING_MS)
    with page.expect_download(timeout=MAKING_MS) as download:
        page.get_by_role("link", name="Download").first.click()
    with zipfile.ZipFile(download.value.path()) as archive:
        assert {"clinic.tumour-1/predict.py", "clinic.tumour-1/README.md"} <= set(archive.namelist())


def test_from_a_table_to_a_variant_that_answers_and_back(
    stack: Stack, token: str, table: Path, make_tab: MakeTab
) -> None:
    desk = make_tab(stack.url)
    desk.sign_in(token)
    first = order(desk, table)
    watch(desk, first, stack, token)
    desk.page.get_by_role("link", name="See the variant").click()
    card = desk.page.frame_locator("iframe.paper")
    card.locator("h1").first.wait_for()
    assert "clinic.tumour" in card.locator("body").inner_text()
    assert "Champion" in desk.page.locator("h1").inner_text()
    desk.page.locator(".beside svg.lineage .here").wait_for()
    assert "Compared with" in desk.page.locator("aside").inner_text(), "what its gate found"
    take_away(desk)
    try_it(desk)

    phone = make_tab(stack.url, size="phone")
    phone.sign_in(token)
    second = order(phone, table)
    watch(phone, second, stack, token)
    phone.page.get_by_role("link", name="See the variant").click()
    if "Champion" not in phone.page.locator("h1").inner_text():
        phone.page.get_by_text("Make it champion").first.click()
        for box in phone.page.get_by_label("I override the gate").all():
            box.check()
        phone.page.get_by_label("Why").first.fill("As good, and newer")
        phone.page.get_by_role("button", name="Make it champion").click()
        phone.page.get_by_text("It is champion.").wait_for()
    try_it(phone)

    phone.go("/variants/clinic.tumour")
    phone.page.get_by_text("Roll back").first.click()
    phone.page.get_by_label("Why").fill("The first one was quicker")
    phone.page.get_by_role("button", name="Roll back").click()
    phone.page.get_by_text("Version 1 is champion again.").wait_for()
    with factory.Client(stack.url, token) as client:
        champion = {v.version for v in client.variants("clinic.tumour") if "champion" in v.aliases}
    assert champion == {1}
    assert (desk.complaints, phone.complaints) == ([], [])
