"""Every route of the API is in its page with the scope that it asks for, and no other."""

from __future__ import annotations

import re
from pathlib import Path

from tests.portal.conftest import World
from tests.portal.test_identity import NEEDED

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "api.md").read_text()
ROW = re.compile(r"^\| `([A-Z]+ /[^`]*)` \| `?([a-z]+)`? \|", re.MULTILINE)


def test_every_route_is_documented_with_its_scope_and_no_other(world: World) -> None:
    scopes = {name: scope for scope, names in NEEDED.items() for name in names}
    promised = {
        f"{method.upper()} {path}": scopes[operation["operationId"]]
        for path, operations in world.app.openapi()["paths"].items()
        for method, operation in operations.items()
    }
    assert dict(ROW.findall(PAGE)) == promised


def test_every_status_is_documented(world: World) -> None:
    answers = {
        status
        for operations in world.app.openapi()["paths"].values()
        for operation in operations.values()
        for status in operation["responses"]
    }
    assert {status for status in answers if status >= "4"} <= set(re.findall(r"^\| (\d{3}) \|", PAGE, re.MULTILINE))
