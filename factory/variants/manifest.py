"""What a bundle says of itself, ``variant.json``: read and checked before anything else of its folder is."""

from __future__ import annotations

import json
import math
from pathlib import Path

from pydantic import Field, ValidationError

from factory.errors import UntrustedBundle
from factory.search.calibration import Calibration
from factory.spec import Document, Task
from factory.variants.inputs import BundleColumn

FORMAT_VERSION = 2
"""2 brought the calibration; a factory that knows only 1 would leave it out."""
READABLE_FORMATS = frozenset({1, 2})
"""Every format that was ever released stays here, with a bundle of it in ``tests/variants/fixtures``."""

MANIFEST = "variant.json"


class MemberEntry(Document):
    """A member as the manifest names it."""

    family: str
    weight: float = Field(gt=0, le=1)
    preparation: int = Field(ge=0)
    folder: str = Field(pattern=r"^members/\d+$")


class Manifest(Document):
    """The content of ``variant.json``."""

    format_version: int
    task: Task
    classes: tuple[str, ...]
    columns: tuple[BundleColumn, ...]
    ignored: tuple[str, ...] = ()
    preparations: int = Field(ge=1)
    members: tuple[MemberEntry, ...] = Field(min_length=1)
    calibration: Calibration = Calibration()
    metadata: dict[str, str] = Field(default_factory=dict)


def read_manifest(folder: Path) -> Manifest:
    """Read ``variant.json`` without loading any model.

    Raises:
        UntrustedBundle: it is missing, not readable, of an unknown format or contradicts itself.
    """
    hint = "Make the variant again, or read it with the version of the factory that wrote it."
    try:
        document = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        version = document.get("format_version") if isinstance(document, dict) else None
        if version not in READABLE_FORMATS:
            known = ", ".join(map(str, sorted(READABLE_FORMATS)))
            raise UntrustedBundle(f"The bundle's format is {version!r}; this factory reads {known}.", hint=hint)
        manifest = Manifest.model_validate(document)
    except (OSError, ValueError) as error:
        cause = f"{error.error_count()} problems" if isinstance(error, ValidationError) else str(error)
        raise UntrustedBundle(f"{MANIFEST} of the bundle cannot be read: {cause}.", hint=hint) from error
    if any(entry.preparation >= manifest.preparations for entry in manifest.members):
        raise UntrustedBundle(f"{MANIFEST} names a preparation that the bundle does not have.", hint=hint)
    if not math.isclose(sum(entry.weight for entry in manifest.members), 1, abs_tol=1e-6):
        raise UntrustedBundle(f"The weights in {MANIFEST} do not sum to 1.", hint=hint)
    return manifest
