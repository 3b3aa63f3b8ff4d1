"""``python -m factory.operate.stack.ray_head``: becomes ``ray start --head --block``, on ports that are free now.

Ray has more ports than anyone wants to choose.  Those that nobody has to know
are chosen at each start, so that several Rays on one machine do not meet.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import shutil
import sys
import tempfile
from pathlib import Path

from factory.operate.ports import free_port

LONGEST_PATH = 43
"""Of Ray's folder: paths of sockets have 107 characters, and Ray's own part below it has 64."""
KEPT_SESSIONS = 2
"""Folders of former runs, with their logs; Ray never deletes one."""


def ray_folder(stack: Path) -> Path:
    """Return a folder for Ray's sockets, logs and spilled objects, in one that only its owner can enter.

    Ray makes its folder writable for everybody. It lies in ``ray`` in the stack's folder; where that path is too long
    for sockets, ``ray`` is a link to a temporary folder.
    """
    place = stack / "ray"
    if len(str(place / "r")) <= LONGEST_PATH:
        place.mkdir(exist_ok=True, mode=0o700)
        return place / "r"
    if not (place.is_symlink() and place.is_dir() and place.stat().st_uid == os.geteuid()):
        shutil.rmtree(place, ignore_errors=True)
        place.unlink(missing_ok=True)
        place.symlink_to(tempfile.mkdtemp(prefix="mvf-ray-"))
    return place.resolve() / "r"


def main() -> None:
    """Clear away old sessions and become Ray."""
    parser = argparse.ArgumentParser(prog="python -m factory.operate.stack.ray_head")
    for name in ("--port", "--dashboard-port", "--cpus", "--object-store-bytes"):
        parser.add_argument(name, type=int, required=True)
    parser.add_argument("--stack", type=Path, required=True)
    options = parser.parse_args()
    folder = ray_folder(options.stack)
    folder.mkdir(exist_ok=True, mode=0o700)
    sessions = sorted(folder.glob("session_2*"), key=lambda path: path.stat().st_mtime)
    for session in sessions[:-KEPT_SESSIONS]:
        shutil.rmtree(session, ignore_errors=True)
    # Held by Ray: keeps systemd-tmpfiles from cleaning the folder of one that runs for long.
    lock = os.open(folder.parent, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_SH)
    os.set_inheritable(lock, True)
    os.environ["AUTOSCALER_METRIC_PORT"] = str(free_port(0))
    os.environ["DASHBOARD_METRIC_PORT"] = str(free_port(0))
    command = [
        str(Path(sys.executable).with_name("ray")),
        "start",
        "--head",
        "--block",
        f"--port={options.port}",
        "--dashboard-host=127.0.0.1",
        f"--dashboard-port={options.dashboard_port}",
        "--dashboard-agent-listen-port=0",
        f"--ray-client-server-port={free_port(0)}",
        "--min-worker-port=0",
        "--max-worker-port=0",
        f"--num-cpus={options.cpus}",
        f"--object-store-memory={options.object_store_bytes}",
        f"--temp-dir={folder}",
        "--disable-usage-stats",
    ]
    os.execv(command[0], command)  # noqa: S606 no shell is wanted


if __name__ == "__main__":
    main()
