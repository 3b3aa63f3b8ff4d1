"""constraints.txt is what pip can install: exact, complete, and without a conflict."""

from __future__ import annotations

import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]

# What `pip freeze` leaves out: the factory itself, and what pip builds with.
UNPINNED = {"model-variant-factory", "setuptools", "wheel"}

Extras = frozenset[str]


def _pins() -> dict[str, Version]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): Version(version) for name, version in pairs}


def _declared() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [r for group in project["optional-dependencies"].values() for r in group]
    return [Requirement(r) for r in (*project["dependencies"], *extras)]


def _applies(requirement: Requirement, extras: Extras) -> bool:
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": e}) for e in extras | {""})


def test_every_requirement_of_every_package_and_extra_is_met_by_its_pin() -> None:
    """`pip check` leaves out extras, so what was installed piece by piece passes there
    and cannot be installed anew."""
    pins = _pins()
    waiting = [("pyproject.toml", r) for r in _declared()]
    seen: set[tuple[str, Extras]] = set()
    problems = []
    while waiting:
        source, requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name in UNPINNED:
            continue
        if name not in pins:
            problems.append(f"{source} needs {requirement}, which has no pin")
            continue
        if not requirement.specifier.contains(pins[name], prereleases=True):
            problems.append(f"{source} needs {requirement}, pinned is {pins[name]}")
        extras = frozenset(requirement.extras)
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        needs = map(Requirement, metadata.requires(name) or ())
        waiting += [(f"{requirement.name}{sorted(extras)}", r) for r in needs if _applies(r, extras)]
    assert not problems, "\n".join(sorted(set(problems)))
    assert len(seen) > 150
