"""An OpenID Connect provider to sign in at: a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from serve.portal.oidc import CALLBACK

PROGRAM = Path(__file__).with_name("oidc_provider.py")
HERE, THERE = "http://portal", "https://factory.example.com"
CLIENT, SECRET = "portal", "secret-of-the-portal"
COOKIE = "factory_session"


@dataclass(frozen=True)
class Running:
    """A provider that runs."""

    issuer: str

    def does(self, **control: Any) -> None:
        """Say who signs in next, and what the provider does wrong."""
        assert httpx.post(f"{self.issuer}/control", json=control, trust_env=False).status_code == 204


@contextmanager
def providing() -> Iterator[Running]:
    """Run a provider on a free port."""
    command = [sys.executable, str(PROGRAM), *(f"{where}{CALLBACK}" for where in (HERE, THERE))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as running:
        assert running.stdout is not None
        try:
            yield Running(json.loads(running.stdout.readline())["issuer"])
        finally:
            running.kill()


def configured(provider: Running, **changes: Any) -> dict[str, Any]:
    base = {"oidc_issuer": provider.issuer, "oidc_client_id": CLIENT, "oidc_client_secret": SECRET, "public_url": HERE}
    return base | changes
