"""A small table in every format, and what uploads leave behind."""

from __future__ import annotations

import gzip
import io

import numpy as np
import pandas as pd
from hypothesis import settings
from pyarrow import feather

from factory.data.uploads import UploadStore

FORMATS = ("parquet", "csv", "csv.gz", "arrow")
fuzz = settings(max_examples=40, deadline=None, derandomize=True)


def small() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "amount": rng.normal(50, 12, 60).round(3),
            "city": rng.choice(["Oslo", "Rome", "Lima"], 60),
            "joined": pd.Timestamp("2021-03-01") + pd.to_timedelta(rng.integers(0, 700, 60), unit="D"),
            "bought": rng.choice(["no", "yes"], 60),
        }
    )


def as_bytes(frame: pd.DataFrame, form: str) -> bytes:
    body = io.BytesIO()
    if form == "parquet":
        frame.to_parquet(body, index=False)
    elif form == "arrow":
        feather.write_feather(frame, body, compression="lz4", chunksize=25)
    else:
        text = frame.to_csv(index=False).encode()
        return gzip.compress(text, mtime=0) if form == "csv.gz" else text
    return body.getvalue()


BODIES = {form: as_bytes(small(), form) for form in FORMATS}


def left(store: UploadStore) -> list[str]:
    return sorted(p.name for p in store.folder.iterdir()) if store.folder.exists() else []
