"""Trying a version on the page and over the API, against a real predictor."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from factory.data.inspection import Preview, UploadColumn
from factory.spec import Task
from factory.variants.background import Background
from factory.variants.bundle import Bundle
from serve.portal import trying
from serve.portal.documents import VersionDetail
from serve.portal.pages.trying import SHOWN, fields_of, outcome, read_value
from serve.portal.pages.words import Words
from serve.portal.trying import Contributions, Explanation, Predictions
from tests.answers import error_of
from tests.portal.conftest import World
from tests.portal.test_pages import Visitor
from tests.serve.conftest import customers, make_bundle
from tests.serving import predictor

COLUMNS = ["age", "income", "city", "member", "since"]
ROW = {"age": 41, "income": 52_000.5, "city": "Bern", "member": True, "since": "2021-03-04"}
PLACE = "/variants/growth.churn/versions/1"


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    made = make_bundle(COLUMNS, target="churned", task=Task.BINARY)
    return Bundle(**{**vars(made), "background": Background.of(customers(40, seed=2), made.columns, seed=0)})


@pytest.fixture
def served(world: World, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A portal with one variant, and a predictor that answers for it on a port of its own."""
    variant = world.made()
    folder = world.settings.workspace(variant.request_id) / "pooled" / "bundle"
    folder.parent.mkdir(parents=True)
    bundle.save(folder)

    with predictor(world.ledger, bundle) as url:
        monkeypatch.setattr(trying, "running_predictor", lambda _: SimpleNamespace(url=url))
        yield world


def test_rows_are_predicted_and_explained(served: World) -> None:
    answer = served("growth/read").post(f"{PLACE}/predictions", json={"rows": [ROW, {}], "explain": True})
    assert answer.status_code == 200, answer.text
    found = Predictions.model_validate_json(answer.content)
    assert found.predictions[0]["prediction"] in ("yes", "no")
    assert found.explanation is not None
    for plain, row in zip(found.predictions, found.explanation.explanations, strict=True):
        added = sum(one["yes"] for one in row.contributions.values())
        assert found.explanation.base["yes"] + added == pytest.approx(plain["probability_yes"])
    plain_only = served("growth/read").post(f"{PLACE}/predictions", json={"rows": [ROW]}).json()
    assert plain_only["explanation"] is None
    sent = {"rows": [ROW], "explain": True, "counterexamples": 2}
    (row,) = served("growth/read").post(f"{PLACE}/predictions", json=sent).json()["explanation"]["explanations"]
    for example in row["counterexamples"]["found"]:
        assert example["prediction"]["prediction"] != plain_only["predictions"][0]["prediction"]
        assert all(set(move) == {"from", "to"} for move in example["changes"].values())
    (alone,) = plain_only["predictions"]
    assert alone["probability_yes"] == pytest.approx(found.predictions[0]["probability_yes"])


def test_what_the_predictor_refuses_is_told_as_it_says_it(served: World) -> None:
    error = error_of(served("growth/read").post(f"{PLACE}/predictions", json={"rows": [{"agee": 3}]}), 422)
    assert error["details"][0]["field"] == "agee"
    assert "Did you mean 'age'?" in error["details"][0]["message"]
    error_of(served("growth/read").post(f"{PLACE}/predictions", json={"rows": []}), 400)
    error_of(served("growth/read").post(f"{PLACE}/predictions", json={"rows": [{}] * 101}), 400)
    ignored = served("growth/read").post(f"{PLACE}/predictions", json={"rows": [ROW], "counterexamples": 1})
    assert "send explain as well" in error_of(ignored, 400)["message"]


def test_without_a_predictor_it_says_so(world: World) -> None:
    world.made()
    error = error_of(world("growth/read").post(f"{PLACE}/predictions", json={"rows": [ROW]}), 503)
    assert "No predictor runs" in error["message"]


