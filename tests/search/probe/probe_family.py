"""A third party's family for tests: its parameters say how a fit goes and how good it is.

It is real, and comes through the entry-point door; no framework can be asked to
run out of memory, to hang or to give NaN on order.
"""

from __future__ import annotations

import ctypes
import json
import os
import time
from pathlib import Path

import numpy as np

from factory.families.base import Bet, Family, Model
from factory.space import ChoiceDimension, FloatDimension

NOTES = "PROBE_NOTES"
"""Environment variable with a folder: each fit leaves a file there, named by process, family and what it does."""
DOES = ("fit", "raise", "exhaust", "swell", "nan", "hang", "hang_once", "stall", "seize")
DOES_LATER = ("raise_later", "stall_later", "hurry")
"""What a fit can do; ``later`` is on a fold after the first. One that hurries raises its learning rate to 0.5 where it
may, and says by its rounds at what rate, in hundredths, it was fitted."""


class ProbeModel(Model):
    """Guesses the first column's sign with the given skill."""

    def __init__(self, skill: float, n_classes: int, value: float) -> None:
        self._skill, self._n_classes, self._value = skill, n_classes, value

    def predict(self, table):
        if not self._n_classes:
            return np.full(len(table), self._value)
        high = np.where(np.nan_to_num(table.numeric[:, 0]) > 0, 0.5 + self._skill / 2, 0.5 - self._skill / 2)
        rest = [np.full(len(table), 1e-3)] * (self._n_classes - 2)
        p = np.stack([(1 - high), high, *rest], axis=1)
        return p / p.sum(axis=1, keepdims=True)

    def save(self, folder: Path) -> None:
        (folder / "probe.json").write_text(json.dumps([self._skill, self._n_classes, self._value]))


class Probe(Family):
    """See the module."""

    name = "probe"
    framework = "probe"
    iterative = True

    def space(self, task):
        return {
            "does": ChoiceDimension(choices=(*DOES, *DOES_LATER)),
            "skill": FloatDimension(low=0.0, high=1.0),
        }

    def portfolio(self, task, *, shape):
        return [Bet({"does": "fit", "skill": 0.2}, rank=10), Bet({"does": "fit", "skill": 0.6}, rank=20)]

    def fit(self, train, *, validation, parameters, context):
        does = noted(self.name, len(train), parameters["does"], later=not context.raises_rate)
        match does:
            case "raise":
                raise ValueError("the probe was asked to raise")
            case "exhaust":
                raise MemoryError("the probe was asked to exhaust")
            case "swell":
                held = []
                while context.keep_going():
                    held.append(np.ones(1_000_000))
                    time.sleep(0.02)
            case "hang" | "hang_once":
                while not context.stopped:
                    time.sleep(0.02)
            case "stall" | "seize":
                # The latter keeps the interpreter's lock, as compiled code may.
                (time.sleep if does == "stall" else ctypes.PyDLL(None).sleep)(60)
        skill = float("nan") if does == "nan" else float(parameters["skill"])
        model = ProbeModel(skill, context.n_classes, float(train.y.mean()))
        model.rounds = context.rounds or 10
        return hurried(model, parameters, context) if does == "hurry" else model

    def load(self, folder: Path):
        return ProbeModel(*json.loads((folder / "probe.json").read_text()))

    def memory_mb(self, *, n_rows, n_columns, n_classes, parameters):
        return 1.0


def noted(name, n_rows, does, *, later):
    """Leave a note of a fit, and return what it is to do."""
    if does.endswith("_later"):
        does = does.removesuffix("_later") if later else "fit"
    if folder := os.environ.get(NOTES):
        note = Path(folder) / f"{os.getpid()}-{name}-{does}-{time.monotonic_ns()}"
        note.write_text(str(n_rows))
        if does == "hang_once" and any(one != note for one in note.parent.glob(f"*-{does}-*")):
            return "fit"
    return does


def hurried(model, parameters, context):
    """Raise the learning rate where that is allowed, and say by the rounds at what rate the model was fitted."""
    model.learning_rate = 0.5 if context.raises_rate else None
    model.rounds = round(100 * (model.learning_rate or parameters.get("learning_rate", 0)))
    return model


class OtherPoolProbe(Probe):
    """A probe that asks for a worker of another pool."""

    name = "probe_other_pool"
    pool = "torch"


PLUGIN = Probe()
OTHER_POOL = OtherPoolProbe()
