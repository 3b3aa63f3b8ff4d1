"""A version as a file to take away: what ``factory variants export`` writes, packed into one ZIP archive.

It is written to a file without a name, which is gone once it was sent or the
caller went away; nothing of it is kept in memory.
"""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import IO

from pydantic import Field

from factory.errors import Conflict, Detail, NotFound
from factory.settings import Settings
from factory.spec import Document, Variant
from factory.variants import onnx_file
from factory.variants.bundle import Bundle
from factory.variants.export import Format, export
from factory.variants.mlflow_model import bundle_of
from factory.variants.registry import Registry

MOST_MB = 2_000.0
"""Of a version; larger ones are exported where they lie."""
_PART = 2**20


class OnnxReport(Document):
    """Whether a version can be had as one ONNX file."""

    possible: bool
    message: str = Field("", description="What ONNX does not have; empty where it is possible.")
    hint: str = ""


def packed(variant: Variant, settings: Settings, *, as_: Format) -> tuple[IO[bytes], int]:
    """Return a version as an archive, opened at its beginning, and its size in bytes.

    Raises:
        Conflict: it is too large, or ONNX does not have what the version does.
        NotFound: its files are not kept here.
        ServiceFault: MLflow does not answer.
        StorageFault: its files are gone, or there is no room.
    """
    _require_small(variant)
    with tempfile.TemporaryDirectory(prefix="factory-export-") as place:
        out = Path(place) / f"{variant.name}-{variant.version}"
        export(variant, _model(variant.name, variant.version, settings), out, as_=as_)
        archive = tempfile.TemporaryFile(prefix="factory-export-")  # noqa: SIM115 - whoever sends it closes it
        with zipfile.ZipFile(archive, "w", compression=zipfile.ZIP_DEFLATED, compresslevel=1) as written:
            for file in sorted(out.rglob("*")):
                if file.is_file():
                    written.write(file, file.relative_to(place))
    size = archive.tell()
    archive.seek(0)
    return archive, size


def parts_of(archive: IO[bytes]) -> Iterator[bytes]:
    """Yield a file part by part, and close it."""
    with archive:
        while part := archive.read(_PART):
            yield part


def onnx_report(variant: Variant, settings: Settings) -> OnnxReport:
    """Return whether a version can be had as an ONNX file that says the same, and why not.

    Raises:
        ServiceFault, StorageFault, SystemFault: that cannot be looked at now.
    """
    _require_small(variant)
    return _looked_at(variant.name, variant.version, variant.bundle_digest, settings)


@lru_cache(maxsize=256)
def _looked_at(name: str, version: int, digest: str, settings: Settings) -> OnnxReport:
    """Write the file to know it: a version never changes, so it is looked at once."""
    bundle = Bundle.load(bundle_of(_model(name, version, settings)), digest=digest)
    with tempfile.TemporaryDirectory(prefix="factory-export-") as place:
        try:
            onnx_file.write(bundle, Path(place), about={"variant": f"{name}/{version}"})
        except Conflict as reason:
            return OnnxReport(possible=False, message=reason.message, hint=reason.hint)
    return OnnxReport(possible=True)


def _model(name: str, version: int, settings: Settings) -> Path:
    """Return the folder of a version's MLflow model.

    Raises:
        NotFound: nothing was ever registered here.
    """
    registry = Registry(settings)
    if not registry.is_made:
        raise NotFound(
            f"The files of {name}/{version} are not kept here.",
            hint="Its scores and lineage are part of the version itself.",
            details=[Detail("version", "has no files")],
        )
    return registry.local_model(name, version)


def _require_small(variant: Variant) -> None:
    if variant.size_mb > MOST_MB:
        raise Conflict(
            f"{variant.name}/{variant.version} has {variant.size_mb:,.0f} MB; at most {MOST_MB:,.0f} MB are sent.",
            hint="Export it on the factory's machine: factory variants export.",
            details=[Detail("version", "is too large to be sent")],
        )
