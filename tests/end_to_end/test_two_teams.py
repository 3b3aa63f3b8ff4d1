"""A whole stack: two teams order at once through every door, all is registered, and nothing is left running."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from sklearn.datasets import load_breast_cancer, load_diabetes

import factory
from factory.errors import NotFound, UserFault
from factory.operate.deployments import free_port
from factory.spec import Quota, RequestState

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

BIN = Path(sys.executable).parent
PORTS = ("RAY_PORT", "DASHBOARD_PORT", "MLFLOW_PORT", "PORTAL_PORT", "SERVE_PORT")
COMMON = {"recipe": "tabular-fast", "families": ["linear", "lightgbm"], "budget": {"time_s": 15}}


@dataclass(frozen=True)
class Stack:
    """A stack that runs, and how its commands are run."""

    home: Path
    env: dict[str, str]
    url: str
    admin: str

    def command(self, *arguments: str | Path, **more: str) -> subprocess.Popen[str]:
        """Start a program of this environment, as somebody who shares nothing with the stack but its address."""
        program, *rest = map(str, arguments)
        return subprocess.Popen(
            [str(BIN / program), *rest],
            cwd=self.home.parent,
            env={k: v for k, v in self.env.items() if k != "FACTORY_HOME"} | more,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


def done(process: subprocess.Popen[str], *, within_s: float = 400) -> str:
    output, errors = process.communicate(timeout=within_s)
    assert process.returncode == 0, f"{output}\n{errors}"
    return output


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """What ``factory up`` starts, on free ports, with a home of its own; taken down whatever happens."""
    with tempfile.TemporaryDirectory(prefix="factory-", ignore_cleanup_errors=True) as folder:
        home = Path(folder) / "home"
        left_out = ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "FACTORY_LEDGER_URL", "FACTORY_URL", "FACTORY_TOKEN")
        env = {k: v for k, v in os.environ.items() if k not in left_out}
        env |= {f"FACTORY_{name}": str(free_port(0)) for name in PORTS}
        env |= {"FACTORY_HOME": str(home), "FACTORY_CPUS": "2", "XDG_CONFIG_HOME": folder}

        def here(*arguments: str) -> subprocess.Popen[str]:
            return subprocess.Popen(
                [str(BIN / "factory"), *arguments],
                cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )  # fmt: skip

        try:
            up = json.loads(done(here("up", "--json"), within_s=240))
            url = next(service["url"] for service in up["services"] if service["name"] == "portal")
            yield Stack(home, env, url, up["token"])
            done(here("down"), within_s=120)
            assert [process.cmdline() for process in _of(home)] == []
        finally:
            here("down").communicate(timeout=120)
            for process in _of(home):
                with suppress(psutil.NoSuchProcess):
                    process.kill()


def _of(home: Path) -> list[psutil.Process]:
    """Return the live processes that were started with a FACTORY_HOME, or that name it in their arguments."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            mine = process.environ().get("FACTORY_HOME") == str(home) or str(home) in " ".join(process.cmdline())
            if mine and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


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
