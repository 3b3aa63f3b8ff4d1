"""Teams, tokens and logging in from the command line over HTTP."""

from __future__ import annotations

import io
import json
import socket
import sys

import pytest

from factory.ledger import Ledger
from factory.remote import Client, read_login
from factory.settings import Settings

from .conftest import factory
from .orders import done
from .remote import secret

# --- teams and tokens --------------------------------------------------------------------


@pytest.mark.usefixtures("operator")
@pytest.mark.parametrize("local", [[], ["--local"]], ids=["over HTTP", "in-process"])
def test_a_team_its_people_and_its_tokens(local: list[str], ledger: Ledger) -> None:
    name = "pricing" if local else "fraud"
    done(factory("teams", "create", name, "--cpus", "4", "--requests", "2", *local))
    done(factory("teams", "set", name, "--title", "The team", "--requests", "3", "--clear", "cpus", *local))
    team = ledger.team(name)
    assert (team.title, team.quota.cpus, team.quota.requests) == ("The team", None, 3)
    done(factory("teams", "add", name, "sub-1", "--email", "ann@example.com", "--scope", "read", *local))
    assert [m.subject for m in ledger.members(name)] == ["sub-1"]
    assert "ann@example.com" in done(factory("teams", "show", name, *local)).out
    done(factory("teams", "remove", name, "sub-1", *local))
    assert ledger.members(name) == []

    words = ["tokens", "create", "ci", "--team", name, "--scope", "read", "--scope", "submit"]
    issued = done(factory(*words, "--expires", "12h", "--json", *local)).json
    principal = ledger.authenticate(issued["secret"])
    assert (principal.team, principal.scopes) == (name, frozenset({"read", "submit"}))  # type: ignore[union-attr]
    assert issued["token"]["expires"] is not None
    shown = done(factory("tokens", "list", "--team", name, *local)).out
    assert issued["token"]["id"] in shown
    assert issued["secret"] not in shown
    rotated = done(factory("tokens", "rotate", issued["token"]["id"], *local)).out
    new_secret = rotated.strip().splitlines()[-1]
    assert ledger.authenticate(issued["secret"]) == "The token was revoked."
    (token,) = ledger.tokens(team=name)
    assert ledger.authenticate(new_secret).token_id == token.id  # type: ignore[union-attr]
    done(factory("tokens", "revoke", token.id, *local))
    assert ledger.authenticate(new_secret) == "The token was revoked."
    done(factory("teams", "archive", name, *local))
    assert ledger.team(name).archived_at is not None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tokens", "create", "x", "--scope", "read"], "--team"),
        (["tokens", "create", "x", "--scope", "raed", "--team", "growth"], "Did you mean 'read'?"),
        (["tokens", "create", "x", "--scope", "read", "--team", "growth", "--expires", "soon"], "'soon' is no time"),
        (["teams", "set", "growth", "--clear", "cpu"], "Did you mean 'cpus'?"),
        (["teams", "set", "growth", "--cpus", "-1"], "greater than or equal to 0"),
    ],
)
@pytest.mark.usefixtures("operator")
def test_options_that_mean_nothing(words: list[str], said: str) -> None:
    answer = done(factory(*words), 2)
    assert said in answer.said


# --- logging in --------------------------------------------------------------------------


def test_a_login_is_tried_kept_used_and_forgotten(
    anonymous: pytest.MonkeyPatch, url: str, ledger: Ledger, settings: Settings
) -> None:
    token = secret(ledger, "read", team="growth")
    anonymous.setattr(sys, "stdin", io.StringIO(f"{token}\n"))
    answer = done(factory("login", f"{url}/"))
    assert ": team growth, read." in answer.out
    assert token not in answer.out + answer.err
    login = read_login()
    assert login is not None
    assert (login.url, login.token) == (url, token)
    # What a stored login cannot do shows that it is used.
    assert factory("tokens", "list").code == 2
    assert done(factory("tokens", "list", "--local")).code == 0
    with Client() as client:
        assert client.whoami().team == "growth"
    assert url in done(factory("logout")).out
    assert read_login() is None
    assert "Nobody was logged in" in done(factory("logout")).out


def test_a_token_that_opens_nothing_is_not_kept(anonymous: pytest.MonkeyPatch, url: str) -> None:
    anonymous.setattr(sys, "stdin", io.StringIO("mvf_wrong\n"))
    answer = done(factory("login", url), 2)
    assert "The token is not known." in answer.said
    assert "mvf_wrong" not in answer.err
    assert read_login() is None


def test_a_portal_that_is_not_there_is_our_fault_and_quickly_told(
    anonymous: pytest.MonkeyPatch, settings: Settings
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    anonymous.setenv("FACTORY_URL", f"http://127.0.0.1:{port}")
    anonymous.setattr("factory.remote.calls.FIRST_PAUSE_S", 0.001)
    answer = done(factory("requests", "list", "--json"), 1)
    assert json.loads(answer.out)["error"]["code"] == "service_fault"
    assert "cannot be reached" in answer.said
    done(factory("requests", "list", "--local"))
