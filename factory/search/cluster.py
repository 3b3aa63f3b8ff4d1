"""The Ray session of a search: connected to, or started for it and stopped with it.

A local Ray needs 5 to 12 seconds to start.  :func:`session` therefore runs in
the main thread (Ray's processes are bound to the thread that started them)
while the engine works inline in another one.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from factory.errors import ServiceFault
from factory.settings import Settings

OBJECT_STORE_BYTES = 512 * 1024 * 1024
"""Of a Ray that we start ourselves; data beyond it spills to disk."""


@dataclass(frozen=True)
class Cluster:
    """What a search may use of the connected Ray."""

    cpus: int
    started_here: bool


def local_cpus(settings: Settings) -> int:
    """CPUs of this machine that a local Ray may use."""
    allowed = len(os.sched_getaffinity(0))
    return min(settings.cpus or allowed, allowed)


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
    try:
        if not joined:
            _connect(settings)
        cpus = int(ray.cluster_resources().get("CPU", 1))
    except (ConnectionError, RuntimeError, OSError, ValueError) as error:
        address = os.environ.get("RAY_ADDRESS", "this machine")
        raise ServiceFault(
            f"Ray on {address} cannot be used: {error}.", hint="`factory doctor` checks Ray; see also RAY_ADDRESS."
        ) from error
    try:
        yield Cluster(cpus=max(1, cpus), started_here=not joined and "RAY_ADDRESS" not in os.environ)
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