def test_a_predictor_that_is_gone_is_a_503(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.made()
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    monkeypatch.setattr(trying, "running_predictor", lambda _: SimpleNamespace(url=url))
    assert (
        "does not answer"
        in error_of(world("growth/read").post(f"{PLACE}/predictions", json={"rows": [ROW]}), 503)["message"]
    )


def test_the_page_predicts_what_was_typed(served: World) -> None:
    visitor = Visitor(served).signed_in()
    page = visitor.get(f"{PLACE}/try")
    assert page.response.status_code == 200
    assert all(f'name="value.{column}"' in page.text for column in COLUMNS)
    typed = {
        f"value__{name}": str(value).lower() if isinstance(value, bool) else str(value) for name, value in ROW.items()
    }
    answer = visitor.post(f"{PLACE}/try", csrf=page.csrf, **typed)
    assert answer.response.status_code == 200, answer.text
    assert "What each column added" in answer.text
    assert "The contributions are sampled" in answer.text
    assert "What would change it" in answer.text
    assert 'value="52000.5"' in answer.text, "what was typed stays"
    wrong = visitor.post(f"{PLACE}/try", csrf=page.csrf, **{**typed, "value__age": "old"})
    assert wrong.response.status_code == 422
    assert 'value="old"' in wrong.text
    assert 'aria-invalid="true"' in wrong.text


def test_the_page_says_that_no_predictor_runs(world: World, bundle: Bundle) -> None:
    variant = world.made()
    folder: Path = world.settings.workspace(variant.request_id) / "pooled" / "bundle"
    folder.parent.mkdir(parents=True)
    bundle.save(folder)
    visitor = Visitor(world).signed_in()
    page = visitor.get(f"{PLACE}/try")
    assert "No predictor runs" in page.text
    assert visitor.post(f"{PLACE}/try", csrf=page.csrf).response.status_code == 503


# --- what is drawn ------------------------------------------------------------------


def version(*columns: tuple[str, str], task: str = "regression") -> VersionDetail:
    described = [{"name": name, "type": kind} for name, kind in columns]
    base = {"name": "a.b", "version": 1, "request_id": "r-1", "task": task, "metric": "roc_auc", "recipe": "x"}
    digests = {"recipe_digest": "a" * 64, "dataset_digest": "b" * 64, "bundle_digest": "c" * 64}
    scores = {"score": 1.0, "score_low": 0.5, "score_high": 1.5}
    return VersionDetail.model_validate({**base, **digests, **scores, "columns": described})


def test_fields_begin_with_the_first_row_and_suggest_what_the_data_have() -> None:
    columns = tuple(UploadColumn(name=name, type=kind) for name, kind in (("age", "numeric"), ("city", "categorical")))
    preview = Preview(columns=columns, rows=((41, "Bern"), (None, "Genf"), (7, "Bern")))
    age, city, other = fields_of(
        version(("age", "numeric"), ("city", "categorical"), ("new", "text")), preview, None, Words.of("de")
    )
    assert (age.value, age.suggested) == ("41", ())
    assert (city.value, city.suggested) == ("Bern", ("Bern", "Genf"))
    assert (other.value, other.suggested) == ("", ())


def test_the_largest_contributions_are_drawn_and_the_others_added_up() -> None:
    added = {f"c{k}": {"prediction": (-1) ** k * float(20 - k)} for k in range(SHOWN + 3)}
    row = Contributions(prediction={"prediction": 3.0}, contributions=added, errors={})
    explained = Explanation(base={"prediction": 1.0}, walks=2, explanations=(row,))
    found = outcome(Predictions(predictions=({"prediction": 3.0},), explanation=explained), {}, task=Task.REGRESSION)
    assert [bar.column for bar in found.bars] == [f"c{k}" for k in range(SHOWN)]
    assert (found.bars[0].at, found.bars[0].width) == (0.0, 100.0)
    assert (found.bars[1].at, found.bars[1].width) == (-95.0, 95.0)
    assert found.n_others == 3
    everything = found.base + sum(bar.added for bar in found.bars) + found.others
    assert everything == pytest.approx(1.0 + sum(one["prediction"] for one in added.values()))


def test_counterexamples_are_shown_where_they_were_looked_for() -> None:
    found = {"changes": {"age": {"from": 41.0, "to": None}}, "distance": 1.0, "prediction": {"prediction": "no"}}
    row = {"prediction": {"yes": 1.0}, "contributions": {"age": {"yes": 0.5}}, "errors": {}}
    told = {
        "base": {"yes": 0.5},
        "walks": 0,
        "explanations": [row | {"counterexamples": {"found": [found], "tried": 1}}],
    }
    told["explanations"][0]["counterexamples"]["complete"] = True
    predictions = Predictions(
        predictions=({"prediction": "yes", "probability_yes": 1.0},), explanation=Explanation.model_validate(told)
    )
    shown = outcome(predictions, {}, task=Task.BINARY)
    assert shown.exact
    assert shown.otherwise is not None
    assert shown.otherwise[0].changes["age"].before == 41.0
    assert shown.otherwise[0].changes["age"].after is None


def test_classes_stand_by_their_probability() -> None:
    row = {"prediction": "no", "probability_yes": 0.25, "probability_no": 0.75}
    found = outcome(Predictions(predictions=(row,)), {}, task=Task.BINARY)
    assert found.probabilities == (("no", 0.75), ("yes", 0.25))
    assert found.bars == ()


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("true", "boolean", True),
        ("", "boolean", None),
        ("2", "numeric", 2),
        ("nan", "numeric", "nan"),
        ("2", "text", "2"),
    ],
)
def test_values_are_read_by_their_type(text: str, kind: str, value: object) -> None:
    assert read_value(text, kind, Words.of("en")) == value
