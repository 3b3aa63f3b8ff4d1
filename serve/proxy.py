"""Ray Serve's HAProxy mode: the environment that has to be set before Serve is imported.

Serve's Python proxy takes 10 ms for each request; HAProxy takes half of one.
Its defaults suit a machine of one's own: sockets in a shared folder, fixed
ports, 30 s of draining.  Here it gets a private folder and free ports.  The
statistics and metrics pages still listen on all addresses, since Serve lets
only their ports be chosen.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

STOP_S = 5
"""How long HAProxy waits for open connections when it stops or reloads; a request takes milliseconds."""


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
any of them.  Serve pastes the text after ``balance`` in HAProxy's defaults."""


def proxy_environment(folder: Path) -> dict[str, str]:
    """Return the variables for one proxy.

    Args:
        folder: A folder of its own (:func:`proxy_folder`): Serve makes the admin socket in it writable for everybody
            who can reach it.
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
        f"{prefix}_BALANCE_ALGORITHM": BY_NAME,
        f"{prefix}_NBTHREAD": str(min(4, len(os.sched_getaffinity(0)))),
        f"{prefix}_HARD_STOP_AFTER_S": str(STOP_S),
        # Without it a replica drains for at least 30 s, whether it has requests or not.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
    }


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on, all different."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
