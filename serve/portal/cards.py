"""What is kept of a version beside the ledger: its model card, and its bundle.

They lie with the request's working files on this machine, or in MLflow.
"""

from __future__ import annotations

import errno
import logging
from functools import lru_cache
from pathlib import Path

from factory.errors import Detail, FactoryError, NotFound, StorageFault
from factory.operate.answers import Inside, inside
from factory.settings import Settings
from factory.spec import Variant
from factory.variants.manifest import MANIFEST, Manifest, read_manifest
from factory.variants.registry import CARD, Registry

log = logging.getLogger(__name__)

MOST_BYTES = 32 * 2**20
"""A card of many segments and columns has one or two MB."""
POLICY = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'self'"
"""Names of columns and classes in it are strangers' text; a card needs its own style and its charts, and no more."""


def card_of(variant: Variant, settings: Settings) -> bytes:
    """Return a version's card, one HTML page.

    Raises:
        NotFound: there is none any more.
        ServiceFault: it is in MLflow, which does not answer.
        StorageFault, OSError: the disk refuses; that it is not there is not known then.
    """
    path = _working_folder(variant, settings) / CARD
    try:
        if not path.is_file():
            path = Registry(settings).card(variant.name, variant.version)
        if path.stat().st_size <= MOST_BYTES:
            return path.read_bytes()
    except (NotFound, StorageFault, OSError) as error:
        cause = error.__cause__ if isinstance(error, StorageFault) else error
        # MLflow tells what is not there without a number.
        if isinstance(cause, OSError) and cause.errno not in (None, errno.ENOENT):
            raise
        raise _no_card(variant) from error
    raise _no_card(variant)


def inside_of(variant: Variant, settings: Settings) -> Inside:
    """Return what is in a version, by what its bundle says of itself; nothing where that cannot be looked at now."""
    folder = _working_folder(variant, settings) / "bundle"
    if not (folder / MANIFEST).is_file() and not Registry(settings).is_made:
        return (), ()
    try:
        manifest = _manifest(variant.name, variant.version, folder, settings)
    except FactoryError as fault:
        log.warning("%s/%s: its bundle cannot be looked at: %s", variant.name, variant.version, fault.message)
        return (), ()
    return inside(manifest.columns, manifest.members)


@lru_cache(maxsize=64)
def _manifest(name: str, version: int, folder: Path, settings: Settings) -> Manifest:
    """Return what a bundle says of itself, which never changes."""
    if not (folder / MANIFEST).is_file():
        folder = Registry(settings).local_bundle(name, version)
    return read_manifest(folder)


def _working_folder(variant: Variant, settings: Settings) -> Path:
    """Return where a request leaves what it made: each of its variants has a folder."""
    _, _, segment = variant.name.partition(".")[2].partition(".")
    return settings.workspace(variant.request_id) / (f"segment-{segment}" if segment else "pooled")


def _no_card(variant: Variant) -> NotFound:
    return NotFound(
        f"The model card of {variant.name}/{variant.version} is not kept any more.",
        hint="Its scores and lineage are part of the version itself.",
        details=[Detail("report", "is gone")],
    )
