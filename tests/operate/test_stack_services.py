"""What the stack starts of the factory: logs, environments, what is left out, and the real Ray and MLflow."""

from __future__ import annotations

import json
import os
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from factory.errors import InvalidRequest
from factory.operate.jobs import JobSpec
from factory.operate.ports import free_port
from factory.operate.ray_jobs import RayJobs
from factory.operate.stack import control, logs
from factory.operate.stack.logs import JsonLog
from factory.operate.stack.processes import MARK
from factory.operate.stack.ray_head import LONGEST_PATH, ray_folder
from factory.operate.stack.services import declared
from factory.settings import Settings

from .stacks import lives, marked, states, until

# --- logs ------------------------------------------------------------------------


def test_a_log_keeps_what_is_json_wraps_what_is_not_and_does_not_grow_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "MOST_BYTES", 2000)
    log = JsonLog(tmp_path / "portal.log", service="portal")
    reading, writing = os.pipe()
    thread = log.follow(os.fdopen(reading, "rb"))
    with os.fdopen(writing, "wb") as stream:
        stream.write(b'{"message": "stored", "request": "r1", "time": "T"}\n{"not json\n\x1b[31mred\x1b[0m \xff\n\n')
        stream.write(b"x" * (logs.LONGEST_LINE + 10) + b"\n")
        stream.write(b"".join(b"line %d\n" % number for number in range(100)))
    thread.join()
    log.close()
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["portal.log", "portal.log.1", "portal.log.2", "portal.log.3"]
    assert all(file.stat().st_mode & 0o777 == 0o600 for file in files)
    assert json.loads(files[0].read_text().splitlines()[-1])["message"] == "line 99"
    other = JsonLog(tmp_path / "other.log", service="other")
    assert other._entry('{"message": "stored", "request": "r1", "time": "T"}') == {
        "time": "T", "service": "other", "message": "stored", "request": "r1",
    }  # fmt: skip
    assert other._entry('{"not json')["message"] == '{"not json'
    other.note("it's here", pid=3)
    other.close()
    assert json.loads((tmp_path / "other.log").read_text())["pid"] == 3


# --- what the services of the factory are started with ---------------------------


