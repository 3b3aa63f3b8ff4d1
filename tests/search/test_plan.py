"""Plans: recipes that are shipped are valid, a request narrows, and every problem is told at once."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import yaml

from factory.errors import InvalidRequest, NotFound
from factory.search import plan
from factory.search.plan import check_recipe, check_request, family, load_recipe, make_plan, read_document, recipe_files
from factory.settings import Settings
from factory.space import FloatDimension, IntDimension
from factory.spec import Gates, Task

from .conftest import make_test_plan

RECIPE: dict[str, Any] = {
    "name": "small",
    "title": "Small",
    "families": ["constant", "linear", "lightgbm"],
    "spaces": {"lightgbm": {"num_leaves": [7, 64], "learning_rate": 0.1}},
    "budget": {"default": {"time_s": 30}, "ceiling": {"time_s": "1h", "trials": 100, "memory_gb": 8}},
    "ceilings": {"latency_ms": 20},
    "max_workers": 2,
}
REQUEST: dict[str, Any] = {
    "team": "growth",
    "name": "churn",
    "recipe": "small",
    "dataset": {"path": "customers.parquet", "target": "churned"},
}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings whose recipes are a folder with :data:`RECIPE` and one for regression only."""
    recipes = tmp_path / "recipes"
    recipes.mkdir()
    for document in (RECIPE, RECIPE | {"name": "numbers", "tasks": ["regression"]}):
        (recipes / f"{document['name']}.yaml").write_text(yaml.safe_dump(document))
    return Settings(home=tmp_path, recipes=recipes)


def problems_of(document: dict[str, Any], settings: Settings) -> dict[str, str]:
    with pytest.raises(InvalidRequest) as refused:
        check_request(document, settings=settings)
    found = {d.field: d.message for d in refused.value.details}
    assert len(found) == len(refused.value.details)
    assert all(f"{field}: {message}" in refused.value.message for field, message in found.items())
    return found


# --- recipes ------------------------------------------------------------------


def test_the_shipped_recipes_are_valid_and_can_be_planned_for_each_task() -> None:
    shipped = Settings()
    assert {"tabular-auto", "tabular-fast", "tabular-neural"} <= set(recipe_files(shipped))
    for name in recipe_files(shipped):
        request, recipe = check_request(REQUEST | {"recipe": name}, settings=shipped)
        for task in recipe.tasks:
            plan = make_plan(request, recipe, task)
            assert plan.families == tuple(f for f in recipe.families if task in family(f).tasks)
            assert plan.metric.name == getattr(recipe.metric, task)


def test_a_recipe_reports_all_its_problems() -> None:
    document = RECIPE | {
        "families": ["lightgmb", "xgboost"],
        "spaces": {"catboost": {"depth": 4}, "xgboost": {"max_depth": [1, 99], "depth": 3}},
        "budget": {"default": {"time_s": 100}, "ceiling": {"time_s": 60}},
    }
    with pytest.raises(InvalidRequest) as refused:
        check_recipe(document)
    messages = {d.field: d.message for d in refused.value.details}
    assert messages["families.lightgmb"].startswith("'lightgmb' is not allowed here. Did you mean 'lightgbm'?")
    assert messages["spaces.catboost"].endswith("Allowed: lightgmb, xgboost.")
    assert messages["spaces.xgboost.max_depth"] == "[1, 99] is not within the allowed range 2 to 10."
    assert "Did you mean 'max_depth'?" in messages["spaces.xgboost.depth"]
    assert messages["budget.default.time_s"] == "100 is beyond the recipe's ceiling; allowed: up to 60."
    assert len(messages) == 5


def test_a_recipe_is_found_by_name_and_held_by_digest(settings: Settings) -> None:
    digest = load_recipe("small", settings=settings).digest
    assert load_recipe(f"small@{digest[:8]}", settings=settings).name == "small"
    path = settings.recipes_folder / "small.yaml"
    path.write_text("# a comment changes nothing\n" + path.read_text())
    assert load_recipe(f"small@{digest}", settings=settings).digest == digest
    path.write_text(yaml.safe_dump(RECIPE | {"title": "Changed"}))
    with pytest.raises(NotFound, match=f"has the digest [0-9a-f]{{12}}, not '{digest}'"):
        check_request(REQUEST | {"recipe": f"small@{digest}"}, settings=settings)
    with pytest.raises(NotFound, match=r"no recipe 'smal'. Did you mean 'small'\?") as refused:
        check_request(REQUEST | {"recipe": "smal"}, settings=settings)
    assert "numbers, small" in refused.value.hint


