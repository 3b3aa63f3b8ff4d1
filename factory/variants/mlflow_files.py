"""Artifacts of MLflow as files of this machine: where they lie, or as they were downloaded once."""

from __future__ import annotations

import tempfile
from pathlib import Path
from urllib.parse import unquote, urlparse


def on_this_machine(location: str, *, kept: Path, uri: str) -> Path:
    """Return an artifact's file or folder; one that lies elsewhere is downloaded the first time.

    Args:
        location: Where MLflow says that it lies.
        kept: Where a download is kept.
        uri: Of MLflow.

    Raises:
        MlflowException: it cannot be downloaded.
        OSError: there is no room for it.
    """
    parsed = urlparse(location)
    if parsed.scheme in ("", "file"):
        return Path(unquote(parsed.path))
    if not kept.exists():
        from mlflow.artifacts import download_artifacts

        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent) as place:
            Path(download_artifacts(artifact_uri=location, dst_path=place, tracking_uri=uri)).rename(kept)
    return kept
