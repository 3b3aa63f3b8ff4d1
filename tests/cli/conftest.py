"""The command line as a user meets it, called in this process, with a home of its own."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from factory.cli import main
from factory.ledger import Ledger
from factory.settings import Settings
from tests.serving import portal

from .remote import OPERATOR, secret


@dataclass(frozen=True)
class Answer:
    """What a command said, and how it ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def said(self) -> str:
        """Standard error on one line, without the frames that usage errors are drawn in."""
        return " ".join(self.err.replace("│", " ").split())


def factory(*arguments: str | Path) -> Answer:
    """Run ``factory ARGUMENTS`` in this process."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["factory", *map(str, arguments)])
        patch.setattr(sys, "excepthook", sys.excepthook)
        patch.setenv("COLUMNS", "160")
        with pytest.raises(SystemExit) as ended:
            main()
    code = ended.value.code
    return Answer(code if isinstance(code, int) else int(code is not None), out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A fresh FACTORY_HOME for the tests of one module; the working folder is the one that it lies in."""
    folder = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "FACTORY_LEDGER_URL", "FACTORY_SERVE_PORT"):
            patch.delenv(name, raising=False)
        for name in ("FACTORY_URL", "FACTORY_TOKEN"):
            patch.delenv(name, raising=False)
        # Whoever runs the tests may be logged in to a factory.
        patch.setenv("XDG_CONFIG_HOME", str(folder / "config"))
        patch.setenv("FACTORY_HOME", str(folder / "home"))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.chdir(folder)
        yield folder / "home"


def customers(n_rows: int = 120) -> pd.DataFrame:
    """Rows whose binary target ``left`` is partly explained by ``calls`` and ``plan``."""
    generator = np.random.default_rng(0)
    calls = generator.normal(size=n_rows)
    plan = generator.choice(["basic", "plus", "pro"], n_rows)
    signal = calls + (plan == "pro") + 0.5 * generator.normal(size=n_rows)
    return pd.DataFrame(
        {
            "calls": calls,
            "minutes": generator.normal(100, 20, n_rows),
            "plan": plan,
            "left": np.where(signal > 0.3, "yes", "no"),
        }
    )


@pytest.fixture(scope="module")
def settings(home: Path) -> Settings:
    customers().to_csv("customers.csv", index=False)
    return Settings(home=home)


@pytest.fixture(scope="module")
def ledger(settings: Settings) -> Iterator[Ledger]:
    with Ledger.open(settings.ledger) as opened:
        opened.create_team("growth", by=OPERATOR)
        opened.create_team("risk", by=OPERATOR)
        yield opened


@pytest.fixture(scope="module")
def url(settings: Settings, ledger: Ledger) -> Iterator[str]:
    """A portal on the ledger of the home."""
    with portal(settings) as address:
        yield address


@pytest.fixture
def anonymous(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Nobody is logged in, and nothing names the portal."""
    monkeypatch.delenv("FACTORY_URL", raising=False)
    monkeypatch.delenv("FACTORY_TOKEN", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return monkeypatch


@pytest.fixture
def operator(anonymous: pytest.MonkeyPatch, url: str, ledger: Ledger) -> None:
    """Commands speak to the portal as an operator, who may name files by their paths."""
    anonymous.setenv("FACTORY_URL", url)
    anonymous.setenv("FACTORY_TOKEN", secret(ledger, "admin", team=None))


@pytest.fixture
def requester(anonymous: pytest.MonkeyPatch, url: str, ledger: Ledger) -> None:
    """Commands speak to the portal as a member of a team."""
    anonymous.setenv("FACTORY_URL", url)
    anonymous.setenv("FACTORY_TOKEN", secret(ledger, "read", "submit", team="growth"))
