"""Tables that the data tests share."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from factory.data.tables import read_table
from factory.data.uploads import UploadStore
from factory.settings import Settings


@pytest.fixture
def mixed() -> pd.DataFrame:
    """200 rows with one column of every type and a binary target, fixed values."""
    rng = np.random.default_rng(7)
    n = 200
    words = np.array(
        [
            "the",
            "quick",
            "brown",
            "fox",
            "jumps",
            "over",
            "a",
            "lazy",
            "dog",
            "while",
            "seven",
            "wizards",
            "drink",
            "black",
            "coffee",
        ]
    )
    return pd.DataFrame(
        {
            "amount": np.where(rng.random(n) < 0.1, np.nan, rng.normal(50, 12, n).round(3)),
            "visits": rng.integers(0, 40, n),
            "member": rng.random(n) < 0.5,
            "city": rng.choice(["Oslo", "Rome", "Lima", None], n, p=[0.4, 0.3, 0.2, 0.1]),
            "joined": pd.Timestamp("2021-03-01") + pd.to_timedelta(rng.integers(0, 700, n), unit="D"),
            "comment": [" ".join(rng.choice(words, 9)) + f" {i}" for i in range(n)],
            "customer": [f"C{i:05d}-{'XYZ'[i % 3]}" for i in rng.permutation(n)],
            "bought": rng.choice(["no", "yes"], n, p=[0.7, 0.3]),
        }
    )


@pytest.fixture
def real() -> Callable[[str], tuple[pd.DataFrame, dict[str, str]]]:
    """Return a loader of one real set and its entry in the index; skips where the sets are not at hand."""
    folder = os.environ.get("FACTORY_TEST_DATA")
    if not folder:
        pytest.skip("FACTORY_TEST_DATA names no folder with the real sets")

    def load(name: str) -> tuple[pd.DataFrame, dict[str, str]]:
        path = Path(folder) / f"{name}.parquet"
        if not path.exists():
            pytest.skip(f"{name}.parquet is not in FACTORY_TEST_DATA")
        entries = json.loads((Path(folder) / "index.json").read_text())
        return read_table(str(path), max_rows=10**7), next(e for e in entries if e["name"] == name)

    return load


@pytest.fixture
def home(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home")


@pytest.fixture
def store(home: Settings) -> UploadStore:
    return UploadStore(home, limit_mb=10, reserve_mb=0)
