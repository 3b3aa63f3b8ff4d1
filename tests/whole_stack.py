"""A whole stack, as ``factory up`` starts it, for tests that want nothing replaced."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from factory.operate.ports import free_port

BIN = Path(sys.executable).parent
PORTS = ("RAY_PORT", "DASHBOARD_PORT", "MLFLOW_PORT", "PORTAL_PORT", "SERVE_PORT")


@dataclass(frozen=True)
class Stack:
    """A stack that runs, and how its commands are run."""

    home: Path
    env: dict[str, str]
    url: str
    admin: str

    def command(self, *arguments: str | Path, **more: str) -> subprocess.Popen[str]:
        """Start a program of this environment, as somebody who shares nothing with the stack but its address."""
        program, *rest = map(str, arguments)
        return subprocess.Popen(
            [str(BIN / program), *rest],
            cwd=self.home.parent,
            env={k: v for k, v in self.env.items() if k != "FACTORY_HOME"} | more,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


def done(process: subprocess.Popen[str], *, within_s: float = 400) -> str:
    output, errors = process.communicate(timeout=within_s)
    assert process.returncode == 0, f"{output}\n{errors}"
    return output


@contextmanager
def running_stack(**settings: str) -> Iterator[Stack]:
    """What ``factory up`` starts, on free ports, with a home of its own; taken down whatever happens.

    Args:
        settings: Further ones, as ``FACTORY_`` variables without their prefix.
    """
    with tempfile.TemporaryDirectory(prefix="factory-", ignore_cleanup_errors=True) as folder:
        home = Path(folder) / "home"
        left_out = ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "FACTORY_LEDGER_URL", "FACTORY_URL", "FACTORY_TOKEN")
        env = {k: v for k, v in os.environ.items() if k not in left_out}
        env |= {f"FACTORY_{name}": str(free_port(0)) for name in PORTS}
        env |= {"FACTORY_HOME": str(home), "FACTORY_CPUS": "2", "XDG_CONFIG_HOME": folder}
        env |= {f"FACTORY_{name}": value for name, value in settings.items()}

        def here(*arguments: str) -> subprocess.Popen[str]:
            return subprocess.Popen(
                [str(BIN / "factory"), *arguments],
                cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )  # fmt: skip

        try:
            up = json.loads(done(here("up", "--json"), within_s=240))
            url = next(service["url"] for service in up["services"] if service["name"] == "portal")
            yield Stack(home, env, url, up["token"])
            done(here("down"), within_s=120)
            assert [process.cmdline() for process in _of(home)] == []
        finally:
            here("down").communicate(timeout=120)
            for process in _of(home):
                with suppress(psutil.NoSuchProcess):
                    process.kill()


def _of(home: Path) -> list[psutil.Process]:
    """Return the live processes that were started with a FACTORY_HOME, or that name it in their arguments."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            mine = process.environ().get("FACTORY_HOME") == str(home) or str(home) in " ".join(process.cmdline())
            if mine and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found
