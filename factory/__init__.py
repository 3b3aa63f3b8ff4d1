"""A factory for model variants: AutoML that delivers versioned, gated, served models.

``factory.fit`` makes a variant from a data frame, ``factory.load`` reads one
again, and ``FactoryClassifier`` and ``FactoryRegressor`` are the same engine
as scikit-learn estimators.  ``factory.Client`` speaks to a factory elsewhere.
What they need is imported when one is first asked for, so that importing this
package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from factory.client import Fitted, Predictor, fit, load
    from factory.estimators import FactoryClassifier, FactoryRegressor
    from factory.remote import Client

__all__ = ["Client", "FactoryClassifier", "FactoryRegressor", "Fitted", "Predictor", "fit", "load"]

_HOMES = {
    **dict.fromkeys(("Fitted", "Predictor", "fit", "load"), "factory.client"),
    **dict.fromkeys(("FactoryClassifier", "FactoryRegressor"), "factory.estimators"),
    "Client": "factory.remote",
}


def __getattr__(name: str) -> Any:
    """Import what the package offers when it is first asked for (PEP 562)."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'factory' has no attribute {name!r}")
