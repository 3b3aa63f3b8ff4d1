"""The other AutoML systems, and how each is installed and run: every one in a virtual environment of its own.

A runner is a module of this package that the environment's own Python
executes in a child process (:mod:`bench.peers.job` says how it is told what to
do).  It imports nothing of the factory, and the factory's environment never
gets a peer.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENTS = ROOT / "bench" / "work" / "peers"
PINS = Path(__file__).resolve().parent / "pins"

OURS = "factory"
REFERENCE = "hist-gradient-boosting"
"""What nothing may be worse than."""


@dataclass(frozen=True)
class Peer:
    """A system as it is run.

    Attributes:
        name: In commands and tables.
        environment: Folder of its virtual environment, and name of the file with its exact pins.
        runner: Module of this package that runs it.
        option: What the runner is told beside the job; its preset.
        about: How it is called, and what it does with identifiers, text and dates, as the documentation says it.
    """

    name: str
    environment: str
    runner: str
    option: str
    about: str


PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        Peer(
            "autogluon-medium",
            "autogluon",
            "autogluon",
            "medium_quality",
            "`TabularPredictor.fit(presets='medium_quality')`; drops identifiers, n-grams of text, parts of dates. "
            "Without its extras for Ray and fastai. Kept in memory (`persist`) for one row.",
        ),
        Peer(
            "autogluon-best",
            "autogluon",
            "autogluon",
            "best_quality",
            "`TabularPredictor.fit(presets='best_quality')`: bagging and stacking; columns as above.",
        ),
        Peer(
            "flaml",
            "flaml",
            "flaml",
            "",
            "`AutoML.fit` with its defaults; drops text columns of which every value differs, others are categories; "
            "parts of dates.",
        ),
        Peer(
            "h2o",
            "h2o",
            "h2o",
            "",
            "`H2OAutoML` with its defaults in a local JVM; ignores columns that it reads as strings (where nothing "
            "else is left they are made categories), dates are numbers. One row through the Python client.",
        ),
        Peer(
            "lightautoml",
            "lightautoml",
            "lightautoml",
            "",
            "`TabularAutoML` with its defaults; text columns are categories, parts of dates.",
        ),
        Peer(
            "lightgbm",
            "baselines",
            "baselines",
            "lightgbm",
            "Defaults, no search; every text column is a category, dates are seconds.",
        ),
        Peer(
            REFERENCE,
            "baselines",
            "baselines",
            REFERENCE,
            "scikit-learn's defaults, no search; text columns are categories up to 255 levels and numbers of sorted "
            "levels beyond, dates are seconds.",
        ),
    )
}

SERVERS = ("bentoml", "litserve", "mlserver")
"""Servers of models, each in an environment of its name (bench/serving_peers.py)."""


def python_of(environment: str) -> Path:
    """Return the interpreter of a peer's virtual environment."""
    return ENVIRONMENTS / environment / "bin" / "python"
