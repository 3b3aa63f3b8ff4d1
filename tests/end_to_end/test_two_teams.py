"""A whole stack: two teams order at once through every door, all is registered, and nothing is left running."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from sklearn.datasets import load_breast_cancer, load_diabetes

import factory
from factory.errors import NotFound, UserFault
from factory.spec import Quota, RequestState
from tests.whole_stack import Stack, done, running_stack

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

COMMON = {"recipe": "tabular-fast", "families": ["linear", "lightgbm"], "budget": {"time_s": 15}}


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with running_stack() as started:
        yield started


@pytest.fixture(scope="module")
def tokens(stack: Stack) -> dict[str, str]:
    """A token of each team, made by the operator over HTTP."""
    with factory.Client(stack.url, stack.admin) as operator:
        made = {}
        for team in ("clinic", "growth"):
            operator.create_team(team, quota=Quota(cpus=1))
            made[team] = operator.issue_token("ci", team=team, scopes=["read", "submit", "deploy"]).secret
    return made


def written(folder: Path, name: str, document: dict[str, Any]) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def test_two_teams_order_through_every_door_at_once(stack: Stack, tokens: dict[str, str]) -> None:
    folder = stack.home.parent
    load_breast_cancer(as_frame=True).frame.to_csv(folder / "tumours.csv", index=False)
    load_diabetes(as_frame=True).frame.to_csv(folder / "diabetes.csv", index=False)
    tumours = {**COMMON, "dataset": {"path": str(folder / "tumours.csv"), "target": "target"}}
    diabetes = {**COMMON, "dataset": {"path": str(folder / "diabetes.csv"), "target": "target"}}

    by_command = [
        stack.command(
            "factory", "submit", written(folder, f"{team}-cli", {**order, "team": team, "name": "by-cli"}),
            "--upload", "--wait", "--json", FACTORY_URL=stack.url, FACTORY_TOKEN=tokens[team],
        )
        for team, order in (("clinic", tumours), ("growth", diabetes))
    ]  # fmt: skip
    by_ray = stack.command(
        "ray", "job", "submit", "--runtime-env-json",
        json.dumps({"env_vars": {"FACTORY_HOME": str(stack.home), "FACTORY_TOKEN": tokens["growth"]}}),
        "--", "factory", "run", str(written(folder, "growth-ray", {**diabetes, "team": "growth", "name": "by-ray"})),
        RAY_API_SERVER_ADDRESS=f"http://127.0.0.1:{stack.env['FACTORY_DASHBOARD_PORT']}",
        RAY_AUTH_MODE="token",
        RAY_AUTH_TOKEN_PATH=str(stack.home / "ray_token"),
    )  # fmt: skip
    with factory.Client(stack.url, tokens["clinic"]) as clinic:
        kept = clinic.upload(folder / "tumours.csv")
        order = {**COMMON, "team": "clinic", "name": "by-api", "dataset": {"upload": kept.digest, "target": "target"}}
        quote = clinic.quote(order)
        assert quote.problems == ()
        request = clinic.submit(order)
        assert clinic.wait(request.id, timeout_s=400).state is RequestState.REGISTERED

        ended = [json.loads(done(process)) for process in by_command]
        assert [one["state"] for one in ended] == ["registered", "registered"]
        assert "Registered growth.by-ray/1" in done(by_ray)

        with factory.Client(stack.url, stack.admin) as operator:
            everything = list(operator.requests())
        assert {(r.variant, r.door, r.state) for r in everything} == {
            ("clinic.by-api", "api", RequestState.REGISTERED),
            ("clinic.by-cli", "api", RequestState.REGISTERED),
            ("growth.by-cli", "api", RequestState.REGISTERED),
            ("growth.by-ray", "job", RequestState.REGISTERED),
        }
        assert {variant.name for variant in clinic.variants()} == {"clinic.by-api", "clinic.by-cli"}
        foreign = next(r.id for r in everything if r.team == "growth")
        with pytest.raises(NotFound):
            clinic.request(foreign)
        with pytest.raises(UserFault) as refused:
            clinic.create_team("mine")
        assert refused.value.code == "forbidden"
