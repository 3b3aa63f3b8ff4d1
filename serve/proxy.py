"""Ray Serve's HAProxy mode: the environment that has to be set before Serve is imported.

Serve's Python proxy takes 10 ms for each request; HAProxy takes half of one.
Its defaults suit a machine of one's own: sockets in a shared folder, fixed
ports, 30 s of draining.  Here it gets a private folder and free ports.  The
statistics and metrics pages still listen on all addresses, since Serve lets
only their ports be chosen.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

STOP_S = 5
"""How long HAProxy waits for open connections when it stops or reloads; a request takes milliseconds."""


def proxy_environment(folder: Path) -> dict[str, str]:
    """Return the variables for one proxy.

    Args:
        folder: A folder of its own with mode 0700, since the admin socket in it is writable for everybody who can
            reach it. Its path must be short: with Serve's own 57 characters below it, a socket's path may have 107.
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
