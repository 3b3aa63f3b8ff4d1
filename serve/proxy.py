"""Ray Serve's HAProxy mode: the environment that has to be set before Serve is imported.

Serve's Python proxy takes 10 ms for each request; HAProxy takes half of one.
Its defaults suit a machine of one's own: sockets in a shared folder, fixed
ports, 30 s of draining.  Here it gets a private folder and free ports.  The
statistics and metrics pages still listen on all addresses, since Serve lets
only their ports be chosen.

It also keeps from the replicas what they could only refuse: a refusal costs a
replica nearly what an answer does, so that callers who come again at once would
take the time of those who are answered.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from http import HTTPStatus
from math import ceil
from pathlib import Path

from factory.errors import FactoryError, ServiceFault
from factory.operate.ports import free_ports
from serve.errors import DeadlineExceeded, Overloaded, SlowRequest, answer

LONGEST_PATH = 29
"""Of the proxy's folder: HAProxy takes socket paths of 97 characters, and Serve's own part below it has 68."""


@contextlib.contextmanager
def proxy_folder(root: Path) -> Iterator[Path]:
    """Yield a folder of mode 0700 for the proxy's sockets, which is gone afterwards.

    It lies in ``root`` where the path is short enough, else in the folder for temporary files, with a lock on it that
    keeps systemd-tmpfiles from cleaning it up under a predictor that runs for long.
    """
    folder = root / "proxy"
    if len(str(folder)) <= LONGEST_PATH:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700)
    else:
        folder = Path(tempfile.mkdtemp(prefix="mvfs-"))
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_SH)
        yield folder
    finally:
        os.close(lock)
        shutil.rmtree(folder, ignore_errors=True)


BODY_S = 10
"""For which HAProxy waits for headers and the first 16 kB of a body; most are smaller, and reach a replica whole."""
QUEUE_MS = 100
"""How long a call waits for a place in a replica; then it is told to come again."""
BY_NAME = "\n    ".join(
    (
        "hash path,regsub(^/v[12]/models/,/variants/),regsub(^/inference.*,),field(3,/),regsub([:@].*,)",
        "hash-type consistent sdbm avalanche",
        "hash-balance-factor 150",
    )
)
"""HAProxy's way to choose a replica: by the variant's name, so that each of them holds its part of the variants.

Consistent: where a replica comes or goes, the other names stay where they are.  A replica with half as many calls again
as the others have passes further ones on, so that a hot name spreads.  What has no name in its path, as gRPC, goes to
any of them."""
_PAGES: dict[int, FactoryError] = {
    408: SlowRequest(f"The request did not arrive within {BODY_S} s.", hint="Send it faster, or send less."),
    502: ServiceFault("The replica that had this call has ended.", hint="Send it again: another one answers."),
    503: Overloaded("All replicas have as many calls as they take at one time.", hint="Try again in a moment."),
    504: DeadlineExceeded("No replica has answered in time.", hint="Send fewer rows, or try again."),
}
"""What callers are told by the proxy itself, by status."""


def write_pages(folder: Path) -> str:
    """Write what the proxy itself answers in the one shape of all errors; return the lines that name the files."""
    lines = []
    for status, error in _PAGES.items():
        _, headers, body = answer(error)
        head = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", *(f"{k}: {v}" for k, v in headers.items())]
        page = folder / f"{status}.http"
        page.write_bytes("\r\n".join([*head, f"content-length: {len(body)}", "", ""]).encode() + body)
        lines.append(f"errorfile {status} {page}")
    return "\n    ".join(lines)


def defaults(folder: Path, *, ongoing: int) -> str:
    """Return what stands in HAProxy's defaults after ``balance``, where Serve pastes it.

    Args:
        folder: Of the proxy; gets the pages.
        ongoing: Calls that a replica has at one time; the next ones wait for :data:`QUEUE_MS`.
    """
    held = (
        f"timeout queue {QUEUE_MS}ms",
        f"default-server maxconn {ongoing}",
        # A replica's places are for bodies that are there.
        "option http-buffer-request",
        # Who calls, for replicas: they see HAProxy's own connections.
        "option forwardfor",
        f"timeout http-request {BODY_S}s",
    )
    return "\n    ".join((BY_NAME, *held, write_pages(folder)))


def proxy_environment(folder: Path, *, ongoing: int, drain_s: float) -> dict[str, str]:
    """Return the variables for one proxy and the replicas behind it.

    Args:
        folder: A folder of its own (:func:`proxy_folder`): Serve makes the admin socket in it writable for everybody
            who can reach it.
        ongoing: Calls that a replica has at one time.
        drain_s: How long HAProxy waits for calls that are answered when it reloads.
    """
    stats, metrics = free_ports(2)
    prefix = "RAY_SERVE_HAPROXY"
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        f"{prefix}_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        f"{prefix}_SOCKET_PATH": str(folder / "admin.sock"),
        f"{prefix}_SERVER_STATE_BASE": str(folder),
        f"{prefix}_SERVER_STATE_FILE": str(folder / "state"),
        f"{prefix}_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        f"{prefix}_STATS_PORT": str(stats),
        f"{prefix}_METRICS_PORT": str(metrics),
        # Else each call is a line that Serve's own proxy process reads and counts; GET /metrics counts them already.
        f"{prefix}_METRICS_ENABLED": "0",
        f"{prefix}_BALANCE_ALGORITHM": defaults(folder, ongoing=ongoing),
        f"{prefix}_NBTHREAD": str(min(4, len(os.sched_getaffinity(0)))),
        f"{prefix}_HARD_STOP_AFTER_S": str(ceil(drain_s)),
        # Without it a replica drains for at least 30 s, whether it has requests or not.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
        # A proxy that was killed is started anew after three checks: callers waited 25 to 32 s for those of every ten.
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
        # A call whose replica ends before it has said anything goes to another one: predictions may be made twice, and
        # an outcome that is told twice is the same one. No more than that: its body may be what has ended the replicas.
        "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
        "RAY_SERVE_HAPROXY_RETRIES": "3",
        # A replica that takes no connection twice is down, before a health check finds it dead.
        "RAY_SERVE_HAPROXY_OBSERVE_ERROR_LIMIT": "2",
        # Uvicorn would take a local caller's word for where it comes from; the predictor looks by itself.
        "FORWARDED_ALLOW_IPS": "nobody",
        # Handing each call to a second event loop and its answer back takes .4 ms; what takes long here has threads.
        "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
        # Serve gathers the times of calls and counts them one by one in the event loop: ten times a second this held up
        # one call in a hundred by 2 ms. A few at a time hold up nobody.
        "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "10",
    }
