"""`factory up`, `status` and `down` with a small service in the place of the real ones."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from factory.operate.ports import free_port
from factory.operate.stack import control
from factory.operate.stack.records import HttpProbe, Port, Service

from .conftest import factory

PROGRAM = """
import http.server, sys
if sys.argv[2] == "broken":
    sys.exit("no such table: requests")
handler = http.server.SimpleHTTPRequestHandler
handler.log_message = lambda *_: None
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), handler).serve_forever()
"""


def portal(tmp_path: Path, how: str = "well") -> Service:
    port = free_port(0)
    return Service(
        name="portal",
        command=(sys.executable, "-c", f"import os; os.chdir({str(tmp_path)!r})\n{PROGRAM}", str(port), how),
        env={"PATH": os.environ["PATH"]},
        ports=(Port(number=port, setting="FACTORY_PORTAL_PORT"),),
        health=HttpProbe(url=f"http://127.0.0.1:{port}/"),
        stop_s=1.0,
        url=f"http://127.0.0.1:{port}",
    )


@pytest.fixture
def stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A FACTORY_HOME, ended afterwards; `up` starts a small portal in it."""
    home = tmp_path / "home"
    monkeypatch.setenv("FACTORY_HOME", str(home))
    monkeypatch.delenv("FACTORY_LEDGER_URL", raising=False)
    monkeypatch.setattr("factory.cli.up.declared", lambda *_, **__: (portal(tmp_path),))
    yield home
    control.stop(home)


def test_a_stack_comes_up_tells_its_token_once_is_shown_and_goes_down(stack: Path) -> None:
    shown = factory("status")
    assert (shown.code, shown.out) == (1, "No stack of this FACTORY_HOME runs. Start it: factory up\n")
    up = factory("up")
    assert up.code == 0, up.err
    (service,) = control.look(stack).services
    assert service.url in up.out
    assert "Admin token, shown only now: mvf_" in up.out
    assert "portal      healthy" in up.err
    again = factory("up")
    assert again.code == 2
    assert "runs already" in again.said
    shown = factory("status", "--json")
    assert shown.code == 0
    (told,) = shown.json["services"]
    assert (shown.json["supervised"], told["name"], told["state"], told["pid"]) == (
        True, "portal", "healthy", service.pid,
    )  # fmt: skip
    table = factory("status").out
    assert [part for part in ("portal", "healthy", str(service.pid), " MB", service.url) if part not in table] == []
    assert factory("down").out == "Stopped: portal.\n"
    assert factory("down").out == "No stack of this FACTORY_HOME runs.\n"
    second = factory("up", "--json")
    assert second.code == 0
    assert second.json["token"] is None
    assert second.json["services"][0]["state"] == "healthy"
    assert factory("down", "--json").json == {"stopped": ["portal"]}
    assert "mvf_" not in "".join(path.read_text() for path in (stack / "stack").iterdir() if path.is_file())


def test_a_stack_that_could_not_be_started_says_why_also_afterwards(
    stack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("factory.cli.up.declared", lambda *_, **__: (portal(tmp_path, "broken"),))
    up = factory("up")
    assert up.code == 1
    assert "portal ended with exit code 1" in up.said
    assert "no such table: requests" in up.said
    shown = factory("status")
    assert shown.code == 1
    assert "The last start failed: portal ended with exit code 1" in shown.out


def test_in_the_foreground_the_token_is_left_in_a_file_and_not_in_the_log(
    stack: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(root: Path, *_: object, echo: bool, on_ready: object) -> None:
        assert echo
        assert callable(on_ready)
        said = on_ready()
        token = root / "admin_token"
        assert str(token) in said
        assert token.stat().st_mode & 0o777 == 0o600
        assert token.read_text().startswith("mvf_")
        assert token.read_text().strip() not in said
        assert on_ready() == "", "there is one already"

    monkeypatch.setattr(control, "run", run)
    ended = factory("up", "--foreground")
    assert (ended.code, ended.out) == (0, "")


@pytest.mark.usefixtures("home")
def test_what_is_left_out_has_to_be_there() -> None:
    up = factory("up", "--without", "mlfow")
    assert up.code == 2
    assert "Did you mean 'mlflow'?" in up.said
    assert factory("status").code == 1
