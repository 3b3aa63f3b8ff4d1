"""The form of a request: numbers in the reader's language, findings and costs, a recipe that changes meanwhile."""

from __future__ import annotations

import re
from typing import Any

import pandas as pd
import pytest

from factory.data.first_look import MOST_ROWS, first_look
from factory.errors import InvalidData
from factory.spec import Trial
from serve.portal.pages.forms import Field, document_of, form_of
from serve.portal.pages.words import Words
from tests.answers import error_of
from tests.portal.conftest import World, customers
from tests.portal.test_pages import Page, Visitor

LINE = {"name": "churn-line", "title": "Churn by a line", "families": ["constant", "linear"]}


def form_at(visitor: Visitor, world: World, recipe: str = "tabular-fast") -> Page:
    return visitor.get(f"/new/form?dataset={world.upload()}&recipe={recipe}")


def typed(page: Page, world: World, **changes: str) -> dict[str, Any]:
    """Return what a form sends as it is, with some fields changed."""
    digest = re.search(r'name="recipe_digest" value="(\w+)"', page.text)
    assert digest is not None
    base = {"csrf": page.csrf, "team": "growth", "recipe": "tabular-fast", "name": "customers"}
    data = {"dataset__upload": world.upload(), "dataset__target": "churned", "recipe_digest": digest.group(1)}
    return {**base, **data, **changes}


# --- numbers ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("language", "text", "value"),
    [
        ("en", "14,400", 14_400),
        ("en", "1,234,567.5", 1_234_567.5),
        ("en", "14400", 14_400),
        ("en", "0.125", 0.125),
        ("en", "12,5", 12.5),
        ("en", "0,125", 0.125),
        ("en", "14 400", 14_400),
        ("en", "-1e-3", -0.001),
        ("en", "1.400,5", None),
        ("en", "14,40,0", None),
        ("en", "1,4400", None),
        ("en", "nan", None),
        ("en", "9" * 400 + ".0", None),
        ("de", "14.400", 14_400),
        ("de", "1.234.567,5", 1_234_567.5),
        ("de", "0,125", 0.125),
        ("de", "0.125", 0.125),
        ("de", "12.5", 12.5),
        ("de", "1.125", 1_125),
        ("de", "1,400.5", None),
        ("de", "", None),
    ],
)
def test_numbers_are_read_as_their_language_writes_them(language: str, text: str, value: float | None) -> None:
    assert Words.of(language).read(text) == value


@pytest.mark.parametrize("language", ["en", "de"])
@pytest.mark.parametrize("value", [0.1, 1.125, 14_400, 1_234_567.25, -0.001, 1e-12])
def test_what_stands_in_a_field_is_read_as_the_same_number(language: str, value: float) -> None:
    words = Words.of(language)
    assert words.read(words.typed(value)) == value
    assert form_of({"budget": {"time_s": value}}, words)["budget.time_s"] == [words.typed(value)]
    assert words.read(words.number(value, 12)) == value


@pytest.mark.parametrize(
    ("field", "english"),
    [
        (Field("a", "A", "", "number", low=0, high=14_400, above=True), "more than 0, at most 14,400"),
        (Field("a", "A", "", "number", low=0, high=0.9, above=True, below=True), "more than 0, less than 0.9"),
        (Field("a", "A", "", "integer", low=2, high=20), "2 to 20"),
        (Field("a", "A", "", "integer", low=1), "at least 1"),
        (Field("a", "A", "", "number"), ""),
    ],
)
def test_bounds_say_whether_they_are_allowed_themselves(field: Field, english: str) -> None:
    assert field.bounds(Words.of("en")) == english


@pytest.mark.parametrize(("language", "shown", "unclear"), [("en", "14,400", "1.400,5"), ("de", "14.400", "1,400.5")])
def test_grouped_thousands_are_taken_and_unclear_numbers_are_told(
    language: str, shown: str, unclear: str, world: World
) -> None:
    visitor = Visitor(world, language).signed_in()
    page = form_at(visitor, world, "tabular-auto")
    assert shown in page.text
    order = typed(page, world, recipe="tabular-auto", budget__time_s=shown, budget__trials=shown.replace("14", "2", 1))
    quote = visitor.post("/new/quote", **order).text
    assert "time_s: 14400" in quote
    assert "trials: 2400" in quote
    wrong = visitor.post("/new/quote", **(order | {"budget__time_s": unclear})).text
    assert re.findall(r'data-problem="([\w.]+)"', wrong) == ["budget.time_s"]
    refused = visitor.post("/new", **(order | {"budget__time_s": unclear, "budget__trials": "2.5"}))
    assert refused.response.status_code == 400
    assert f'value="{unclear}"' in refused.text
    assert refused.text.count('aria-invalid="true"') == 2
    assert world.ledger.request_page().items == ()


