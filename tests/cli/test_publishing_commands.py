"""Publishing a recipe on the command line: over HTTP and into the home, with the same words."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from factory.errors import InvalidRequest
from factory.ledger import Ledger
from factory.remote import Client
from factory.search.plan import load_recipe
from factory.settings import Settings
from factory.spec import Actor, Scope
from tests.serving import portal

from .conftest import Answer, factory

SETUP = Actor(who="setup")
TEXT = "# Why so.\nname: lines\ntitle: By a line\nfamilies: [constant, linear]\n"


def done(answer: Answer, code: int = 0) -> Answer:
    assert answer.code == code, answer.err
    return answer


@pytest.fixture(scope="module")
def ledger(home: Path) -> Iterator[Ledger]:
    with Ledger.open(Settings(home=home).ledger) as opened:
        opened.create_team("growth", by=SETUP)
        yield opened


@pytest.fixture(scope="module")
def url(home: Path, ledger: Ledger) -> Iterator[str]:
    with portal(Settings(home=home)) as address:
        yield address


@pytest.fixture
def file(home: Path) -> Path:
    path = home.parent / "lines.yaml"
    path.write_text(TEXT)
    return path


def log_in(patch: pytest.MonkeyPatch, url: str, ledger: Ledger, *scopes: Scope) -> None:
    patch.setenv("FACTORY_URL", url)
    patch.setenv("FACTORY_TOKEN", ledger.issue_token("author", team="growth", scopes=scopes, by=SETUP).secret)


@pytest.mark.parametrize("local", [[], ["--local"]], ids=["over HTTP", "in-process"])
def test_a_recipe_is_published_ordered_by_its_digest_and_withdrawn(
    local: list[str], file: Path, url: str, ledger: Ledger, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_in(monkeypatch, url, ledger, "read", "publish")
    found = done(factory("recipes", "publish", file, "--json", *local)).json
    assert found["owner"] == ("" if local else "growth")
    assert load_recipe(f"lines@{found['digest'][:12]}", settings=Settings(home=home)).title == "By a line"
    assert found["digest"][:12] in done(factory("recipes", "publish", file, *local)).out
    assert "is withdrawn" in done(factory("recipes", "withdraw", "lines", *local)).out
    assert "There is no recipe 'lines'" in done(factory("recipes", "withdraw", "lines", *local), 2).err
    assert "was not published here" in done(factory("recipes", "withdraw", "tabular-fast", "--local"), 2).err
    file.write_text(TEXT + "max_workers: many\n")
    assert "max_workers" in done(factory("recipes", "publish", file, *local), 2).err


def test_without_the_scope_nothing_is_published(
    file: Path, url: str, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_in(monkeypatch, url, ledger, "read", "submit", "deploy")
    assert "needs the scope 'publish'" in done(factory("recipes", "publish", file), 2).err


def test_the_client_takes_a_recipe_or_its_fields(url: str, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    log_in(monkeypatch, url, ledger, "read", "publish")
    with Client() as client:
        first = client.publish_recipe({"name": "mine", "title": "Mine", "families": ["linear"]})
        assert client.publish_recipe(first.recipe).digest == first.digest
        client.withdraw_recipe("mine")
        with pytest.raises(InvalidRequest, match="name"):
            client.publish_recipe({"title": "Mine"})
    operator = ledger.issue_token("operator", team=None, scopes=["admin"], by=SETUP).secret
    with Client(url, operator) as client:
        client.end_sessions("oidc|7")