def test_a_recipe_is_read_again_only_once_its_file_was_changed(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Mock(wraps=plan.read_document)
    monkeypatch.setattr(plan, "read_document", read)
    load_recipe("small", settings=settings)
    load_recipe("small", settings=settings)
    assert read.call_count == 2, "what has just been written is not kept: a second change would not show"

    monkeypatch.setattr(plan.time, "time", lambda: datetime.now().timestamp() + 60)
    old = [load_recipe("small", settings=settings) for _ in range(3)]
    assert read.call_count == 3
    path = settings.recipes_folder / "small.yaml"
    path.write_text(path.read_text().replace("Small", "Large"))
    changed = load_recipe("small", settings=settings)
    assert (old[2].title, changed.title) == ("Small", "Large")
    path.write_text("families: []")
    for _ in range(2):
        with pytest.raises(InvalidRequest):
            load_recipe("small", settings=settings)
    path.unlink()
    with pytest.raises(NotFound):
        load_recipe("small", settings=settings)


def test_a_recipe_bears_the_name_of_its_file(settings: Settings) -> None:
    (settings.recipes_folder / "other.yaml").write_text(yaml.safe_dump(RECIPE))
    with pytest.raises(InvalidRequest, match=r"other.yaml calls itself 'small'"):
        load_recipe("other", settings=settings)


# --- documents ----------------------------------------------------------------


def test_aliases_are_refused_and_nothing_is_executed(tmp_path: Path) -> None:
    path = tmp_path / "request.yaml"
    path.write_text("a: &x [1, 2]\nb: *x\n")
    with pytest.raises(InvalidRequest, match="uses anchors or aliases"):
        read_document(path, what="request")
    path.write_text(f"a: !!python/object/apply:os.mkdir [{tmp_path / 'made'}]\n")
    with pytest.raises(InvalidRequest, match="is not YAML as it is read here"):
        read_document(path, what="request")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"a: [1, 2",
        b"\xff\xfe\x00bad",
        b"a" * 1_000_001,
        b"a: " + b"9" * 5_000,
        b"[" * 3_000,
        b"1: 2",
    ],
)
def test_what_is_no_document_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "request.yaml"
    path.write_bytes(content)
    with pytest.raises(InvalidRequest, match=r"request\.yaml"):
        read_document(path, what="request")
    with pytest.raises(InvalidRequest, match="No such file"):
        read_document(tmp_path / "none.yaml", what="request")


def test_json_is_read_too(tmp_path: Path) -> None:
    path = tmp_path / "request.json"
    path.write_text('{"a": [1, null, true]}')
    assert read_document(path, what="request") == {"a": [1, None, True]}


# --- requests -----------------------------------------------------------------


def test_a_request_narrows_what_its_recipe_allows(settings: Settings) -> None:
    document = REQUEST | {
        "families": ["lightgbm"],
        "spaces": {"lightgbm": {"num_leaves": [8, 16], "extra_trees": [True]}},
        "budget": {"time_s": "2m", "trials": 20},
        "ceilings": {"latency_ms": 5, "size_mb": 30},
        "metric": "f1",
    }
    request, recipe = check_request(document, settings=settings)
    plan = make_plan(request, recipe, Task.BINARY)
    assert plan.families == ("lightgbm",)
    assert plan.spaces["lightgbm"]["num_leaves"] == IntDimension(low=8, high=16, log=True)
    assert plan.spaces["lightgbm"]["learning_rate"] == FloatDimension(low=0.1, high=0.1, log=True)
    assert plan.spaces["lightgbm"]["min_data_in_leaf"] == family("lightgbm").space(Task.BINARY)["min_data_in_leaf"]
    assert (plan.budget.time_s, plan.budget.trials) == (120, 20)
    assert (plan.ceilings.latency_ms, plan.ceilings.size_mb) == (5, 30)
    assert plan.metric.name == "f1"
    assert plan.repeatable


def test_what_a_request_does_not_say_its_recipe_does(settings: Settings) -> None:
    request, recipe = check_request(REQUEST, settings=settings)
    plan = make_plan(request, recipe, Task.REGRESSION)
    assert plan.families == ("constant", "linear", "lightgbm")
    assert plan.metric.name == "neg_root_mean_squared_error"
    assert (plan.budget, plan.validation, plan.gates) == (recipe.budget.default, recipe.validation, recipe.gates)
    assert plan.ceilings.latency_ms == 20
    assert not plan.repeatable