def test_durations_with_a_unit_are_left_to_the_api() -> None:
    fields = {"budget.time_s": Field("budget.time_s", "Wall time", "", "number")}
    assert document_of({"budget.time_s": ["5m"]}, fields, Words.of("en")) == {"budget": {"time_s": "5m"}}


# --- findings and costs ---------------------------------------------------------------


def odd_customers() -> bytes:
    frame = customers(3)
    extra = {"nothing": 1, "row": range(len(frame)), "copy": frame["churned"].map({"no": "a", "yes": "b"})}
    return frame.assign(**extra).to_csv(index=False).encode()


def test_the_form_says_what_is_suspicious_about_the_columns(world: World) -> None:
    sent = world().post("/datasets", params={"filename": "odd.csv"}, content=odd_customers()).json()
    digest = sent["dataset"]["digest"]
    found = world("growth/read").get(f"/datasets/{digest}/findings", params={"target": "churned"}).json()
    assert {one["column"]: one["kind"] for one in found["findings"]} == {
        "nothing": "constant",
        "row": "identifier",
        "copy": "target_copy",
    }
    assert (found["n_rows"], found["whole"]) == (300, True)
    visitor = Visitor(world).signed_in()
    assert 'hx-get="/new/findings"' in visitor.get(f"/new/form?dataset={digest}").text
    place = f"/new/findings?dataset.upload={digest}&dataset.target=churned"
    part = visitor.get(place).text
    assert "3 things are suspicious about the columns" in part
    assert "the target itself" in part
    unknown = visitor.get(place.replace("churned", "nobody"), headers={"hx-request": "true"}).text
    assert "<html" not in unknown
    assert "no column &#39;nobody&#39;" in unknown
    error_of(world("risk/read").get(f"/datasets/{digest}/findings", params={"target": "churned"}), 404)


@pytest.mark.parametrize("kind", ["csv", "parquet", "arrow"])
def test_of_a_long_table_its_first_rows_are_looked_at(kind: str, world: World, tmp_path: Any) -> None:
    frame, path = customers(4, MOST_ROWS + 500), tmp_path / f"long.{kind}"
    if kind == "csv":
        frame.to_csv(path, index=False)
    elif kind == "parquet":
        frame.to_parquet(path, row_group_size=700)
    else:
        pd.DataFrame.to_feather(frame, path)
    found = first_look(path, "churned", digest="a" * 64, max_rows=10**6)
    assert (found.n_rows, found.whole) == (MOST_ROWS, False)


def test_recipes_tell_what_they_usually_take_and_cost(world: World) -> None:
    found = world("growth/read").get("/recipes", params={"usual": True}).json()
    usual = found["usual"]["tabular-fast"]
    assert (usual["time_s"], usual["n_past"], usual["currency"]) == (30, 0, "USD")
    assert usual["money"] > 0
    assert world("growth/read").get("/recipes").json()["usual"] == {}
    error_of(world("growth/read").get("/recipes", params={"usual": True, "team": "risk"}), 404)
    text = form_at(Visitor(world).signed_in(), world).text
    assert re.search(r"usually 30 sec · about [\d.]+ USD", text)


# --- a recipe that was changed meanwhile --------------------------------------------------


def test_a_form_whose_recipe_was_changed_orders_nothing_and_says_what_is_new(world: World) -> None:
    publisher, visitor = world("growth/publish"), Visitor(world).signed_in()
    assert publisher.put("/recipes/churn-line", json=LINE).status_code == 200
    page = form_at(visitor, world, "churn-line")
    order = typed(page, world, recipe="churn-line", budget__time_s="45")
    assert "was changed" not in visitor.post("/new/quote", **order).text
    assert publisher.put("/recipes/churn-line", json={**LINE, "families": ["linear", "kernel"]}).status_code == 200
    assert "The recipe was changed while this form was open." in visitor.post("/new/quote", **order).text
    late = visitor.post("/new", **order)
    assert late.response.status_code == 409
    assert "so nothing was ordered" in late.text
    assert "Model families: was constant, linear, is now linear, kernel" in late.text
    assert 'value="45"' in late.text
    assert world.ledger.request_page().items == ()
    again = typed(late, world, recipe="churn-line", budget__time_s="45")
    assert visitor.post("/new", **again).response.status_code == 303


def test_the_address_of_a_form_leads_back_to_it(world: World) -> None:
    visitor = Visitor(world).signed_in()
    page = visitor.post("/new/form", **typed(form_at(visitor, world), world, recipe="tabular-auto", name="kept"))
    assert 'value="kept"' in page.text
    action = re.search(r'action="(/new\?[^"]+)"', page.text)
    assert action is not None
    address = action.group(1).replace("&amp;", "&")
    assert "recipe=tabular-auto" in address
    back = visitor.get(address).response
    assert back.status_code == 303
    assert back.headers["location"] == address.replace("/new?", "/new/form?")
    visitor.cookies.clear()
    headers = {"hx-request": "true", "hx-current-url": f"http://127.0.0.1:8080{address}"}
    ended = visitor("POST", "/new/quote", data={"recipe": "tabular-auto"}, headers=headers).response
    assert ended.status_code == 401
    assert "dataset%3D" in ended.headers["hx-redirect"]


