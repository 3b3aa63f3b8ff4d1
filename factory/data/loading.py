"""From what a request says about its data to a checked dataset."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import pandas as pd

from factory.data.columns import as_text, clean
from factory.data.dataset import Dataset, from_frame, table_digest
from factory.data.features import join
from factory.data.metadata import read_metadata
from factory.data.tables import check_names, read_table, write_table
from factory.errors import Detail, FactoryError, NotFound, StorageFault
from factory.settings import Settings
from factory.spec import ColumnType, DatasetRef, EntityDataset, FeatureJoin, FileDataset, UploadDataset

UPLOAD_SUFFIXES = (".parquet", ".csv", ".csv.gz", ".arrow")
"""Of the files in the upload folder; each is named by a digest."""
_DIGEST = re.compile("[0-9a-f]{64}")
_LABELS = frozenset({ColumnType.CATEGORICAL, ColumnType.TEXT, ColumnType.IDENTIFIER})


def load(ref: DatasetRef, *, settings: Settings) -> Dataset:
    """Read the data of a request.

    A table is read as it is. Where the request names a feature service, it is an entity table, and joined to the
    service as of each row's moment; entity keys and timestamp are then no features, unless ``ref.types`` names them
    (as other than identifiers).

    Raises:
        InvalidData: the table cannot be read or used.
        NotFound: the upload does not exist.
        InvalidRequest: the feature service does not exist.
        Conflict: the feature repository has not been applied.
        ServiceFault: the feature store cannot be read.
    """
    labels = [name for name, kind in ref.types.items() if kind in _LABELS]
    table = read_table(_place(ref, settings), max_rows=settings.max_rows, text_columns=labels)
    return from_frame(table, ref) if ref.join is None else _joined(table, ref, ref.join, settings)


def least_mb(ref: DatasetRef, *, settings: Settings) -> float:
    """Return what a table takes in memory at least, in MB, as its file tells before it is read.

    0 where that does not tell, or is no file of this machine. What is wrong with it :func:`load` says.
    """
    with suppress(FactoryError):
        place = Path(_place(ref, settings)).expanduser()
        if place.is_file():
            known = read_metadata(place)
            n_rows = known.n_rows if known.exact else known.n_rows / 2
            n_wide = sum(kind in (ColumnType.NUMERIC, ColumnType.DATETIME) for kind in known.types.values())
            return n_rows * (8 * n_wide + len(known.columns) - n_wide - 8) / 1e6  # the target is not counted
    return 0.0


def _place(ref: DatasetRef, settings: Settings) -> str:
    """Return where the table lies that a request names."""
    if isinstance(ref, UploadDataset):
        return str(uploaded(ref.upload, settings=settings))
    return ref.path if isinstance(ref, FileDataset) else ref.entities


def _joined(entities: pd.DataFrame, ref: DatasetRef, how: FeatureJoin, settings: Settings) -> Dataset:
    for name in entities.columns:
        if ref.types.get(str(name)) in _LABELS:  # a key that looks like a number, but is text in the store
            entities[name] = as_text(entities[name].to_numpy())
    if how.timestamp in entities.columns:
        moments, _, text_format = clean(entities[how.timestamp], ColumnType.DATETIME)
        if text_format is not None:  # the store reads ISO 8601 only
            entities[how.timestamp] = moments
    joined = join(entities, timestamp=how.timestamp, feature_service=how.feature_service, settings=settings)
    frame = pd.concat([joined.keys, joined.frame], axis=1)
    typed = {name for name, kind in ref.types.items() if kind is not ColumnType.IDENTIFIER}
    return from_frame(frame, ref, features=joined.lineage, aside=[c for c in joined.keys.columns if c not in typed])


def rows_to_predict(ref: DatasetRef, dataset: Dataset, *, settings: Settings) -> pd.DataFrame | None:
    """Read the table that ``ref.scoring`` names, in canonical form; None where the request names none.

    Returns:
        Those features of ``dataset`` that the table has (n_rows, n_features).

    Raises:
        InvalidData: the table cannot be read.
    """
    if isinstance(ref, EntityDataset) or ref.scoring is None:
        return None
    labels = [name for name, kind in dataset.types.items() if kind in _LABELS]
    frame = read_table(ref.scoring, max_rows=settings.max_rows, text_columns=labels)
    known = [c for c in dataset.frame.columns if c in frame.columns]
    return pd.DataFrame({c: clean(frame[c], dataset.types[c])[0] for c in known}, index=frame.index)


def store_upload(path: str | Path, settings: Settings) -> str:
    """Read a table and keep it as an upload; return its content digest, which names it from now on.

    The same table is stored once, whatever file format it comes in.

    Raises:
        InvalidData: the table cannot be read.
        StorageFault: the upload folder cannot be written.
    """
    return store_table(read_table(str(path), max_rows=settings.max_rows), settings)


def store_table(frame: pd.DataFrame, settings: Settings) -> str:
    """Keep a table as an upload; return its content digest, which names it from now on.

    Raises:
        InvalidData: its columns cannot be told apart by their names.
        StorageFault: the upload folder cannot be written.
    """
    frame = frame.rename(columns=str)
    check_names(list(frame.columns), "the table")
    digest = table_digest(frame)
    target = settings.uploads / f"{digest}.parquet"
    if target.exists():
        return digest
    part = settings.uploads / f".{digest}-{uuid4().hex[:8]}.parquet"
    try:
        settings.uploads.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_table(frame, part)
        part.replace(target)
    except OSError as error:
        raise StorageFault(
            f"The upload cannot be stored in {str(settings.uploads)!r}: {error.strerror or error}.",
            hint="Free some space or set FACTORY_HOME to a folder that this user may write.",
            details=[Detail("FACTORY_HOME", str(error))],
        ) from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
    return digest


def uploaded(digest: str, *, settings: Settings) -> Path:
    """Return the file of an upload: a table that was stored here, or a file as it was received.

    Raises:
        NotFound: there is none with this digest.
    """
    for suffix in UPLOAD_SUFFIXES if _DIGEST.fullmatch(digest) else ():
        if (path := settings.uploads / f"{digest}{suffix}").is_file():
            return path
    raise NotFound(
        f"There is no upload {digest[:12]!r}...",
        hint="Upload the table first and use the digest that the upload answers with.",
        details=[Detail("dataset.upload", "no such upload")],
    )
