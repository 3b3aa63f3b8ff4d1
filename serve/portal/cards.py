"""Model cards, wherever they lie: with the request's working files on this machine, or in MLflow."""

from __future__ import annotations

import tempfile
from pathlib import Path

from factory.errors import Detail, NotFound, ServiceFault
from factory.settings import Settings
from factory.spec import Variant
from factory.variants.registry import Registry

CARD = "card.html"
MOST_BYTES = 32 * 2**20
"""A card of many segments and columns has one or two MB."""
POLICY = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'self'"
"""Names of columns and classes in it are strangers' text; a card needs its own style and its charts, and no more."""


def card_of(variant: Variant, settings: Settings) -> bytes:
    """Return a variant's card, one HTML page.

    Raises:
        NotFound: there is none any more.
        ServiceFault: it is in MLflow, which does not answer.
    """
    for path in (_working_copy(variant, settings), _kept_copy(variant, settings)):
        if path.is_file() and path.stat().st_size <= MOST_BYTES:
            return path.read_bytes()
    return _from_mlflow(variant, settings)


def _working_copy(variant: Variant, settings: Settings) -> Path:
    """Return where a request leaves the card: each of its variants has a folder."""
    _, _, segment = variant.name.partition(".")[2].partition(".")
    folder = f"segment-{segment}" if segment else "pooled"
    return settings.workspace(variant.request_id) / folder / CARD


def _kept_copy(variant: Variant, settings: Settings) -> Path:
    return settings.root / "cache" / "cards" / f"{variant.name}-{variant.version}.html"


def _from_mlflow(variant: Variant, settings: Settings) -> bytes:
    client = Registry(settings).client()
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    kept = _kept_copy(variant, settings)
    try:
        run = client.get_model_version(variant.name, str(variant.version)).run_id
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent) as place:
            uri = f"runs:/{run}/{CARD}"
            Path(download_artifacts(artifact_uri=uri, dst_path=place, tracking_uri=settings.tracking_uri)).rename(kept)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            raise _no_card(variant) from error
        raise ServiceFault(
            "The card is kept in MLflow, which does not answer.", hint="Try again when GET /readyz says that it does."
        ) from error
    except OSError as error:
        raise _no_card(variant) from error
    return kept.read_bytes()


def _no_card(variant: Variant) -> NotFound:
    return NotFound(
        f"The model card of {variant.name}/{variant.version} is not kept any more.",
        hint="Its scores and lineage are part of the version itself.",
        details=[Detail("report", "is gone")],
    )