# --- home, errors ------------------------------------------------------------------------


def test_home_shows_champions_however_old_they_are(world: World) -> None:
    world.made("growth.old")
    world.ledger.set_alias("growth.old", "champion", 1, who="x", why="y")
    for _ in range(101):
        world.made("growth.new")
    text = Visitor(world).signed_in("growth/read").get("/").text
    assert 'href="/variants/growth.old"' in text
    assert "No variant is in production yet" not in text
    assert 'href="/variants?alias=champion"' not in text
    for k in range(6):
        world.made(f"growth.more{k}")
        world.ledger.set_alias(f"growth.more{k}", "champion", 1, who="x", why="y")
    assert 'href="/variants?alias=champion"' in Visitor(world).signed_in("growth/read").get("/").text


def test_a_failed_request_waits_until_something_newer_was_made(world: World) -> None:
    for name in ("churn", "spend"):
        world.ledger.fail(world.submitted(name=name), InvalidData("No."))
    world.made("growth.spend")
    text = Visitor(world).signed_in("growth/read").get("/").text
    waits = text[text.index("Waits for you") : text.index("Being made")]
    assert "growth.churn" in waits
    assert "growth.spend" not in waits


def test_pages_say_when_no_controller_works(world: World) -> None:
    visitor = Visitor(world).signed_in("growth/read")
    assert 'hx-get="/standing"' in visitor.get("/").text
    assert "No controller works at the moment" in visitor.get("/standing").text


def test_requests_are_found_by_a_part_of_their_variants_name(world: World) -> None:
    for name in ("churn", "spend"):
        world.submitted(name=name)
    found = world("growth/read").get("/requests", params={"like": "pen"}).json()["items"]
    assert [one["variant"] for one in found] == ["growth.spend"]
    text = Visitor(world).signed_in("growth/read").get("/requests?variant=chu").text
    assert "growth.churn" in text
    assert "growth.spend" not in text


def test_pages_of_errors_keep_the_menu_and_what_was_typed(world: World) -> None:
    admin = Visitor(world).signed_in("growth/admin")
    assert 'href="/queue"' in admin.get("/requests/nobody?x=1").text
    csrf = admin.get("/team").csrf
    headers = {"referer": "http://127.0.0.1:8080/team"}
    form = {"csrf": csrf, "subject": "oidc|7", "email": "no address", "scopes": ["root"]}
    page = admin("POST", "/team/growth/members", data=form, headers=headers)
    assert page.response.status_code == 400
    assert 'value="no address"' in page.text
    assert 'action="/team/growth/members"' in page.text
    assert 'href="/team"' in page.text
    assert 'href="/team/growth/members"' not in page.text, "nobody can look at that"
    part = admin("POST", "/team/growth/members", data=form, headers={**headers, "hx-request": "true"})
    assert part.response.headers["hx-retarget"] == "#notices"
    assert "data-problem=" in part.text
    other = admin("POST", "/team/growth/members", data=form | {"csrf": "0" * 64}, headers=headers)
    assert other.response.status_code == 403
    assert "no address" not in other.text, "it may be another site that has sent it"


def test_what_was_changed_meanwhile_can_be_loaded(world: World, mirror: list[Any]) -> None:
    world.made()
    visitor = Visitor(world).signed_in("growth/deploy")
    place = "/deployments/growth.churn"
    form = {"csrf": visitor.get(place).csrf, "tag": '"old"', "version": "1", "as": "champion", "why": "Because."}
    page = visitor("POST", place, data=form, headers={"referer": f"http://127.0.0.1:8080{place}?window=day"})
    assert page.response.status_code == 412
    assert f'href="{place}?window=day">Load the newer state' in page.text


def test_what_cannot_be_looked_at_is_not_tried_again(world: World) -> None:
    visitor = Visitor(world).signed_in("growth/read")
    visitor("GET", "/requests?limit=0&sort=nothing")
    page = visitor.get("/requests?sort=nothing")
    assert page.response.status_code == 400
    assert "Try again" not in page.text


def test_a_trials_live_row_looks_as_the_servers(world: World) -> None:
    request_id = world.submitted()
    trial = {"family": "kernel", "parameters": {}, "state": "succeeded", "folds": (0,), "fold_scores": (0.8,)}
    world.ledger.record_trial(request_id, Trial(number=0, score=0.8, **trial))
    text = Visitor(world).signed_in("growth/read").get(f"/requests/{request_id}").text
    assert text.count('data-trial="0"') == 2, "the row, and the template of one"
