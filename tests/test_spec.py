"""The nouns: every problem of a document at once, states that never go back, schemas that a form can be drawn from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from factory import parsing
from factory.errors import MOST_DETAILS, InvalidRequest
from factory.parsing import parse
from factory.spec import (
    NEXT_STATES,
    Budget,
    CrossValidation,
    EntityDataset,
    FileDataset,
    Holdout,
    Recipe,
    RequestState,
    Segments,
    Trial,
    TrialState,
    UploadDataset,
    Variant,
    VariantRequest,
    duration,
)

REQUEST: dict[str, Any] = {
    "team": "growth",
    "name": "churn",
    "recipe": "tabular-auto",
    "dataset": {"path": "customers.parquet", "target": "churned"},
}


def problems(document: Any, model: Any = VariantRequest) -> dict[str, str]:
    with pytest.raises(InvalidRequest) as refused:
        parse(model, document, what="request")
    found = {detail.field: detail.message for detail in refused.value.details}
    assert len(found) == len(refused.value.details)
    assert all(f"{field}: {message}" in refused.value.message for field, message in found.items())
    assert refused.value.hint
    return found


# --- requests --------------------------------------------------------------------


def test_four_fields_are_enough() -> None:
    request = parse(VariantRequest, REQUEST, what="request")
    assert request.variant == "growth.churn"
    assert isinstance(request.dataset, FileDataset)
    assert (request.seed, request.deployment.as_, request.resources.workers) == (0, "champion", 1)


def test_the_request_of_the_design_document() -> None:
    request = parse(
        VariantRequest,
        REQUEST
        | {
            "dataset": {"path": "c.parquet", "target": "churned", "task": "binary", "types": {"zip": "categorical"}},
            "metric": "roc_auc",
            "validation": {"kind": "time", "column": "day", "gap": 7},
            "budget": {"time_s": "5m", "trials": 200, "memory_gb": 4},
            "families": ["lightgbm", "catboost"],
            "spaces": {"lightgbm": {"num_leaves": [15, 63], "learning_rate": 0.1}},
            "ceilings": {"latency_ms": 5, "size_mb": 50},
            "parent": "growth.churn@champion",
            "segments": {"by": "region", "min_rows": 200},
            "gates": {"min_improvement": 0.002},
            "resources": {"workers": 1, "gpus_per_worker": 0},
            "deployment": {"as": "canary", "percent": 10},
            "priority": "high",
            "seed": 7,
        },
        what="request",
    )
    assert request.budget == Budget(time_s=300, trials=200, memory_gb=4)
    assert parse(VariantRequest, json.loads(request.model_dump_json(by_alias=True)), what="request") == request


@pytest.mark.parametrize(
    ("dataset", "kind"),
    [
        ({"path": "a.csv", "target": "y"}, FileDataset),
        ({"upload": "0" * 64, "target": "y"}, UploadDataset),
        ({"entities": "a.csv", "target": "y", "feature_service": "s"}, EntityDataset),
    ],
)
def test_the_kind_of_dataset_shows_in_its_fields(dataset: dict[str, Any], kind: type[BaseModel]) -> None:
    assert isinstance(parse(VariantRequest, REQUEST | {"dataset": dataset}, what="request").dataset, kind)


def test_all_problems_are_told_at_once_each_with_its_path() -> None:
    found = problems(
        {
            "team": "Growth",
            "recipe": "tabular-auto",
            "dataset": {"path": "c.csv", "traget": "y", "types": {"zip": "category"}},
            "validation": {"kind": "cross_validation", "folds": 1},
            "budget": {"time_s": "soon", "memory_gb": 0},
            "spaces": {"lightgbm": {"num_leaves": {"low": 3}}},
            "deployment": {"as": "canary"},
            "sed": 3,
        }
    )
    assert {
        "team", "name", "dataset.target", "dataset.traget", "dataset.types.zip", "validation.folds", "budget.time_s",
        "budget.memory_gb", "deployment", "sed",
    } <= set(found)  # fmt: skip
    assert any(field.startswith("spaces.lightgbm.num_leaves") for field in found)
    assert "received 'Growth'" in found["team"]
    assert found["name"] == "This field is required."
    assert "Did you mean 'target'?" in found["dataset.traget"]
    assert "'numeric', 'boolean', 'categorical'" in found["dataset.types.zip"]
    assert "greater than or equal to 2; received 1" in found["validation.folds"]
    assert "'60s', '5m' or '1h'; received 'soon'" in found["budget.time_s"]
    assert "a canary needs one" in found["deployment"]
    assert "Did you mean 'seed'?" in found["sed"]
    assert "Allowed: budget, ceilings," in found["sed"]


@pytest.mark.parametrize("document", [None, [], "team: growth", 3])
def test_what_is_no_mapping(document: Any) -> None:
    [(field, message)] = problems(document).items()
    assert field == "(document)"
    assert "'name: value'" in message
    assert repr(document) in message


def test_unknown_fields_name_those_of_their_own_place() -> None:
    found = problems(REQUEST | {"dataset": {"entities": "a.csv", "target": "y", "servce": "s"}})
    assert "feature_service" in found["dataset.servce"]
    assert "budget" not in found["dataset.servce"]
    assert found["dataset.feature_service"] == "This field is required."


def test_of_many_unknown_fields_the_first_are_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[str] = []

    def suggest(name: str, _: object) -> str:
        compared.append(name)
        return ""

    monkeypatch.setattr(parsing, "suggest", suggest)
    with pytest.raises(InvalidRequest) as refused:
        parse(VariantRequest, REQUEST | {f"x{n}": n for n in range(5_000)}, what="request")
    assert len(compared) == MOST_DETAILS
    assert refused.value.details[-1].message == "4,980 more problems are not listed."
    assert len(refused.value.message) < 20_000


def test_long_values_are_cut() -> None:
    assert len(problems(REQUEST | {"team": "x" * 10_000})["team"]) < 200


@given(
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
        lambda inner: st.one_of(
            st.lists(inner, max_size=3),
            st.dictionaries(
                st.one_of(st.sampled_from(sorted(VariantRequest.model_fields)), st.text(max_size=5)), inner
            ),
        ),
        max_leaves=8,
    )
)
def test_no_document_raises_anything_else(document: Any) -> None:
    for wanted in (document, {**REQUEST, **document} if isinstance(document, dict) else REQUEST):
        try:
            parse(VariantRequest, wanted, what="request")
        except InvalidRequest as error:
            told = [detail.field for detail in error.details]
            if not told:
                pytest.fail("an error without a field")


@pytest.mark.parametrize(
    ("written", "seconds"), [(60, 60), ("60", 60), ("60s", 60), ("1.5m", 90), (" 2 h ", 7200), (".5h", 1800)]
)
def test_times_as_people_write_them(written: object, seconds: float) -> None:
    assert Budget.model_validate({"time_s": written}).time_s == seconds


@pytest.mark.parametrize("written", ["", "s", "-5s", "1.2.3", "5 days", "1e3", "nan", 0, -1, None, [60], float("nan")])
def test_what_is_no_time(written: object) -> None:
    assert set(problems({"time_s": written}, Budget)) == {"time_s"}


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0, "0:00"), (5.4, "0:05"), (75.2, "1:15"), (3599, "59:59"), (3600, "1:00:00")]
)
def test_durations_for_people(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


# --- documents ---------------------------------------------------------------------


def test_documents_are_frozen_and_refuse_unknown_fields() -> None:
    request = parse(VariantRequest, REQUEST, what="request")
    with pytest.raises(ValidationError, match="frozen"):
        request.seed = 1  # type: ignore[misc]
    with pytest.raises(ValidationError, match="Extra inputs"):
        Segments.model_validate({"by": "a", "minimum": 3})


def test_the_digest_is_of_the_content() -> None:
    recipe = {"name": "small", "title": "Small", "families": ["linear"]}
    first, same = Recipe.model_validate(recipe), Recipe.model_validate(dict(reversed(recipe.items())))
    assert first.digest == same.digest
    assert len(first.digest) == 64
    assert first.digest == Recipe.model_validate(recipe | {"validation": {"kind": "auto"}}).digest
    assert first.digest != Recipe.model_validate(recipe | {"title": "Smaller"}).digest


@given(st.floats(), st.floats(-1e9, 1e9), st.text(), st.integers(0, 2**40))
def test_a_trial_survives_json_whatever_its_numbers(score: float, penalty: float, reason: str, number: int) -> None:
    trial = Trial(number=number, family="linear", parameters={"c": penalty, "l": None}, score=score, reason=reason)
    back = Trial.model_validate_json(trial.model_dump_json())
    assert repr(back) == repr(trial)


def test_a_variant_is_recorded_with_its_lineage() -> None:
    fields = Variant.model_fields
    wanted = (
        "request_id",
        "recipe_digest",
        "dataset_digest",
        "feature_service_digest",
        "parent",
        "kind",
        "seed",
        "cost_s",
    )
    assert all(name in fields for name in wanted)


@pytest.mark.parametrize("making", ["refit", "incremental"])
def test_making_again_needs_a_parent_and_no_segments(making: str) -> None:
    found = problems(REQUEST | {"making": making, "segments": {"by": "region"}})
    assert set(found) == {"parent", "segments"}
    assert making in found["parent"]
    request = parse(VariantRequest, REQUEST | {"making": making, "parent": "growth.churn/3"}, what="request")
    assert request.parent == "growth.churn/3"
    assert parse(VariantRequest, REQUEST | {"making": "warm_start"}, what="request").parent is None


# --- states ------------------------------------------------------------------------


def test_states_never_go_back() -> None:
    seen: dict[RequestState, int] = {}

    def depth(state: RequestState) -> int:
        """The longest way to an end; a circle would never end."""
        if state not in seen:
            seen[state] = 1 + max((depth(following) for following in NEXT_STATES[state]), default=0)
        return seen[state]

    assert set(NEXT_STATES) == set(RequestState)
    assert depth(RequestState.RECEIVED) == 7
    for state, following in NEXT_STATES.items():
        assert all(seen.get(s) is None or depth(s) < depth(state) for s in following)


def test_where_a_request_may_end() -> None:
    ends = {state for state, following in NEXT_STATES.items() if not following}
    assert ends == {RequestState.SERVING, RequestState.REJECTED, RequestState.FAILED, RequestState.CANCELLED}
    broken_off = ends - {RequestState.SERVING}
    before = [state for state in RequestState if state not in ends and state is not RequestState.REGISTERED]
    assert all(broken_off <= NEXT_STATES[state] for state in before)
    assert NEXT_STATES[RequestState.REGISTERED] == {RequestState.SERVING}


@pytest.mark.parametrize("state", TrialState)
def test_a_trial_is_finished_once_it_neither_waits_nor_runs(state: TrialState) -> None:
    trial = Trial(number=0, family="linear", parameters={}, state=state)
    assert trial.finished == (state not in (TrialState.CREATED, TrialState.RUNNING))


# --- schemas -----------------------------------------------------------------------


def _properties(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for owner in [schema, *schema.get("$defs", {}).values()]:
        for name, field in owner.get("properties", {}).items():
            yield f"{owner.get('title')}.{name}", field


def test_a_form_can_be_drawn_from_the_schema() -> None:
    """Every field has a title; one that is named like the class of its value takes it from there."""
    schema = VariantRequest.model_json_schema()
    untitled = [path for path, field in _properties(schema) if not {"title", "$ref"} & set(field)]
    assert untitled == []
    assert set(schema["required"]) == {"team", "name", "recipe", "dataset"}
    budget = schema["$defs"]["Budget"]["properties"]
    assert budget["time_s"]["exclusiveMinimum"] == 0
    assert budget["time_s"]["default"] == 60
    assert "Seconds" in budget["time_s"]["description"]
    assert json.loads(json.dumps(schema)) == schema


def test_kinds_of_validation_are_told_apart_by_a_tag() -> None:
    schema = VariantRequest.model_json_schema()
    options = schema["properties"]["validation"]["anyOf"][0]
    assert set(options["discriminator"]["mapping"]) == {"auto", "cross_validation", "holdout", "time", "group"}
    assert {get_args(kind.model_fields["kind"].annotation)[0] for kind in (CrossValidation, Holdout)} == {
        "cross_validation",
        "holdout",
    }


@pytest.mark.parametrize("where", [{"target": "w"}, {"keep": ["w"]}, {"types": {"w": "numeric"}}])
def test_weights_are_no_target_and_no_feature(where: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest, match="'w' holds the weights of the rows"):
        parse(FileDataset, {"path": "t.csv", "target": "y", "weights": "w", **where}, what="dataset")


def test_a_column_is_left_out_or_kept_but_not_both() -> None:
    document = {"path": "t.csv", "target": "y", "drop": ["a", "b"], "keep": ["b"]}
    with pytest.raises(InvalidRequest, match="drop and keep both name b"):
        parse(FileDataset, document, what="dataset")
    assert FileDataset(path="t.csv", target="y", drop=("a",), keep=("b",)).drift == "warn"
