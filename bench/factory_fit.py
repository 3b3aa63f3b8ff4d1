"""``factory fit`` as a user runs it, measured from outside; the one-row latency of what it made, in a process.

``python -m bench.factory_fit TABLE NAME VERSION`` prints the latter for a
variant in FACTORY_HOME, as JSON: a process of its own, held to the same cores
as the fit.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from bench.peers.job import TIMED_ROWS, WARM_UP_ROWS, median_ms
from bench.record import ROOT, clean_environment, factory_command
from bench.sampler import Measurement, measure
from factory.settings import Settings
from factory.variants.bundle import Bundle
from factory.variants.registry import Registry

OVERRUN, START_UP_S = 1.05, 15.0
"""Of the budget, and for imports and the start of Ray: the promise about the whole process."""
NAME, RECIPE = "bench.fit", "tabular-auto"
LOG = "fit.log"


def limit_s(budget_s: float) -> float:
    """Return the seconds within which the whole process has to end."""
    return budget_s * OVERRUN + START_UP_S


@dataclass(frozen=True)
class Fit:
    """One call: tables, seconds, seed, what is switched off, making, recipe, and a FACTORY_HOME without NAME."""

    train: Path
    test: Path
    target: str
    budget_s: int
    seed: int
    home: Path
    without: tuple[str, ...] = ()
    name: str = NAME
    making: str = "auto"
    recipe: str = RECIPE

    @property
    def environment(self) -> dict[str, str]:
        """Nothing of what would change how the factory works is set, but for what is switched off."""
        switched = {"FACTORY_ENGINE_WITHOUT": ",".join(self.without)} if self.without else {}
        return clean_environment(self.home) | switched

    def run(self, out: Path, *, timeout_s: float, prefix: tuple[str, ...] = ()) -> Measurement:
        """Run it in the folder of ``out``, which gets the predictions of the test rows; the output goes to a log there.

        Args:
            out: Parquet file for the predictions.
            timeout_s: Seconds after which it is killed.
            prefix: Command that starts it: ``taskset``, say.
        """
        options: Mapping[str, object] = {
            "--train": self.train,
            "--test": self.test,
            "--target": self.target,
            "--out": out,
            "--budget": f"{self.budget_s}s",
            "--seed": self.seed,
            "--name": self.name,
            "--making": self.making,
            "--recipe": self.recipe,
        }
        words = [str(word) for option in options.items() for word in option]
        return measure(
            [*prefix, factory_command(), "fit", *words],
            env=self.environment,
            cwd=out.parent,
            log=out.parent / LOG,
            timeout_s=timeout_s,
        )

    def latency_ms(self, *, prefix: tuple[str, ...] = ()) -> float:
        """Return the median milliseconds of predicting one row with the variant NAME that :meth:`run` made."""
        return latency_ms(self.test, self.name, version=1, home=self.home, prefix=prefix)

    def clean(self) -> None:
        """Delete the home."""
        shutil.rmtree(self.home, ignore_errors=True)


def latency_ms(table: Path, name: str, *, version: int, home: Path, prefix: tuple[str, ...] = ()) -> float:
    """Return the median milliseconds of predicting one row of a table, measured in a process of its own.

    Args:
        table: Parquet file with rows.
        name: Of the variant.
        version: Of the variant.
        home: FACTORY_HOME that it is in.
        prefix: Command that starts the process: ``taskset``, say.
    """
    command = [*prefix, sys.executable, "-m", "bench.factory_fit", str(table), name, str(version)]
    done = subprocess.run(command, env=clean_environment(home), cwd=ROOT, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1])["latency_ms"])


def main() -> int:
    """Time the variant of this process's home on rows of the named table, as the predictor hands them over."""
    table, name, version = sys.argv[1:]
    frame = pd.read_parquet(table).head(WARM_UP_ROWS + TIMED_ROWS)
    bundle = Bundle.load(Registry(Settings()).local_bundle(name, int(version)))
    arrays = {name: frame[name].to_numpy() for name in frame.columns}
    rows = [{name: array[i : i + 1] for name, array in arrays.items()} for i in range(len(frame))]
    print(json.dumps({"latency_ms": median_ms(bundle.predict_raw, rows)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
