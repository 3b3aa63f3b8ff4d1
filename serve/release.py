"""Which release of the factory this is."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def release() -> str:
    """Return the version of the installed package; ``source`` where it is not installed."""
    try:
        return version("model-variant-factory")
    except PackageNotFoundError:
        return "source"
