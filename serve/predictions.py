"""A call that was read, and what is predicted of it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np

from factory.spec import Variant
from serve.guard import Took
from serve.inputs import NamedColumns, NamelessColumns, Payload, arrays
from serve.loaded import Loaded
from serve.store import Reference

INLINE_MS = 5.0
"""A prediction below this runs in the event loop: handing it to a thread costs about as much (0.1 to 0.3 ms) as it
takes, and a stall of 5 ms is below what a caller notices."""
INLINE_BYTES = 16_384
"""A larger body is read, checked and predicted in a thread."""


@dataclass(frozen=True)
class Asked:
    """A call that was read.

    Attributes:
        reference: What it names.
        variant: The version that this means, beside which there may be a canary.
        payload: The rows.
        body: As it was sent.
    """

    reference: Reference
    variant: Variant
    payload: Payload
    body: bytes = field(repr=False)

    @property
    def small(self) -> bool:
        """Whether it is answered in the event loop, by a variant that is fast."""
        return is_small(self.body)


@dataclass(frozen=True)
class Prediction:
    """A prediction.

    Attributes:
        loaded: Who has made it.
        inputs: Column → values as they were predicted, each (n_rows,).
        raw: Of :meth:`~factory.variants.bundle.Bundle.predict_raw`.
        ms: That it took with the checks.
        took: The same of all rows that were predicted at once; None where another one of them tells it.
    """

    loaded: Loaded
    inputs: dict[str, np.ndarray]
    raw: np.ndarray
    ms: float
    took: Took | None

    @property
    def outputs(self) -> dict[str, np.ndarray]:
        """Output → values: the prediction, or the probability of each class."""
        bundle = self.loaded.bundle
        if not bundle.classes:
            return {"prediction": self.raw}
        return dict(zip(bundle.output_names[1:], self.raw.T, strict=True))


def is_small(body: bytes) -> bool:
    """Return whether a body is read in the event loop."""
    return len(body) <= INLINE_BYTES


def predicted(payload: NamedColumns | NamelessColumns, loaded: Loaded) -> Prediction:
    """Return the prediction of a payload, which is checked."""
    started = time.perf_counter()
    inputs = arrays(payload, loaded.bundle)
    raw = loaded.bundle.predict_raw(inputs)
    ms = (time.perf_counter() - started) * 1e3
    return Prediction(loaded, inputs, raw, ms, Took(len(raw), ms))
