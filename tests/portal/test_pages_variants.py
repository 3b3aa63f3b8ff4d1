"""Pages of variants: promoting and rolling back, comparing, segments, what is taken away, and what it costs."""

from __future__ import annotations

import re
from typing import Any

from factory.operate.answers import InputColumn
from serve.portal.exporting import OnnxReport
from tests.portal.conftest import SETUP, World
from tests.portal.test_pages import SCRIPT, Page, Visitor
from tests.portal.test_pages import filled as filled


def hidden(page: Page, name: str) -> str:
    found = re.search(rf'name="{name}" value="([^"]*)"', page.text)
    assert found is not None, name
    return found.group(1)


def test_of_two_who_promote_at_once_the_second_one_sees_who_was_first(
    world: World, filled: dict[str, str], mirror: list[Any]
) -> None:
    world.made()
    first, second = Visitor(world).signed_in("growth/deploy"), Visitor(world).signed_in("growth/admin")
    pages = [first.get(filled["version"]), second.get("/variants/growth.churn/versions/3")]
    assert [hidden(page, "instead_of") for page in pages] == ["1", "1"]
    sent = {"version": "2", "instead_of": "1", "why": "Better in the pilot."}
    assert first.post("/variants/growth.churn/promote", csrf=pages[0].csrf, **sent).response.status_code == 303
    late = {"version": "3", "instead_of": "1", "why": "Newer data."}
    told = second.post("/variants/growth.churn/promote", csrf=pages[1].csrf, **late)
    assert told.response.status_code == 409
    assert "has made version 2 champion of growth.churn meanwhile: Better in the pilot." in told.text
    assert 'value="Newer data."' in told.text, "what was typed is kept"
    assert hidden(told, "instead_of") == "2", "sent again, it takes the place of the champion that is told"
    assert world.ledger.alias("growth.churn", "champion") == 2
    again = second.post("/variants/growth.churn/promote", csrf=told.csrf, **{**late, "instead_of": "2"})
    assert again.response.status_code == 303
    assert world.ledger.alias("growth.churn", "champion") == 3


def test_a_rollback_has_a_reason_ready_and_happens_once(
    world: World, filled: dict[str, str], mirror: list[Any]
) -> None:
    world.ledger.set_alias("growth.churn", "champion", 2, who="x", why="y", by=SETUP)
    visitor = Visitor(world).signed_in("growth/deploy")
    for path in (filled["variant"], filled["deployment"]):
        page = visitor.get(path)
        assert 'value="Version 2 does worse than the one before."' in page.text
        assert hidden(page, "instead_of") == "2"
    sent = {"csrf": page.csrf, "why": "It is slower.", "instead_of": "2", "back": "deployment"}
    back = visitor.post("/variants/growth.churn/rollback", **sent)
    assert back.response.headers["location"] == "/deployments/growth.churn"
    assert visitor.post("/variants/growth.churn/rollback", **sent).response.status_code == 303
    assert world.ledger.alias("growth.churn", "champion") == 1
    world.made()
    world.ledger.set_alias("growth.churn", "champion", 3, who="bob", why="Newer.", by=SETUP)
    late = visitor.post("/variants/growth.churn/rollback", **sent)
    assert late.response.status_code == 409
    assert "bob has made version 3 champion of growth.churn meanwhile: Newer." in late.text


def test_whoever_promotes_sees_the_gates_evidence_first(world: World, filled: dict[str, str]) -> None:
    made = world.ledger.variant("growth.churn", 2)
    than = {"difference": 0.021, "low": 0.004, "high": 0.038, "probability": 0.991, "candidate": 0.861}
    found = {
        "passed": True,
        "baseline": "the champion growth.churn/1",
        "comparison": {**than, "baseline": 0.84, "n_rows": 400, "n_resamples": 1000},
        "checks": [{"name": "latency", "passed": True, "value": 1.5, "limit": 20.0, "sentence": "One row."}],
    }
    world.ledger.note(made.request_id, "gate", "growth.churn/2: Passed. Better.", payload=found)
    text = Visitor(world).signed_in("growth/deploy").get(filled["version"]).text
    form = text[text.index('action="/variants/growth.churn/promote"') :].partition("</form>")[0]
    for told in ("Champion 1", "+0.0210", "99.1%", "1.5 ms, at most 20 ms", "the champion growth.churn/1"):
        assert told in form, told
    german = Visitor(world, language="de").signed_in("growth/deploy").get(filled["version"]).text
    assert "den Champion growth.churn/1" in german
    assert "What its gate found" in Visitor(world).signed_in("growth/read").get(filled["version"]).text


