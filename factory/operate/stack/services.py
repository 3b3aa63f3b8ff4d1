"""The services of the factory: what each is started with, where it listens, and how it is asked whether it is well."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from factory.errors import InvalidRequest, listing, suggest
from factory.operate.deployments import STOP_S, drain_s, wanted_grpc_port
from factory.operate.ports import free_port
from factory.operate.stack.records import HttpProbe, Port, Service, StackFolder
from factory.search.cluster import OBJECT_STORE_BYTES, local_cpus, ray_token
from factory.settings import Settings

LOOPBACK = "127.0.0.1"
"""Ray's dashboard and MLflow ask nobody who they are, or trust whoever holds one token: this machine only."""
PASSED = (
    *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "PYTHONPATH"),
    *("LD_LIBRARY_PATH", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE"),
    *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"),
)
PASSED_PREFIXES = ("AWS_", "AZURE_", "GOOGLE_", "FEAST_", "MLFLOW_", "OTEL_")
"""Of the operator's environment, services get what finds programs, artifacts and features, and nothing else."""


def declared(settings: Settings, *, without: Sequence[str] = ()) -> tuple[Service, ...]:
    """Return the services of a FACTORY_HOME, in the order in which people think of them.

    Args:
        settings: Say where they listen.
        without: Services to leave out, as they run elsewhere: ``ray`` on the head of a cluster, for example. MLflow is
            left out by itself where ``MLFLOW_TRACKING_URI`` is the address of a server.

    Raises:
        InvalidRequest: there is no service of a name in ``without``.
        StorageFault: Ray's token cannot be written.
    """
    folder = StackFolder(settings.root).path
    token = ray_token(settings.root)
    environment = _environment(settings, token=token)
    mlflow = _mlflow(settings, environment)
    left_out = set(without)
    if settings.tracking_uri.startswith(("http://", "https://")):
        left_out.add(mlflow.name)
    environment["MLFLOW_TRACKING_URI"] = settings.tracking_uri if mlflow.name in left_out else mlflow.url
    services = (
        _ray(settings, environment, stack=folder, token=token),
        mlflow,
        _controller(environment),
        _portal(settings, environment),
        _predictor(settings, environment),
    )
    names = [service.name for service in services]
    for name in without:
        if name not in names:
            raise InvalidRequest(
                f"The stack has no service {name!r}.{suggest(name, names)}", hint=f"It has {listing(names)}."
            )
    return tuple(
        service.model_copy(update={"depends_on": tuple(n for n in service.depends_on if n not in left_out)})
        for service in services
        if service.name not in left_out
    )


def _ray(settings: Settings, environment: dict[str, str], *, stack: Path, token: Path) -> Service:
    dashboard = f"http://{LOOPBACK}:{settings.dashboard_port}"
    options = {
        "port": settings.ray_port,
        "dashboard-port": settings.dashboard_port,
        "cpus": local_cpus(settings),
        "object-store-bytes": OBJECT_STORE_BYTES,
        "stack": stack,
    }
    short = {
        # A search loses nothing when it is broken off, so Ray need not wait 30 s for its jobs.
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }
    return Service(
        name="ray",
        command=_module("factory.operate.stack.ray_head", *(f"--{name}={value}" for name, value in options.items())),
        env=environment | short,
        ports=(
            Port(number=settings.ray_port, setting="FACTORY_RAY_PORT"),
            Port(number=settings.dashboard_port, setting="FACTORY_DASHBOARD_PORT"),
        ),
        # The dashboard answers seconds before there is a node to run jobs on.
        health=HttpProbe(url=f"{dashboard}/api/v0/nodes?limit=1", contains='"ALIVE"', token_file=token),
        start_s=180.0,
        stop_s=10.0,
        url=dashboard,
    )