def test_what_a_budget_does_not_name_is_the_recipes(settings: Settings) -> None:
    assert settings.recipes is not None
    budget = {"default": {"time_s": 30, "memory_gb": 2}, "ceiling": {"time_s": "1h", "memory_gb": 3}}
    (settings.recipes / "lean.yaml").write_text(yaml.safe_dump(RECIPE | {"name": "lean", "budget": budget}))
    request, _ = check_request(REQUEST | {"recipe": "lean", "budget": {"time_s": 10}}, settings=settings)
    assert request.budget is not None
    assert (request.budget.time_s, request.budget.memory_gb, request.budget.trials) == (10, 2, None)
    again, _ = check_request(request.model_dump(mode="json"), settings=settings)
    assert again == request


def test_what_gates_and_ceilings_do_not_name_is_the_recipes(settings: Settings) -> None:
    assert settings.recipes is not None
    gates = {"min_improvement": 0.01, "confidence": 0.99, "slice_max_loss": 0.1}
    (settings.recipes / "strict.yaml").write_text(yaml.safe_dump(RECIPE | {"name": "strict", "gates": gates}))
    asked = {"recipe": "strict", "gates": {"min_improvement": 0.02}, "ceilings": {"size_mb": 30}}
    plan = make_plan(*check_request(REQUEST | asked, settings=settings), Task.BINARY)
    assert plan.gates == Gates(min_improvement=0.02, confidence=0.99, slice_max_loss=0.1)
    assert (plan.ceilings.latency_ms, plan.ceilings.size_mb) == (20, 30)
    nothing = check_request(REQUEST | {"recipe": "strict", "gates": {"slice_max_loss": None}}, settings=settings)
    assert make_plan(*nothing, Task.BINARY).gates == Gates(**gates), "null is no way around a gate"


def test_a_request_that_widens_is_told_everything_at_once(settings: Settings) -> None:
    found = problems_of(
        REQUEST
        | {
            "families": ["lightgbm", "linear", "catboost", "constnat"],
            "spaces": {
                "lightgbm": {"num_leaves": [7, 65], "learning_rate": [0.05, 0.1], "leaves": 3, "extra_trees": [7]},
                "linear": {"knots": [4.5, 6], "degree": [3, 1], "splines": "yes"},
                "catboost": {"depth": 4},
            },
            "budget": {"time_s": "2h", "trials": 101, "memory_gb": 9},
            "ceilings": {"latency_ms": 50},
            "resources": {"workers": 3, "gpus_per_worker": 1},
            "metric": "rock_auc",
        },
        settings,
    )
    assert "Allowed: constant, lightgbm, linear." in found.pop("families.catboost")
    assert "Did you mean 'constant'?" in found.pop("families.constnat")
    assert found.pop("spaces.lightgbm.num_leaves") == "[7, 65] is not within the allowed range 7 to 64."
    assert found.pop("spaces.lightgbm.learning_rate") == "[0.05, 0.1] is not within the allowed range 0.1 to 0.1."
    assert "Did you mean 'num_leaves'?" in found.pop("spaces.lightgbm.leaves")
    assert found.pop("spaces.lightgbm.extra_trees") == "[7] is not among the allowed values [False, True]."
    assert "'catboost' is not allowed here." in found.pop("spaces.catboost")
    assert found.pop("budget.time_s") == "7200 is beyond the recipe's ceiling; allowed: up to 3600."
    assert found.pop("budget.trials") == "101 is beyond the recipe's ceiling; allowed: up to 100."
    assert found.pop("budget.memory_gb") == "9 is beyond the recipe's ceiling; allowed: up to 8."
    assert found.pop("ceilings.latency_ms") == "50 is above the recipe's ceiling; allowed: up to 20."
    assert found.pop("resources.workers") == "3 is more than the recipe allows; allowed: up to 2."
    assert found.pop("resources.gpus_per_worker") == "1 is more than the recipe allows; allowed: up to 0."
    assert "Did you mean 'roc_auc'?" in found.pop("metric")
    assert set(found) == {"spaces.linear.knots", "spaces.linear.degree", "spaces.linear.splines"}


TIME = {"kind": "time", "column": "day", "gap": 10}
GROUP = {"kind": "group", "column": "shop"}


def published(settings: Settings, validation: dict[str, Any]) -> dict[str, Any]:
    """Publish a recipe with a validation, and return a request for it."""
    assert settings.recipes is not None
    (settings.recipes / "apart.yaml").write_text(yaml.safe_dump(RECIPE | {"name": "apart", "validation": validation}))
    return REQUEST | {"recipe": "apart"}