def test_two_versions_are_compared_by_their_columns(world: World, filled: dict[str, str], monkeypatch: Any) -> None:
    """Column by column, not by digest alone; what differs stands first."""
    columns = {1: ("age", "numeric"), 2: ("age", "categorical")}

    def inside(variant: Any, _settings: Any) -> Any:
        name, kind = columns[variant.version]
        extra = [InputColumn(name="city" if variant.version == 1 else "income", type="categorical")]
        return (InputColumn(name="same", type="numeric"), InputColumn(name=name, type=kind), *extra), ()

    monkeypatch.setattr("serve.portal.routes.variants.inside_of", inside)
    page = Visitor(world).signed_in("growth/read").get(filled["compare"]).text
    columns_told = page[page.index("<h2>Columns</h2>") :].partition("</section>")[0]
    assert re.findall(r'<th scope="row">(\w+)', columns_told) == ["age", "city", "income"]
    assert columns_told.count("not there") == 2
    assert "1 column is the same in both." in columns_told
    assert "<td>Number</td>" in columns_told
    assert "warm_start" not in page
    assert "roc_auc" not in page
    world.made("growth.upsell", recipe="tabular-fast")
    other = Visitor(world).signed_in("growth/read").get(f"{filled['compare'][:-1]}1&other=growth.upsell").text
    assert "growth.upsell/1" in other
    differing = other[other.index("What differs") :].partition("</section>")[0]
    assert "tabular-fast" in differing
    assert "Prüfsumme" in Visitor(world, language="de").signed_in("growth/read").get(filled["compare"]).text


def test_segments_are_drawn_small_and_those_of_the_pooled_variant_listed(world: World) -> None:
    pooled = world.made()
    world.ledger.set_alias("growth.churn", "champion", 1, who="x", why="y", by=SETUP)
    for segment, at in (("north", 0.7), ("south", 0.95)):
        scores = {"score": at, "score_low": at - 0.01, "score_high": at + 0.01}
        world.made(f"growth.churn.{segment}", segment=segment, **scores)
        world.ledger.set_alias(f"growth.churn.{segment}", "champion", 1, who="x", why="y", by=SETUP)
    reason = "it has 20 rows, fewer than segments.min_rows 200."
    world.ledger.note(pooled.request_id, "segment", "Left.", payload={"segment": SCRIPT, "reason": reason})
    page = Visitor(world).signed_in("growth/read").get("/variants/growth.churn").text
    small = page[page.index('class="multiples"') :]
    assert small.index(">north<") < small.index("weaker") < small.index(">south<") < small.index("stronger")
    assert "-0.1400 against the pooled" in small
    assert "The pooled variant answers for 1 segment" in page
    assert SCRIPT not in page
    german = Visitor(world, language="de").signed_in("growth/read").get("/variants/growth.churn").text
    assert "es hat 20 Zeilen, weniger als die geforderten 200." in german


def test_a_version_is_taken_away_or_says_why_not(world: World, filled: dict[str, str], monkeypatch: Any) -> None:
    page = Visitor(world).signed_in("growth/deploy").get(filled["version"]).text
    assert 'href="/api/v1/variants/growth.churn/versions/2/export?format=folder"' in page
    assert "Take it away" not in Visitor(world).signed_in("growth/read").get(filled["version"]).text
    report = OnnxReport(possible=False, message="ONNX does not have the text column 'a'.", hint="Order it.")
    monkeypatch.setattr("serve.portal.routes.exports.onnx_report", lambda *_: report)
    told = Visitor(world, language="de").signed_in("growth/deploy").get(f"{filled['version']}/onnx").text
    assert "Es gibt keine ONNX-Datei davon." in told
    assert "ONNX kennt the text column &#39;a&#39; nicht." in told


def test_a_team_sees_what_each_of_its_variants_costs(world: World, filled: dict[str, str]) -> None:
    page = Visitor(world).signed_in("growth/read").get("/team").text
    assert "What its variants cost this month" in page
    assert 'href="/requests?variant=growth.churn"' in page
