"""The Ray session of a search: connected to, or started for it and stopped with it.

A local Ray needs 5 to 12 seconds to start.  :func:`session` therefore runs in
the main thread (Ray's processes are bound to the thread that started them)
while the engine works inline in another one.
"""

from __future__ import annotations

import logging
import math
import os
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

from factory.errors import Detail, InvalidData, ServiceFault, StorageFault
from factory.settings import Settings
from factory.spec import Budget

OBJECT_STORE_BYTES = 512 * 1024 * 1024
"""Of a Ray that we start ourselves; data beyond it spills to disk."""
TOKEN_PATH = "RAY_AUTH_TOKEN_PATH"  # noqa: S105 - a variable's name
"""Variable of Ray's that names the file with its token."""
AUTH_MODE = "RAY_AUTH_MODE"
"""Variable of Ray's that says whether a token is asked for; ``ray.init`` sets it where it starts a Ray."""
DRIVER_MB = 1_500.0
"""What the driver and an idle Ray take of a request's memory (PSS, measured on tables of up to :data:`SMALL_MB`)."""
SMALL_MB = 100.0
"""Size of a table in memory up to which its copies are within what driver and workers take anyway."""
HELD, SENT = 3.0, 2.0
"""Copies of a table beyond that: in the driver as it was read, as it was screened, and as the search's rows; in a
worker as the bytes that came and what was made of them."""
WORKER_MB, LEAST_WORKER_MB = 400.0, 800.0
"""What a worker with the boosters takes before its first row (measured), and the least that one is planned with."""


@dataclass(frozen=True)
class Cluster:
    """What a search may use of the connected Ray.

    Attributes:
        cpus: Of all nodes together, or as many of them as the request was admitted with.
        node_cpus: Of the largest node, or as many of them; nothing that reserves more ever starts.
        started_here: Whether it ends with the session.
    """

    cpus: int
    node_cpus: int
    started_here: bool


@dataclass(frozen=True)
class Crew:
    """Workers that fit a memory budget.

    Attributes:
        workers: How many; 0 where not even one fits beside the driver.
        worker_mb: Resident memory that each may reach.
        reason: Why there are fewer than CPUs, for a person; empty where there are not.
    """

    workers: int
    worker_mb: float
    reason: str = ""

    @classmethod
    def of(
        cls, *, cpus: int, memory_mb: float, fit_mb: float = 0.0, data_mb: float = 0.0, sent_mb: float | None = None
    ) -> Crew:
        """Plan the workers of a search.

        Args:
            cpus: That may be used.
            memory_mb: That all processes of the request may take together.
            fit_mb: What a usual fit takes beside its worker's own memory.
            data_mb: What the table takes in memory.
            sent_mb: What the part takes that each worker gets; all of it if None.
        """
        needed_mb = max(LEAST_WORKER_MB, WORKER_MB + fit_mb) + SENT * _beyond(data_mb if sent_mb is None else sent_mb)
        left_mb = max(memory_mb - DRIVER_MB - HELD * _beyond(data_mb), 0.0)
        workers = min(cpus, int(left_mb / needed_mb))
        if workers == cpus:
            return cls(workers, left_mb / workers)
        left = f"of {memory_mb:,.0f} MB, {left_mb:,.0f} are left beside the driver, and a worker needs {needed_mb:,.0f}"
        if workers == 0:
            return cls(0, needed_mb, f"All fits run in the driver, one at a time: {left}.")
        return cls(workers, left_mb / workers, f"{workers} of {cpus} CPUs are used at a time: {left}.")


def _beyond(data_mb: float) -> float:
    return max(data_mb - SMALL_MB, 0.0)


def require_room(data_mb: float, memory_mb: float) -> None:
    """Refuse a table whose copies in the driver do not fit into a request's memory, before they are made.

    Args:
        data_mb: What it takes in memory.
        memory_mb: That all processes of the request may take.

    Raises:
        InvalidData: with the memory that would do.
    """
    needed_mb = DRIVER_MB + HELD * _beyond(data_mb)
    if data_mb <= SMALL_MB or needed_mb <= memory_mb:
        return
    said = (
        f"the table takes {data_mb:,.0f} MB in memory and is held {HELD:g} times, so that the search needs "
        f"{needed_mb:,.0f} MB, and may take {memory_mb:,.0f}"
    )
    raise InvalidData(
        f"budget.memory_gb: {said}.",
        hint=f"Allow budget.memory_gb {math.ceil(needed_mb / 100) / 10:g} (and FACTORY_MEMORY_GB, where it is set), or "
        "bring fewer rows or columns.",
        details=[Detail("budget.memory_gb", said)],
    )


def memory_budget_mb(budget: Budget, settings: Settings) -> float:
    """Return what all processes of a request may take: its budget, and no more than this machine's setting."""
    return min(budget.memory_gb, settings.memory_gb or budget.memory_gb) * 1000


