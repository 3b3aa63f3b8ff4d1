"""A factory for model variants: AutoML that delivers versioned, gated, served models.

``factory.fit`` makes a variant from a data frame; what it needs is imported at
the first call, so that importing this package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from factory.client import Fitted, fit

__all__ = ["Fitted", "fit"]


def __getattr__(name: str) -> Any:
    """Import what the package offers when it is first asked for (PEP 562)."""
    if name in __all__:
        return getattr(importlib.import_module("factory.client"), name)
    raise AttributeError(f"module 'factory' has no attribute {name!r}")
