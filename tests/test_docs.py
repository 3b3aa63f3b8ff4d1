"""Whatever a user can set, name or meet is in the reference."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.main import get_command

import factory.errors
from factory import plugins
from factory.errors import FactoryError
from factory.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = (ROOT / "docs" / "reference.md").read_text()


def rows(heading: str) -> dict[str, list[str]]:
    """Return the table under a heading: first cell without back-ticks → all cells."""
    section = REFERENCE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")]
    return {cells[0].strip().strip("`"): [cell.strip() for cell in cells] for cells in lines[2:]}


def errors(kind: type[FactoryError] = FactoryError) -> Iterator[type[FactoryError]]:
    yield kind
    for below in kind.__subclasses__():
        yield from errors(below)


def test_every_setting_is_documented_and_no_other() -> None:
    assert set(rows("Settings")) == {f"FACTORY_{name.upper()}" for name in Settings.model_fields}


def test_every_setting_describes_itself() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


@pytest.mark.parametrize("name", [name for name, field in Settings.model_fields.items() if field.default is not None])
def test_documented_default_is_the_default(name: str) -> None:
    default = Settings.model_fields[name].default
    shown = rows("Settings")[f"FACTORY_{name.upper()}"][1].strip("`")
    assert shown == str(default) or float(shown) == float(default)


def test_every_error_is_documented_with_its_exit_code_and_no_other() -> None:
    ours = {kind for kind in errors() if kind.__module__ == factory.errors.__name__}
    assert {code: cells[1] for code, cells in rows("Errors").items()} == {e.code: str(e.exit_code) for e in ours}


def test_error_codes_differ() -> None:
    codes = [kind.code for kind in errors() if "code" in vars(kind)]
    assert len(codes) == len(set(codes))


def test_every_family_is_documented_and_no_other() -> None:
    shipped = {name for name in plugins.names("families") if (ROOT / "factory" / "families" / f"{name}.py").exists()}
    assert set(rows("Model families")) == shipped


def test_every_command_is_documented_and_no_other() -> None:
    documented = {" ".join(re.match(r"(factory(?: [a-z]+)+)", row)[1].split()) for row in rows("Commands")}
    assert documented == set(commands())


def commands() -> Iterator[str]:
    """Yield every command and sub-command that there is."""
    for name in plugins.names("commands"):
        loaded = get_command(plugins.load("commands", name))
        below = getattr(loaded, "commands", None)
        yield from [f"factory {name} {sub}" for sub in below] if below else [f"factory {name}"]


def test_every_make_target_is_listed_by_help() -> None:
    makefile = (ROOT / "Makefile").read_text()
    declared = makefile.partition(".PHONY:")[2].partition("\n")[0].split()
    described = [line.partition(":")[0] for line in makefile.splitlines() if "  ## " in line]
    assert declared == described
