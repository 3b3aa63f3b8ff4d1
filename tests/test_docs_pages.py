"""What the pages say of fields, states, routes and payloads is what the code does."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from factory import plugins
from factory.search.plan import check_recipe, check_request
from factory.settings import Settings
from factory.spec import (
    NEXT_STATES,
    Budget,
    Ceilings,
    CrossValidation,
    DeploymentWish,
    Document,
    EntityDataset,
    FileDataset,
    Gates,
    GroupSplit,
    Holdout,
    Metrics,
    Recipe,
    RequestState,
    Resources,
    Segments,
    TimeSplit,
    TrialState,
    UploadDataset,
    VariantRequest,
)
from serve.invocations import _KINDS

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"


def section(page: str, heading: str) -> str:
    """Return what stands under a heading, up to the next of any level."""
    text = (DOCS / page).read_text()
    found = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#+ |\Z)", text, flags=re.MULTILINE | re.DOTALL)
    assert found, f"{page} has no heading {heading!r}"
    return found[1]


def table(page: str, heading: str) -> dict[str, list[str]]:
    """Return the table under a heading: first cell without back-ticks → all cells."""
    lines = [line.strip("|").split("|") for line in section(page, heading).splitlines() if line.startswith("|")]
    return {cells[0].strip().strip("`"): [cell.strip() for cell in cells] for cells in lines[2:]}


def fields(*models: type[Document]) -> dict[str, object]:
    """Return field → default of some models, by the names that a document uses."""
    return {f.alias or n: f.get_default() for model in models for n, f in model.model_fields.items()}


# --- recipes.md ----------------------------------------------------------------

TABLES: dict[str, tuple[type[Document], ...]] = {
    "Fields of a recipe": (Recipe,),
    "Fields of a request": (VariantRequest,),
    "`dataset`": (FileDataset, UploadDataset, EntityDataset),
    "`budget`": (Budget,),
    "`metric`": (Metrics,),
    "`gates`": (Gates,),
    "`ceilings`": (Ceilings,),
    "`segments`": (Segments,),
    "`resources`": (Resources,),
    "`deployment`": (DeploymentWish,),
}


@pytest.mark.parametrize("heading", TABLES)
def test_every_field_is_documented_and_no_other(heading: str) -> None:
    assert set(table("recipes.md", heading)) == set(fields(*TABLES[heading]))


@pytest.mark.parametrize("heading", TABLES)
def test_documented_defaults_are_the_defaults(heading: str) -> None:
    shown = {name: cells[1].strip("`") for name, cells in table("recipes.md", heading).items()}
    for name, default in fields(*TABLES[heading]).items():
        if isinstance(default, bool):
            assert shown[name] == str(default).lower()
        elif isinstance(default, int | float) and heading != "Fields of a recipe":
            assert float(shown[name]) == default
        elif isinstance(default, str) and default:
            assert shown[name] == default


def test_every_validation_is_documented_with_its_fields() -> None:
    rows = table("recipes.md", "`validation`")
    assert set(rows) == {"auto", "cross_validation", "holdout", "time", "group"}
    for model in (CrossValidation, Holdout, TimeSplit, GroupSplit):
        names = set(model.model_fields) - {"kind"}
        assert set(re.findall(r"`(\w+)`", rows[model.model_fields["kind"].default][1])) == names


def documents() -> Iterator[tuple[str, object]]:
    """Yield every complete recipe and request in a YAML block of the documentation."""
    for page in [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]:
        for block in re.findall(r"^```yaml\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL):
            document = yaml.safe_load(block)
            if isinstance(document, dict) and {"team", "title"} & set(document):
                yield f"{page.relative_to(ROOT)}: {document['name']}", document


@pytest.mark.parametrize("document", [pytest.param(document, id=where) for where, document in documents()])
def test_shown_documents_are_valid(document: dict[str, object]) -> None:
    if "title" in document:
        check_recipe(document)
    else:
        check_request(document, settings=Settings())


# --- concepts.md ---------------------------------------------------------------


def edges(heading: str) -> set[tuple[str, str]]:
    """Return the transitions of the diagram under a heading; one from ``open`` is one from each state in it."""
    diagram = section("concepts.md", heading)
    inside = set(re.findall(r"\w+", "".join(re.findall(r"state open \{(.*?)\}", diagram, flags=re.DOTALL))))
    drawn = {pair for pair in re.findall(r"(\S+) --> (\S+)", diagram) if "[*]" not in pair}
    outgoing = {(state, end) for start, end in drawn if start == "open" for state in inside}
    return {pair for pair in drawn if pair[0] != "open"} | outgoing


def test_the_drawn_states_of_a_request_are_the_legal_ones() -> None:
    legal = {(state.value, after.value) for state, following in NEXT_STATES.items() for after in following}
    assert edges("States of a request") == legal
    assert set(table("concepts.md", "States of a request")) == {state.value for state in RequestState}


def test_every_state_of_a_trial_is_drawn_and_explained() -> None:
    states = {state.value for state in TrialState}
    assert {state for edge in edges("States of a trial") for state in edge} == states
    assert set(table("concepts.md", "States of a trial")) == states


# --- serving.md: routes and errors are compared in tests/serve/test_serving_docs.py ----


def test_every_kind_of_body_is_documented() -> None:
    shown = section("serving.md", "Bodies of `/invocations`")
    assert [kind for kind in (*_KINDS, "text/csv") if kind not in shown] == []


# --- reference.md ---------------------------------------------------------------


def options() -> Iterator[tuple[str, str]]:
    """Yield each option with its command; ``--json`` and typer's own completion are described once."""
    for name in plugins.names("commands"):
        loaded = get_command(plugins.load("commands", name))
        below = getattr(loaded, "commands", None)
        for path, command in {f"{name} {sub}": c for sub, c in below.items()}.items() if below else [(name, loaded)]:
            for option in command.params:
                flag = option.opts[0]
                if option.param_type_name == "option" and flag != "--json" and not flag.endswith("-completion"):
                    yield flag, path


def test_every_option_is_documented_and_no_other() -> None:
    rows = table("reference.md", "Options")
    documented = {(row.split()[0].strip("`"), c) for row in rows for c in re.findall(r"`([a-z ]+)`", rows[row][1])}
    assert documented == set(options())


# --- extending.md --------------------------------------------------------------


def test_the_shown_family_is_the_one_that_is_tested() -> None:
    tested = (ROOT / "tests" / "families" / "test_families.py").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", (DOCS / "extending.md").read_text(), flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    assert [block for block in blocks if block not in tested] == []
