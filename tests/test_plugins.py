"""One door for built-ins and third parties, which imports nothing before it is asked for."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from factory import plugins
from factory.errors import InvalidRequest, SystemFault

FAMILIES = {
    "catboost", "constant", "extra_trees", "keras_network", "lightgbm", "linear", "random_forest", "torch_network",
    "tabm", "xgboost",
}  # fmt: skip


@pytest.fixture
def third_party(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Install a distribution with a good plug-in, a broken one, and one that is named like a built-in."""
    (tmp_path / "other_families.py").write_text('"""A family\'s summary.\n\nMore."""\nPLUGIN = "theirs"\n')
    (tmp_path / "broken_families.py").write_text("import a_package_that_nobody_has\n")
    info = tmp_path / "other_families-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other-families\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[factory.families]\n"
        "theirs = other_families:PLUGIN\n"
        "linear = other_families:PLUGIN\n"
        "broken = broken_families:PLUGIN\n"
        "absent = other_families_absent:PLUGIN\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    plugins._registry.cache_clear()
    yield
    plugins._registry.cache_clear()
    for name in ("other_families", "broken_families"):
        sys.modules.pop(name, None)


def test_every_built_in_is_found() -> None:
    assert set(plugins.names("families")) >= FAMILIES
    assert "base" not in plugins.names("families")
    assert not any(name.startswith("_") for kind in plugins.KINDS for name in plugins.names(kind))
    assert list(plugins.names("families")) == sorted(plugins.names("families"))


def test_names_import_no_plug_in() -> None:
    code = (
        "import sys; from factory import plugins\n"
        "plugins.names('families'); plugins.summary('families', 'torch_network')\n"
        "print(sorted(m for m in sys.modules if m.startswith('factory.families.') or m in ('torch', 'sklearn')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("kind", plugins.KINDS)
def test_every_built_in_has_a_summary(kind: str) -> None:
    for name in plugins.names(kind):
        assert plugins.summary(kind, name).endswith("."), name


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(InvalidRequest, match=r"no family 'lightgmb'\. Did you mean 'lightgbm'") as refused:
        plugins.load("families", "lightgmb")
    assert "catboost, constant" in refused.value.hint
    with pytest.raises(InvalidRequest, match="There is no command 'fti'"):
        plugins.load("commands", "fti")


def test_an_unknown_kind_is_our_fault() -> None:
    with pytest.raises(SystemFault, match="no plug-in kind 'flavours'"):
        plugins.names("flavours")


@pytest.mark.usefixtures("third_party")
def test_a_third_party_comes_through_the_same_door() -> None:
    assert "theirs" in plugins.names("families")
    assert plugins.summary("families", "theirs") == "A family's summary."
    assert "other_families" not in sys.modules
    assert plugins.load("families", "theirs") == "theirs"


@pytest.mark.usefixtures("third_party")
def test_a_third_party_cannot_replace_a_built_in() -> None:
    assert plugins.load("families", "linear") != "theirs"
    assert type(plugins.load("families", "linear")).__module__ == "factory.families.linear"


@pytest.mark.usefixtures("third_party")
def test_a_plug_in_that_cannot_be_imported_names_what_is_missing() -> None:
    with pytest.raises(SystemFault, match="a_package_that_nobody_has") as broken:
        plugins.load("families", "broken")
    assert "Install it" in broken.value.hint
    with pytest.raises(SystemFault, match="other_families_absent"):
        plugins.load("families", "absent")
    assert plugins.summary("families", "absent") == ""
