"""The cluster files: valid to Ray, true to this project, and a cluster starts by their own commands.

A file for `ray up` cannot be tried without machines to log in to.  What runs
here is the rest: Ray's own preparation and schema, the environment that the
setup commands write, and both start commands, with Ray's fake node provider
in the place of SSH (docs/decisions/cluster-files.md).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import mkdtemp
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import psutil
import pytest
import yaml

from factory.operate.ports import free_port
from factory.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
FILES = ["cluster.yaml", "deploy/cluster-aws.yaml", "deploy/cluster-gcp.yaml"]
TOKEN = "ab" * 32


def prepared(name: str) -> dict[str, Any]:
    """Return a cluster file as `ray up` completes it."""
    from ray.autoscaler._private.util import prepare_config

    config: dict[str, Any] = prepare_config(yaml.safe_load((ROOT / name).read_text()))
    return config


def environment_command(config: dict[str, Any]) -> str:
    """Return the setup command that writes cluster.env."""
    [command] = [c for c in config["setup_commands"] if c.startswith("printf")]
    return str(command)


@pytest.mark.parametrize("name", FILES)
def test_ray_accepts_it(name: str) -> None:
    from ray.autoscaler._private.util import validate_config

    config = prepared(name)
    validate_config(config)
    assert sum(t.get("max_workers", 0) for t in config["available_node_types"].values()) > 0


def test_rays_schema_refuses_an_unknown_field() -> None:
    from jsonschema import ValidationError
    from ray.autoscaler._private.util import validate_config

    with pytest.raises(ValidationError, match="idle_minutes"):
        validate_config(prepared("cluster.yaml") | {"idle_minutes": 1})


@pytest.mark.parametrize("name", FILES)
def test_factory_variables_are_settings(name: str) -> None:
    words = environment_command(prepared(name)).split()
    ours = {word.partition("=")[0] for word in words if word.startswith("FACTORY_")}
    assert ours >= {"FACTORY_HOME", "FACTORY_LEDGER_URL"}
    assert ours <= {f"FACTORY_{field.upper()}" for field in Settings.model_fields}


@pytest.mark.parametrize("name", FILES)
def test_mounted_paths_are_in_the_project_and_suffice_to_install_it(name: str) -> None:
    mounts = prepared(name)["file_mounts"]
    assert mounts.pop("~/model-variant-factory/ray_token") == ".factory/ray_token"
    assert all(remote == f"~/model-variant-factory/{local}" for remote, local in mounts.items())
    assert [local for local in mounts.values() if local != "README.md" and not (ROOT / local).exists()] == []
    assert {"factory", "serve", "recipes", "feature_repo", "pyproject.toml", "constraints.txt"} <= set(mounts.values())


@pytest.mark.parametrize("name", FILES)
def test_ray_never_starts_without_its_token(name: str, tmp_path: Path) -> None:
    config = prepared(name)
    for kind in ("head", "worker"):
        command = config[f"{kind}_start_ray_commands"][-1].replace(".venv/bin/ray start", "echo started")
        (tmp_path / "model-variant-factory").mkdir(exist_ok=True)
        shell = ["bash", "-c", command]
        env = {"HOME": str(tmp_path), "RAY_HEAD_IP": "192.0.2.10", "PATH": os.environ["PATH"]}
        assert "started" not in subprocess.run(shell, env=env, capture_output=True, text=True, check=False).stdout
        subprocess.run(["bash", "-c", environment_command(config)], env=env, check=True)
        assert "started" in subprocess.run(shell, env=env, capture_output=True, text=True, check=True).stdout
        (tmp_path / "model-variant-factory" / "cluster.env").unlink()


# --- two nodes on this machine -------------------------------------------------

PROBE = """
import json, os, sys, time
import ray
ray.init(address=sys.argv[1], logging_level="ERROR")
deadline = time.monotonic() + 90
while len(alive := [n for n in ray.nodes() if n["Alive"]]) < 3 and time.monotonic() < deadline:
    time.sleep(0.5)

@ray.remote(num_cpus=0)
def look():
    return ray.get_runtime_context().get_node_id(), os.environ.get("FACTORY_HOME")

places = [ray.get(look.options(resources={name: 0.1}).remote(), timeout=60) for name in ("by_autoscaler", "by_command")]
print(json.dumps({"nodes": len(alive), "head": ray.get_runtime_context().get_node_id(), "places": places}))
"""


BUSY = "timed out during startup"
"""What ``ray start`` says when the head, busy starting the fake node, lets it wait for longer than Ray's fixed 30 s."""


