"""Ports to listen on: those that were asked for, and free ones that stay free until they are taken."""

from __future__ import annotations

import contextlib
import random
import socket
from pathlib import Path

import psutil

from factory.errors import Conflict, Detail, ServiceFault

HOST = "127.0.0.1"
"""Where services listen: a balancer or a tunnel of the operator's is between them and other machines."""
_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
_LOWEST, _HIGHEST = 20_000, 29_999
"""Above the ports of Ray's workers (10002 to 19999), and below those of Serve's replicas (30000 and up)."""
_TRIES = 200


def free_port(wanted: int, *, setting: str = "FACTORY_SERVE_PORT") -> int:
    """Return the port if nobody listens on it; for 0 a free one.

    HAProxy must not find out by itself: two of them bind the same port without an error and share its requests.

    Raises:
        Conflict: somebody listens on it; the process is named where it can be seen.
    """
    if not wanted:
        return free_ports(1)[0]
    with socket.socket() as probe:
        # As servers do: a port whose last connections are still being closed is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, wanted))
            return int(probe.getsockname()[1])
        except OSError as error:
            raise Conflict(
                f"Port {wanted} on {HOST} cannot be used: {error.strerror}.{_listener(wanted)}",
                hint=f"Stop what listens there, or choose another port: {setting}={wanted + 10}, or 0 for a free one.",
                details=[Detail(setting, f"{wanted}: {error.strerror}")],
            ) from error


def _listener(port: int) -> str:
    with contextlib.suppress(psutil.Error):
        for connection in psutil.net_connections("tcp"):
            if connection.laddr and connection.laddr.port == port and connection.status == psutil.CONN_LISTEN:
                name = f" ({psutil.Process(connection.pid).name()})" if connection.pid else ""
                return f" Process {connection.pid}{name} listens there." if connection.pid else ""
    return ""


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on, all different.

    They lie outside the range from which the system gives ports to connections and to whoever binds 0: of such a port
    somebody else is likely to be given before the program that is being started has bound it.

    Raises:
        ServiceFault: there are not so many.
    """
    low, high = _ephemeral()
    known = [port for port in range(_LOWEST, _HIGHEST + 1) if not low <= port <= high]
    found: list[int] = []
    # Not of the process's own generator: two processes with the same seed would try the same ports.
    for port in random.SystemRandom().sample(known, min(_TRIES, len(known))):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("", port))
            found.append(port)
        if len(found) == count:
            return found
    raise ServiceFault(f"There are no {count} free ports.", hint=f"Free some between {_LOWEST} and {_HIGHEST}.")


def _ephemeral() -> tuple[int, int]:
    """Return the first and the last port that the system gives to connections; none where it does not say."""
    try:
        first, last = map(int, _EPHEMERAL.read_text().split())
    except (OSError, ValueError):
        return 0, 0
    return first, last