@pytest.fixture
def operator(monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator's shell full of things that are nobody's business."""
    for name, value in {
        "RAY_ADDRESS": "10.0.0.1:6379",
        "FACTORY_TOKEN": "s3cr3t",
        "GITHUB_TOKEN": "s3cr3t",
        "AWS_ACCESS_KEY_ID": "key",
        "MLFLOW_TRACKING_URI": "",
        MARK: "of another stack",
    }.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("operator")
def test_services_get_their_environment_and_no_more(tmp_path: Path) -> None:
    settings = Settings(
        home=tmp_path / "home",
        ledger_url="postgresql://factory:s3cr3t@db/factory",
        recipes=tmp_path,
        oidc_client_secret="0idc",
    )
    services = {each.name: each for each in declared(settings)}
    assert [each.name for each in services.values() if "0idc" in str(each.env)] == ["portal"]
    token = (settings.root / "ray_token").read_text()
    for each in services.values():
        assert each.env["FACTORY_HOME"] == str(settings.root)
        assert each.env["FACTORY_RECIPES"] == str(tmp_path)
        assert each.env["FACTORY_LEDGER_URL"] == settings.ledger_url
        assert each.env["RAY_AUTH_MODE"] == "token"
        assert each.env["RAY_AUTH_TOKEN_PATH"] == str(settings.root / "ray_token")
        assert each.env["AWS_ACCESS_KEY_ID"] == "key"
        assert not {"RAY_ADDRESS", "FACTORY_TOKEN", "GITHUB_TOKEN", MARK} & set(each.env)
        assert not any(secret in part for part in each.command for secret in ("s3cr3t", token))
        assert token not in each.env.values()
        assert each.health is None or each.health.url.startswith("http://127.0.0.1:")
    assert list(services) == ["ray", "mlflow", "controller", "portal", "predictor"]
    assert set(services["controller"].depends_on) == {"ray", "mlflow"}
    assert services["ray"].env["MLFLOW_TRACKING_URI"] == services["mlflow"].url == "http://127.0.0.1:5000"
    assert "MLFLOW_TRACKING_URI" not in services["mlflow"].env
    assert services["mlflow"].env["MLFLOW_BACKEND_STORE_URI"] == f"sqlite:///{settings.root / 'mlflow.db'}"
    assert {port.setting.removeprefix("FACTORY_").lower() for each in services.values() for port in each.ports} <= set(
        Settings.model_fields
    )


@pytest.mark.usefixtures("operator")
@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:9000"),
        ("0.0.0.0", "http://127.0.0.1:9000"),
        ("192.0.2.1", "http://192.0.2.1:9000"),
        ("2001:db8::1", "http://[2001:db8::1]:9000"),
    ],
)
def test_only_the_portal_listens_where_the_operator_says(tmp_path: Path, host: str, url: str) -> None:
    services = {each.name: each for each in declared(Settings(home=tmp_path, host=host, portal_port=9000))}
    assert services.pop("portal").url == url
    assert all("//127.0.0.1:" in each.url for each in services.values() if each.url)
    assert services["controller"].env["FACTORY_HOST"] == host


@pytest.mark.usefixtures("operator")
def test_what_runs_elsewhere_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(home=tmp_path / "home")
    without = {each.name: each for each in declared(settings, without=["ray", "mlflow"])}
    assert {"ray", "mlflow"} & set(without) == set()
    assert without["predictor"].env["MLFLOW_TRACKING_URI"] == settings.tracking_uri
    assert without["predictor"].depends_on == ()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.example.com")
    outside = {each.name: each for each in declared(settings)}
    assert "mlflow" not in outside
    assert outside["ray"].env["MLFLOW_TRACKING_URI"] == "https://mlflow.example.com"
    with pytest.raises(InvalidRequest, match=r"no service 'mlfow'\. Did you mean 'mlflow'"):
        declared(settings, without=["mlfow"])


def test_rays_folder_is_short_enough_for_its_sockets_private_and_stays_the_same(tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 60)
    deep.mkdir()
    first = ray_folder(deep)
    try:
        assert len(str(first)) <= LONGEST_PATH
        assert first.parent.stat().st_mode & 0o777 == 0o700
        assert ray_folder(deep) == first
    finally:
        first.parent.rmdir()
    again = ray_folder(deep)
    again.parent.rmdir()
    assert again != first


# --- the real ones ---------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_ray_and_mlflow_start_run_a_job_come_back_and_are_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    ports = {name: free_port(0) for name in ("ray_port", "dashboard_port", "mlflow_port")}
    settings = Settings(home=tmp_path / "home", cpus=1, **ports)
    root = settings.root
    token = None
    try:
        services = [each for each in declared(settings) if each.name in ("ray", "mlflow")]
        token = (root / "ray_token").read_text()
        control.start(root, services)
        living = marked(root)
        processes = [SimpleNamespace(pid=p.pid, command=" ".join(p.cmdline()), sockets=_listening(p)) for p in living]
        assert [p for p in processes if token in p.command] == []
        assert {address for p in processes for address, _ in p.sockets} <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}
        assert set(ports.values()) <= {port for p in processes for _, port in p.sockets}
        with RayJobs(services[0].url, token_path=root / "ray_token") as jobs:
            jobs.submit(JobSpec("r1-1", (sys.executable, "-c", "import os; print(os.environ['MLFLOW_TRACKING_URI'])")))
            until(lambda: (job := jobs.info("r1-1")) is not None and job.state.ended, "the job did not end")
            assert services[1].url in jobs.logs("r1-1")
        raylet = next(p for p in living if p.name() == "raylet")
        raylet.kill()
        until(
            lambda: control.look(root).services[0].restarts == 1 and states(root)["ray"] == "healthy",
            "Ray did not come back",
        )
        living = marked(root)
    finally:
        control.stop(root)
        with suppress(OSError):
            shutil.rmtree((root / "stack" / "ray").resolve())
    assert not any(lives(process) for process in living)
    assert marked(root) == []
    assert [path.name for path in root.rglob("*") if path.is_file() and token in path.read_text(errors="replace")] == [
        "ray_token"
    ]


def _listening(process: psutil.Process) -> list[tuple[str, int]]:
    with suppress(psutil.Error):
        found = process.net_connections("inet")
        return [(c.laddr.ip, c.laddr.port) for c in found if c.status == psutil.CONN_LISTEN]
    return []
