"""A predictor that writes down what it answers, and what was written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from serve.app import Predictor
from serve.core import Core
from serve.limits import Limits
from serve.recording import Recorder
from tests.serving import NoFeatures

from .conftest import Caller, Shelf


def recorder(folder: Path, *, percent: float = 100, days: int = 30) -> Recorder:
    return Recorder(folder, percent=percent, days=days)


def writing(shelf: Shelf, kept: Recorder | None, load: Any = None) -> Caller:
    limits = Limits(rows=50, body_mb=0.1)
    core = Core(shelf.ledger, load=load or shelf.load, features=NoFeatures(), limits=limits, recorder=kept)
    return Caller(Predictor(core), shelf.secret)


def written(folder: Path, kind: str = "predictions") -> pd.DataFrame:
    files = sorted((folder / kind).glob("variant=*/date=*/*.parquet"))
    return pd.concat([pd.read_parquet(file) for file in files], ignore_index=True) if files else pd.DataFrame()