def local_cpus(settings: Settings) -> int:
    """CPUs of this machine that a local Ray may use."""
    allowed = len(os.sched_getaffinity(0))
    return min(settings.cpus or allowed, allowed)


def ray_token(root: Path) -> Path:
    """Return the file with Ray's token: the one that ``RAY_AUTH_TOKEN_PATH`` names, else that of a FACTORY_HOME.

    The latter is made where it is missing, readable by its owner only.

    Raises:
        StorageFault: it cannot be written, or the one that was named is not there.
    """
    if given := os.environ.get(TOKEN_PATH):
        if not (named := Path(given).expanduser()).is_file():
            raise StorageFault(
                f"{TOKEN_PATH} names {given!r}, which is no file.",
                hint="Name the token that the cluster was started with, or unset it: the factory then has its own.",
            )
        return named
    path = root / "ray_token"
    try:
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        with suppress(FileExistsError):
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(secrets.token_hex(32))
        path.chmod(0o600)
    except OSError as error:
        raise StorageFault(
            f"Ray's token {str(path)!r} cannot be written: {error.strerror or error}.",
            hint="It must belong to the user that runs the factory. Delete it while no stack runs: a new one is made.",
        ) from error
    return path


def token_variables(settings: Settings) -> dict[str, str]:
    """Return what lets a Ray that is started here take the factory's token; nothing where a token was given, or a Ray.

    Without, Ray leaves a token in the user's home that others can read, and lets in whoever has it.
    """
    if os.environ.keys() & {"RAY_AUTH_TOKEN", TOKEN_PATH} or os.environ.get("RAY_ADDRESS"):
        return {}
    return {TOKEN_PATH: str(ray_token(settings.root))}


@contextmanager
def _own_token(settings: Settings) -> Iterator[None]:
    """Let the Ray of this process take the factory's token; leave the process as it was, for a Ray of its own."""
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

    variables = token_variables(settings)
    mode_was_given = AUTH_MODE in os.environ
    # It keeps the token that it has read, and another session may have another home.
    loader = AuthenticationTokenLoader.instance()
    os.environ.update(variables)
    loader.reset_cache()
    try:
        yield
    finally:
        for name in variables:
            os.environ.pop(name, None)
        if AUTH_MODE in os.environ and not mode_was_given:
            del os.environ[AUTH_MODE]
            # Ray has read the mode, and would ask whoever comes later for a token that is no longer named.
            Config.initialize("")
        loader.reset_cache()


@contextmanager
def session(settings: Settings) -> Iterator[Cluster]:
    """Connect to ``RAY_ADDRESS``, or start Ray on this machine and stop it at the end.

    Raises:
        ServiceFault: Ray cannot be reached or started.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    joined = ray.is_initialized()
    with nullcontext() if joined else _own_token(settings):
        yield from _joined(settings, joined=joined)


def _joined(settings: Settings, *, joined: bool) -> Iterator[Cluster]:
    import ray

    try:
        if not joined:
            _connect(settings)
        cpus = max(1, int(ray.cluster_resources().get("CPU", 1)))
        cpus = min(cpus, settings.granted_cpus or cpus)
        node_cpus = max((int(n["Resources"].get("CPU", 0)) for n in ray.nodes() if n["Alive"]), default=0)
    except (ConnectionError, RuntimeError, OSError, ValueError) as error:
        address = os.environ.get("RAY_ADDRESS", "this machine")
        raise ServiceFault(
            f"Ray on {address} cannot be used: {error}.", hint="`factory doctor` checks Ray; see also RAY_ADDRESS."
        ) from error
    try:
        started_here = not joined and not os.environ.get("RAY_ADDRESS")
        yield Cluster(cpus=cpus, node_cpus=min(node_cpus or cpus, cpus), started_here=started_here)
    finally:
        if not joined:
            ray.shutdown()


def _connect(settings: Settings) -> None:
    import ray

    quiet = {"logging_level": logging.ERROR, "log_to_driver": False}
    if os.environ.get("RAY_ADDRESS"):
        ray.init(address=os.environ["RAY_ADDRESS"], **quiet)
        return
    ray.init(
        address="local",
        num_cpus=local_cpus(settings),
        object_store_memory=OBJECT_STORE_BYTES,
        include_dashboard=False,
        **quiet,
    )


class RaySession:
    """Ray, connected to when it is first needed and kept for the whole request."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stack = ExitStack()
        self._cluster: Cluster | None = None

    @property
    def given(self) -> bool:
        """Whether there is a Ray to connect to; else one would be started here."""
        return self.connected or bool(os.environ.get("RAY_ADDRESS"))

    def __enter__(self) -> RaySession:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def connect(self) -> Cluster:
        """Return the connected cluster; takes seconds the first time. Call it from the main thread."""
        if self._cluster is None:
            self._cluster = self._stack.enter_context(session(self._settings))
        return self._cluster

    @property
    def connected(self) -> bool:
        """Whether Ray is there already."""
        return self._cluster is not None