@pytest.fixture
def home() -> Iterator[Path]:
    """A home folder as the setup commands leave it; everything that runs in it is ended."""
    # Ray's sockets lie below it, and their paths may have 107 characters at most: pytest's folders are too deep.
    folder = Path(mkdtemp(prefix="mvf-"))
    project = folder / "model-variant-factory"
    project.mkdir()
    (project / ".venv").symlink_to(sys.prefix)
    (project / "ray_token").write_text(TOKEN)
    (project / "ray_token").chmod(0o600)
    yield folder
    end(processes_of(folder))
    shutil.rmtree(folder, ignore_errors=True)


def processes_of(folder: Path) -> list[psutil.Process]:
    """Return the processes that run in a home folder."""
    return [process for process in psutil.process_iter() if _home_of(process) == str(folder)]


def end(processes: list[psutil.Process]) -> None:
    """Ask processes to end, and kill those that do not."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, stubborn = psutil.wait_procs(processes, timeout=10)
    for process in stubborn:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(stubborn, timeout=10)


def _home_of(process: psutil.Process) -> str | None:
    try:
        home: str | None = process.environ().get("HOME")
    except psutil.Error:
        return None
    return home


def with_fake_nodes(config: dict[str, Any], *, gcs_address: str) -> dict[str, Any]:
    """Return the configuration with machines that are processes of this host, one worker of them at once."""
    kept = {key: config[key] for key in ("cluster_name", "upscaling_speed", "idle_timeout_minutes")}
    node = {"node_config": {}, "min_workers": 0, "max_workers": 0, "resources": {"CPU": 1}}
    worker = node | {"min_workers": 1, "max_workers": 1, "resources": {"CPU": 1, "by_autoscaler": 1}}
    from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID

    provider = {
        "type": "fake_multinode",
        "head_node_id": FAKE_HEAD_NODE_ID,
        "gcs_address": gcs_address,
        "disable_node_updaters": True,
    }
    filled: dict[str, Any] = {key: type(value)() for key, value in config.items() if isinstance(value, list | dict)}
    return (
        filled
        | kept
        | {"max_workers": 1, "provider": provider, "head_node_type": "ray.head.default"}
        | {"available_node_types": {"ray.head.default": node, "worker": worker}}
    )


@pytest.mark.slow
@pytest.mark.timeout(420)
def test_head_and_workers_start_by_the_files_own_commands(home: Path) -> None:
    import ray

    config = prepared("cluster.yaml")
    ip, port, dashboard = ray.util.get_node_ip_address(), free_port(0), free_port(0)
    fake = with_fake_nodes(config, gcs_address=f"{ip}:{port}")
    (home / "ray_bootstrap_config.yaml").write_text(yaml.safe_dump(fake))
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "FACTORY_", "MLFLOW_"))}
    env = clean | {"HOME": str(home), "RAY_TMPDIR": str(home), "RAY_FAKE_CLUSTER": "1", "RAY_HEAD_IP": ip}
    subprocess.run(["bash", "-c", environment_command(config)], env=env, check=True)

    def run(kind: str, options: str) -> None:
        # The `ray stop` before it would end every Ray of this machine.
        command = config[f"{kind}_start_ray_commands"][-1].replace("6379", str(port))
        with (home / f"{kind}.log").open("w") as log:
            done = subprocess.run(["bash", "-c", f"{command} {options}"], env=env, stdout=log, stderr=log, check=False)
        said = (home / f"{kind}.log").read_text()
        if BUSY in said:
            pytest.skip("Ray's head did not answer `ray start` within Ray's own fixed 30 s: too busy a machine.")
        assert done.returncode == 0, said

    run("head", f"--num-cpus=1 --dashboard-port={dashboard} --ray-client-server-port={free_port(0)}")
    run("worker", "--num-cpus=1 --resources='{\"by_command\": 1}'")

    trusted = env | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(home / "model-variant-factory" / "ray_token")}
    probe = [sys.executable, "-c", PROBE, f"{ip}:{port}"]
    try:
        answer = subprocess.run(probe, env=trusted, capture_output=True, text=True, timeout=180, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip("Ray's head did not bring its nodes together within 180 s: too busy a machine.")
    assert answer.returncode == 0, answer.stderr
    seen = json.loads(answer.stdout.splitlines()[-1])
    nodes = {node for node, _ in seen["places"]}
    assert seen["nodes"] == 3
    assert len(nodes | {seen["head"]}) == 3
    assert {factory_home for _, factory_home in seen["places"]} == {"/srv/factory"}

    assert refused(lambda: urlopen(f"http://127.0.0.1:{dashboard}/api/jobs/", timeout=10)) == 401


def refused(ask: Callable[[], object]) -> int | None:
    """Return the HTTP status with which a question without the token is refused, or None where it is answered."""
    deadline = time.monotonic() + 30
    while True:
        try:
            ask()
        except HTTPError as error:
            status = error.code
            error.close()
            return status
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
        else:
            return None
