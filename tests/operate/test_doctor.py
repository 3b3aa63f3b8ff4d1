"""What the doctor says of sign-in, of a cluster and of the ledger; the rest is tried on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import update

from factory.ledger import Ledger, schema
from factory.operate import doctor
from factory.operate.doctor import Check
from factory.settings import Settings
from factory.spec import Actor, DeploymentWish
from factory.variants.registry import Registry
from tests.ledger.conftest import make_order, make_variant

ISSUER = "https://idp.example.com/realms/staff"


def test_an_alias_that_was_moved_in_mlflow_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(_env_file=None, home=tmp_path)
    assert list(doctor._aliases(settings)) == [], "nothing is served"
    with Ledger.open(settings.ledger) as ledger:
        ledger.record_variant(make_variant(ledger.create_request(make_order()).id))
        ledger.set_alias("growth.churn", "champion", 1, who="test", why="first")
        ledger.set_deployment("growth.churn", DeploymentWish.model_validate({"as": "champion"}), version=1)
    mirrored = {"champion": 1}
    monkeypatch.setattr(Registry, "aliases", lambda *_: mirrored)
    (well,) = doctor._aliases(settings)
    assert (well.state, well.message) == ("ok", "MLflow's aliases of 1 served name are the ledger's")
    mirrored["champion"] = 7
    (moved,) = doctor._aliases(settings)
    assert moved.state == "note"
    assert moved.message == "growth.churn@champion: The ledger says version 1, MLflow says version 7."


def said(monkeypatch: pytest.MonkeyPatch, answer: httpx.Response | Exception, **settings: Any) -> Check:
    """Return what is said of sign-in where a provider answers so."""

    def get(url: str, **_: object) -> httpx.Response:
        assert url == f"{ISSUER}/.well-known/openid-configuration"
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(httpx, "get", get)
    (check,) = doctor._sign_in(Settings(_env_file=None, **settings))
    return check


def named(issuer: str) -> httpx.Response:
    return httpx.Response(200, json={"issuer": issuer})


PORTAL: dict[str, Any] = {
    "oidc_issuer": ISSUER,
    "oidc_client_id": "factory",
    "public_url": "https://factory.example.com",
}


def test_a_provider_is_well_where_it_is_what_the_settings_say(monkeypatch: pytest.MonkeyPatch) -> None:
    check = said(monkeypatch, named(ISSUER), **PORTAL)
    assert (check.state, "https://factory.example.com/auth/callback" in check.message) == ("ok", True)
    assert "by tokens only" in said(monkeypatch, named(ISSUER)).message


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (httpx.ConnectError("no"), "does not answer"),
        (httpx.Response(200, text="<h1>Hello</h1>"), "does not answer"),
        (httpx.Response(200, json=["x"]), "calls itself None"),
        (named(f"{ISSUER}/"), f"calls itself '{ISSUER}/'"),
    ],
    ids=str,
)
def test_a_provider_that_is_not_is_told(
    answer: httpx.Response | Exception, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = said(monkeypatch, answer, **PORTAL)
    assert (check.state, message in check.message) == ("wrong", True), check
    assert "FACTORY_OIDC_ISSUER" in check.hint


def test_a_client_without_an_id_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    check = said(monkeypatch, named(ISSUER), oidc_issuer=ISSUER)
    assert (check.state, check.message) == ("wrong", "FACTORY_OIDC_CLIENT_ID is not set")


def test_the_ledgers_password_is_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Postgres:
        url = "postgresql+psycopg://factory:***@db/factory"

        def __enter__(self) -> Postgres:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def requests(self, *, limit: int) -> list[object]:
            return []

    monkeypatch.setattr(doctor.Ledger, "open", lambda _url: Postgres())
    settings = Settings(_env_file=None, home=tmp_path, ledger_url="postgresql://factory:s3cr3t@db/factory")
    (check,) = doctor._ledger(settings)
    assert "s3cr3t" not in check.message
    assert "***" in check.message


@pytest.mark.parametrize(
    ("n_nodes", "ledger", "mlflow", "missing"),
    [
        (1, None, "", []),
        (2, "postgresql://db/factory", "https://mlflow.example.com", []),
        (2, None, "https://mlflow.example.com", ["SQLite"]),
        (2, "postgresql://db/factory", "", ["MLflow"]),
        (3, None, "http://127.0.0.1:5000", ["SQLite", "MLflow"]),
    ],
)
def test_several_nodes_need_what_they_can_share(
    n_nodes: int, ledger: str | None, mlflow: str, missing: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(_env_file=None, home=tmp_path, ledger_url=ledger)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow)
    assert list(doctor._cluster(settings)) == [], "nothing was started in this home"
    (tmp_path / "ray_token").write_text("0" * 64)
    monkeypatch.setattr(doctor.RayJobs, "n_nodes", lambda _self: n_nodes)
    (check,) = doctor._cluster(settings)
    assert check.state == ("wrong" if missing else "ok")
    assert [word for word in ("SQLite", "MLflow") if word in check.message] == missing


def test_what_was_changed_behind_the_ledgers_back_is_told(home: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "MOST_RECORDS", 2)
    with Ledger.open(home.ledger) as ledger:
        for n in range(3):
            ledger.create_request(make_order(), request_id=f"r-{n}", by=Actor(who="ann"))

    def records(*, every: bool) -> doctor.Check:
        (check,) = [one for one in doctor.examine(home, every_record=every) if one.name == "records"]
        return check

    assert (records(every=True).state, "3 requests" in records(every=True).message) == ("ok", True)
    assert "--records" in records(every=False).message
    with Ledger.open(home.ledger) as ledger, ledger._write() as connection:
        connection.execute(update(schema.events).where(schema.events.c.request_id == "r-0").values(message="Nothing."))
    assert records(every=False).state == "ok", "it is not of the newest two"
    assert records(every=True).state == "wrong"
    assert "r-0 from 1 on" in records(every=True).message
    with Ledger.open(home.ledger) as ledger, ledger._write() as connection:
        connection.execute(update(schema.audit).where(schema.audit.c.id == 2).values(who="eve"))
    assert "the audit log from row 2 on" in records(every=False).message


def test_a_cluster_that_takes_another_token_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "theirs").write_text("0" * 64)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "theirs"))

    def refused(jobs: doctor.RayJobs) -> int:
        raise doctor.TokenRefused(f"Ray does not take {jobs.address}.", hint="Name the other one.")

    monkeypatch.setattr(doctor.RayJobs, "n_nodes", refused)
    (check,) = doctor._cluster(Settings(_env_file=None, home=tmp_path / "home"))
    assert (check.state, check.hint) == ("wrong", "Name the other one.")
    (tmp_path / "theirs").unlink()
    (check,) = doctor._cluster(Settings(_env_file=None, home=tmp_path / "home"))
    assert check.state == "wrong"
    assert "RAY_AUTH_TOKEN_PATH" in check.message


def test_a_cluster_that_does_not_run_is_no_matter(tmp_path: Path) -> None:
    (tmp_path / "ray_token").write_text("0" * 64)
    assert list(doctor._cluster(Settings(_env_file=None, home=tmp_path, dashboard_port=9))) == []
