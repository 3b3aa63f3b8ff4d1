"""One part of many rows: read, predicted as a caller's rows are, and written as one file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from hashlib import file_digest
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from factory.data.features import join
from factory.data.tables import to_frame
from factory.errors import Detail, InvalidData, StorageFault
from factory.settings import Settings
from factory.variants.bundle import Bundle
from serve.batch_source import Part

MOMENT = "event_timestamp"
"""Column of an entity table that says as of when the features count, as Feast calls it."""


@dataclass(frozen=True)
class Done:
    """A part that was predicted.

    Attributes:
        file: Its name in the folder.
        n_rows: Of it.
        digest: SHA-256 of the file.
    """

    file: str
    n_rows: int
    digest: str


@dataclass(frozen=True)
class Job:
    """What is done with each part.

    Attributes:
        folder: The variant's bundle.
        digest: Of it.
        variant: Its name.
        version: Which one.
        feature_service: Where it has its features from; None where it knows no entities.
        keep: Columns of the input that the output has as well.
        text_columns: That hold labels rather than numbers.
        out: Folder of the predictions.
        settings: Where the feature store is.
    """

    folder: str
    digest: str
    variant: str
    version: int
    feature_service: str | None
    keep: tuple[str, ...]
    text_columns: tuple[str, ...]
    out: str
    settings: Settings

    def file(self, part: Part) -> Path:
        """Return where a part's predictions are written."""
        return Path(self.out) / f"part-{part.number:05d}.parquet"

    def done(self, part: Part) -> Done | None:
        """Return what an earlier run has made of a part; None where it did not, or where a crash has cut it off."""
        import pyarrow as pa
        from pyarrow import parquet

        path = self.file(part)
        if not path.is_file():
            return None
        try:
            return Done(path.name, parquet.read_metadata(path).num_rows, _digest(path))
        except (pa.ArrowException, OSError):
            return None


def predict_part(part: Part, job: Job, bundle: Bundle) -> Done:
    """Predict the rows of a part, and write them as one file, which is there whole or not at all.

    Raises:
        InvalidData: the rows cannot be read or predicted; the first of them are named.
        StorageFault: the file cannot be written.
    """
    import pyarrow as pa
    from pyarrow import parquet

    path = job.file(part)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    writer: Any = None
    n_rows = 0
    try:
        for table in part.tables(_wanted(job, bundle), job.text_columns):
            frame = to_frame(table)
            rows = f"Rows {n_rows:,} to {n_rows + len(frame) - 1:,} of {part.where}"
            answered = pa.Table.from_pandas(_answered(frame, job, bundle, rows=rows), preserve_index=False)
            if writer is None:
                writer = parquet.ParquetWriter(draft, answered.schema, compression="zstd")
            writer.write_table(answered.cast(writer.schema))
            n_rows += len(frame)
        if writer is None:
            writer = parquet.ParquetWriter(draft, _empty(job, bundle))
        writer.close()
        writer = None
        _sync(draft)
        draft.replace(path)
        return Done(path.name, n_rows, _digest(path))
    except OSError as error:
        raise StorageFault(
            f"{str(path)!r} cannot be written: {error.strerror or error}.",
            hint="Make room, or name another folder. What is predicted already is kept.",
        ) from error
    finally:
        if writer is not None:
            writer.close()
        draft.unlink(missing_ok=True)


def _wanted(job: Job, bundle: Bundle) -> tuple[str, ...] | None:
    """Return the columns to read; all of them where keys of entities may be among them."""
    if job.feature_service is not None:
        return None
    return tuple(dict.fromkeys((*(column.name for column in bundle.columns), *job.keep)))


def _answered(frame: pd.DataFrame, job: Job, bundle: Bundle, *, rows: str) -> pd.DataFrame:
    """Return kept columns, predictions and version of rows."""
    absent = [name for name in job.keep if name not in frame.columns]
    if absent:
        raise InvalidData(
            f"{rows} have no column {absent[0]!r}, which was to be kept.",
            hint="Name columns that the input has with --keep.",
            details=[Detail(name, "is not in the input") for name in absent],
        )
    inputs = frame
    if job.feature_service is not None and any(c.name not in frame.columns for c in bundle.columns):
        inputs = join(frame, timestamp=MOMENT, feature_service=job.feature_service, settings=job.settings).frame
    answer = bundle.predict(bundle.require(inputs, rows=rows)).reset_index(drop=True)
    answer["version"] = np.int32(job.version)
    return pd.concat([frame[list(job.keep)].reset_index(drop=True), answer], axis=1)


def _empty(job: Job, bundle: Bundle) -> Any:
    """Return the schema of a part without rows."""
    import pyarrow as pa

    numbers = [(name, pa.float64()) for name in bundle.output_names[1:]]
    first = (bundle.output_names[0], pa.string() if bundle.classes else pa.float64())
    return pa.schema([*((name, pa.string()) for name in job.keep), first, *numbers, ("version", pa.int32())])


def put_whole(path: Path, text: str) -> None:
    """Write a file that is there whole or not at all, also after a power cut.

    Raises:
        OSError: it cannot be written.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_text(text, encoding="utf-8")
        _sync(draft)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Have the disk hold a file before it gets its name."""
    with path.open("rb") as written:
        os.fsync(written.fileno())


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return file_digest(stream, "sha256").hexdigest()