def _mlflow(settings: Settings, environment: dict[str, str]) -> Service:
    url = f"http://{LOOPBACK}:{settings.mlflow_port}"
    artifacts = settings.artifacts
    options = ("--workers=1", f"--host={LOOPBACK}", f"--port={settings.mlflow_port}")
    # Clients write to the folder themselves: one process less in the way, and the layout of the embedded default.
    storage = ("--no-serve-artifacts", f"--default-artifact-root={artifacts.as_uri()}")
    # Health checks would fill its log.
    quiet = "--uvicorn-opts=--no-access-log"
    # Its job runner alone takes 30 s and half a GB. The database may have a password, which arguments would show.
    lean = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_BACKEND_STORE_URI": settings.tracking_uri}
    return Service(
        name="mlflow",
        command=_module("mlflow", "server", *options, *storage, quiet),
        env={name: value for name, value in environment.items() if name != "MLFLOW_TRACKING_URI"} | lean,
        ports=(Port(number=settings.mlflow_port, setting="FACTORY_MLFLOW_PORT"),),
        health=HttpProbe(url=f"{url}/health"),
        start_s=180.0,
        url=url,
    )


def _controller(environment: dict[str, str]) -> Service:
    return Service(
        name="controller",
        command=_module("factory.operate.controller"),
        env=environment,
        depends_on=("ray", "mlflow"),
        stop_s=15.0,
    )


def _portal(settings: Settings, environment: dict[str, str]) -> Service:
    host = LOOPBACK if settings.host in ("0.0.0.0", "::", "localhost") else settings.host  # noqa: S104 it is compared
    url = f"http://{f'[{host}]' if ':' in host else host}:{settings.portal_port}"
    secret = settings.oidc_client_secret
    # No other service gets it, above all no job.
    mine = {} if secret is None else {"FACTORY_OIDC_CLIENT_SECRET": secret.get_secret_value()}
    return Service(
        name="portal",
        command=_module("serve.portal"),
        env=environment | mine,
        ports=(Port(number=settings.portal_port, setting="FACTORY_PORTAL_PORT"),),
        health=HttpProbe(url=f"{url}/healthz"),
        start_s=120.0,
        url=url,
    )


def _predictor(settings: Settings, environment: dict[str, str]) -> Service:
    port = settings.serve_port or free_port(0)
    for_grpc = wanted_grpc_port(settings, after=settings.serve_port) or free_port(0)
    url = f"http://{LOOPBACK}:{port}"
    # With a small Ray of its own, so that what is served does not wait for what is searched, nor ends with it.
    return Service(
        name="predictor",
        command=_module("serve.predictor", f"--port={port}", f"--grpc-port={for_grpc}"),
        env=environment,
        ports=(
            Port(number=port, setting="FACTORY_SERVE_PORT"),
            Port(number=for_grpc, setting="FACTORY_SERVE_GRPC_PORT"),
        ),
        health=HttpProbe(url=f"{url}/v2/health/ready"),
        depends_on=("mlflow",),
        start_s=300.0,
        stop_s=drain_s(settings) + STOP_S,
        url=url,
    )


def _module(name: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", name, *arguments)


def _environment(settings: Settings, *, token: Path) -> dict[str, str]:
    """Return what all services have in their environment."""
    passed = {n: v for n, v in os.environ.items() if n in PASSED or n.startswith(PASSED_PREFIXES)}
    given = {f"FACTORY_{name.upper()}": str(value) for name, value in settings.model_dump(exclude_none=True).items()}
    places = {"FACTORY_HOME": str(settings.root)}
    if settings.recipes is not None:
        places["FACTORY_RECIPES"] = str(settings.recipes_folder)
    if settings.feature_repo is not None:
        places["FACTORY_FEATURE_REPO"] = str(settings.feature_repo_folder)
    project = str(Path(__file__).resolve().parents[3])
    return {
        **passed,
        **given,
        **places,
        # So that `ray job submit -- factory run request.yaml` finds the command.
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), passed.get("PATH", os.defpath))),
        "PYTHONPATH": os.pathsep.join(part for part in (project, passed.get("PYTHONPATH")) if part),
        "PYTHONUNBUFFERED": "1",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        # Ray's name for "listen on the loopback address"; otherwise each Ray opens eleven ports to the network.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