@pytest.mark.parametrize(
    ("given", "asked", "problems"),
    [
        (TIME, {"kind": "holdout"}, {"validation.kind": "'holdout' is not what the recipe validates by"}),
        (TIME, {"kind": "auto"}, {"validation.kind": "allowed: 'time', by 'day'."}),
        (TIME, GROUP, {"validation.kind": "allowed: 'time', by 'day'."}),
        (GROUP, {"kind": "cross_validation"}, {"validation.kind": "allowed: 'group', by 'shop'."}),
        (GROUP, {"kind": "group", "column": "row"}, {"validation.column": "'row' is not the recipe's column"}),
        (TIME, TIME | {"gap": 9}, {"validation.gap": "9 is below the recipe's gap; allowed: 10 and more."}),
        (
            TIME,
            {"kind": "time", "column": "noise", "gap": 0},
            {"validation.column": "allowed: 'day'.", "validation.gap": "0 is below the recipe's gap"},
        ),
    ],
)
def test_rows_that_a_recipe_keeps_apart_are_not_mixed_by_a_request(
    settings: Settings, given: dict[str, Any], asked: dict[str, Any], problems: dict[str, str]
) -> None:
    found = problems_of(published(settings, given) | {"validation": asked}, settings)
    assert set(found) == set(problems)
    for field, message in problems.items():
        assert message in found[field]


@pytest.mark.parametrize(
    ("given", "asked", "kept"),
    [
        (TIME, None, TIME),
        (TIME, TIME | {"gap": 20}, TIME | {"gap": 20}),
        (TIME, {"kind": "time", "column": "day"}, TIME),
        (GROUP, GROUP, GROUP),
        ({"kind": "auto"}, GROUP, GROUP),
        ({"kind": "holdout", "share": 0.2}, TIME, TIME),
    ],
)
def test_a_request_may_keep_more_rows_apart_than_its_recipe(
    settings: Settings, given: dict[str, Any], asked: dict[str, Any] | None, kept: dict[str, Any]
) -> None:
    document = published(settings, given) | ({} if asked is None else {"validation": asked})
    request, recipe = check_request(document, settings=settings)
    assert request.terms(recipe).validation.model_dump(mode="json") == kept
    assert check_request(request.model_dump(mode="json"), settings=settings)[0] == request


def test_problems_of_form_are_told_together_with_the_others(settings: Settings) -> None:
    form = {"team": "Growth!", "dataset": {"path": "x.csv"}, "budget": {"time_s": 0}, "buget": {}}
    content = {"recipe": "small", "families": ["lightgmb"], "resources": {"workers": 3}}
    found = problems_of(form | content, settings)
    assert set(found) == {
        "team",
        "name",
        "dataset.target",
        "budget.time_s",
        "buget",
        "families.lightgmb",
        "resources.workers",
    }
    assert "Did you mean 'budget'?" in found["buget"]
    assert "greater than 0; received 0" in found["budget.time_s"]
    assert "recipe" in problems_of(form | {"recipe": "smal"}, settings)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ([4.5, 6], "holds a fraction"),
        ([9, 5], "low end above its high end"),
        ("many", "not a number or a pair"),
        ([4, 5, 6], "not a number or a pair"),
        (True, "not a number or a pair"),
        ([float("nan"), 8], "not a number or a pair"),
        (float("inf"), "not a number or a pair"),
    ],
)
def test_a_bound_that_makes_no_sense_is_told(settings: Settings, value: object, problem: str) -> None:
    found = problems_of(REQUEST | {"spaces": {"linear": {"knots": value}}}, settings)
    assert problem in found["spaces.linear.knots"]


def test_a_task_that_the_recipe_does_not_do(settings: Settings) -> None:
    dataset = REQUEST["dataset"] | {"task": "binary"}
    found = problems_of(REQUEST | {"recipe": "numbers", "dataset": dataset}, settings)
    assert found == {"dataset.task": "binary is not a task of recipe 'numbers'; allowed: regression."}
    request, recipe = check_request(REQUEST | {"recipe": "numbers"}, settings=settings)
    with pytest.raises(InvalidRequest, match=r"dataset.task: binary is not a task"):
        make_plan(request, recipe, Task.BINARY)


def test_a_metric_is_judged_when_the_task_is_known(settings: Settings) -> None:
    request, recipe = check_request(REQUEST | {"metric": "roc_auc"}, settings=settings)
    assert make_plan(request, recipe, Task.BINARY).metric.name == "roc_auc"
    with pytest.raises(InvalidRequest, match="'roc_auc' does not fit a regression task"):
        make_plan(request, recipe, Task.REGRESSION)
    dataset = REQUEST["dataset"] | {"task": "regression"}
    assert "does not fit" in problems_of(REQUEST | {"metric": "roc_auc", "dataset": dataset}, settings)["metric"]


def test_only_a_count_of_trials_makes_a_plan_repeatable() -> None:
    assert make_test_plan(budget={"time_s": 60, "trials": 8}).repeatable
    assert not make_test_plan(budget={"time_s": 60}).repeatable
