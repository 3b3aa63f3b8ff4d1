"""``factory fit --budget 60s`` keeps its time and memory, and beats scikit-learn's default gradient boosting.

Five public tables, 75 % of the rows to learn from and 25 % to be scored on.
Both sides get the same rows; the reference gets pandas categoricals, and no
column of identifiers, which it could only memorise.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.metrics import log_loss, roc_auc_score, root_mean_squared_error
from sklearn.model_selection import train_test_split

from bench.command import as_row
from bench.record import WORK, clean_environment, factory_command, save
from bench.sampler import measure

FOLDER = WORK / "fit_minute"
TEST_SHARE = 0.25
OVERRUN, START_UP_S = 1.05, 15.0
"""Of the budget, and for imports and the start of Ray: the promise about the whole process."""
PATIENCE_S = 300.0
"""Beyond the budget, after which the command is killed."""
MEMORY_LIMIT_MB = 3000
IDENTIFIER_LEVELS = 255
"""A text column with more levels than this is kept from the reference, whose bins are that many."""

COLUMNS = {
    "data": "data",
    "metric": "metric",
    "seed": "seed",
    "score": "factory",
    "reference": "HistGradientBoosting",
    "gain": "better by %",
    "wall_s": "wall s",
    "limit_s": "limit s",
    "peak_pss_mb": "peak PSS MB",
    "cpu_s": "CPU s",
    "others_cores": "cores used by others",
    "met": "met",
}
NOTE = (
    "75/25 split, stratified by class; whole process, reading and start-up included; PSS summed over all processes "
    "(Ray's too), sampled every 0.5 s, below 3 GB. The reference is scikit-learn's HistGradientBoosting with its "
    "defaults on the same rows. Better by: fall of the loss, for AUC of 1 - AUC."
)


@dataclass(frozen=True)
class Claim:
    """A table, what is predicted, and by which score."""

    data: str
    target: str
    metric: Literal["AUC", "log-loss", "RMSE"]

    @property
    def lower_is_better(self) -> bool:
        """Whether the score is a loss."""
        return self.metric != "AUC"


CLAIMS = (
    Claim("telco_churn", "Churn", "AUC"),
    Claim("wine_quality", "quality", "log-loss"),
    Claim("california_housing", "median_house_value", "RMSE"),
    Claim("adult", "income", "AUC"),
    Claim("diamonds", "price", "RMSE"),
)


def main() -> int:
    """Run the chosen tables and seeds; return 1 where one was late, too large, worse than the reference, or failed."""
    known = [claim.data for claim in CLAIMS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=known, default=known, metavar="NAME", help=", ".join(known))
    parser.add_argument("--budget", type=int, default=60, metavar="SECONDS", help="of each fit (default: 60)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="N", help="of split and fit (default: 0)")
    chosen = parser.parse_args()
    source = os.environ.get("FACTORY_TEST_DATA")
    if not source:
        print("Skipped: FACTORY_TEST_DATA names no folder with the tables.")
        return 0
    rows = [
        compare(claim, source=Path(source), budget_s=chosen.budget, seed=seed)
        for claim in CLAIMS
        if claim.data in chosen.sets
        for seed in chosen.seeds
    ]
    save("fit_minute", rows, columns=COLUMNS, note=NOTE, documented=len(sys.argv) == 1)
    for row in rows:
        if not row["met"]:
            print(f"{row['data']}, seed {row['seed']}: {row['missed']}; see {row['log']}")
    return 0 if all(row["met"] for row in rows) else 1


def compare(claim: Claim, *, source: Path, budget_s: int, seed: int) -> dict[str, Any]:
    """Fit both sides on the same split and score them on the same rows."""
    frame = pd.read_parquet(source / f"{claim.data}.parquet")
    classes = frame[claim.target] if claim.metric != "RMSE" else None
    train, test = train_test_split(frame, test_size=TEST_SHARE, random_state=seed, stratify=classes)
    folder = FOLDER / f"{claim.data}-{seed}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    train.to_parquet(folder / "train.parquet", index=False)
    test.drop(columns=claim.target).to_parquet(folder / "test.parquet", index=False)
    row = _factory(claim, folder, budget_s=budget_s, seed=seed)
    truth = test[claim.target]
    out = folder / "predictions.parquet"
    row["score"] = _score(claim, truth, pd.read_parquet(out)) if out.exists() else None
    started = time.perf_counter()
    row["reference"] = _score(claim, truth, _reference(claim, train, test, seed=seed))
    row["reference_s"] = round(time.perf_counter() - started, 2)
    return {"data": claim.data, "metric": claim.metric, "seed": seed, "budget_s": budget_s} | row | _judged(claim, row)


def _factory(claim: Claim, folder: Path, *, budget_s: int, seed: int) -> dict[str, Any]:
    """Run ``factory fit`` with a FACTORY_HOME of its own, which is kept only where it failed."""
    home = Path(tempfile.mkdtemp(prefix="home-", dir=folder))
    log = folder / "fit.log"
    files = {"--train": "train.parquet", "--test": "test.parquet", "--out": "predictions.parquet"}
    taken = measure(
        [
            factory_command(), "fit", "--target", claim.target, "--budget", f"{budget_s}s", "--seed", str(seed),
            *(word for option, file in files.items() for word in (option, str(folder / file))),
        ],
        env=clean_environment(home),
        cwd=folder,
        log=log,
        timeout_s=budget_s + PATIENCE_S,
    )  # fmt: skip
    if taken.returncode == 0:
        shutil.rmtree(home)
    limit_s = budget_s * OVERRUN + START_UP_S
    return {**as_row(taken), "limit_s": limit_s, "log": str(log.relative_to(WORK.parents[1]))}


def _judged(claim: Claim, row: dict[str, Any]) -> dict[str, Any]:
    """Return whether everything was met, what was not, and the relative gain in percent (of 1 - AUC, or the loss)."""
    missed = []
    gain = None
    if row["returncode"] or row["score"] is None:
        missed.append(f"exit code {row['returncode']}")
    else:
        ours, theirs = row["score"], row["reference"]
        if not claim.lower_is_better:
            ours, theirs = 1 - ours, 1 - theirs
        gain = round(100 * (theirs - ours) / theirs, 2)
        if gain <= 0:
            missed.append("not better than the reference")
    if row["wall_s"] > row["limit_s"]:
        missed.append("late")
    if row["peak_pss_mb"] > MEMORY_LIMIT_MB:
        missed.append("too much memory")
    if row["left_behind"]:
        missed.append("left processes behind")
    return {"gain": gain, "met": not missed, "missed": ", ".join(missed)}


def _score(claim: Claim, truth: pd.Series, predictions: pd.DataFrame) -> float:
    """Score predictions in the form of ``factory fit --out``: a column for each class, or ``prediction``."""
    if len(predictions) != len(truth) or not np.isfinite(predictions.to_numpy(dtype=float)).all():
        raise ValueError(f"{claim.data}: the predictions are not one finite row for each of {len(truth)} rows")
    if claim.metric == "RMSE":
        return round(float(root_mean_squared_error(truth, predictions["prediction"])), 2)
    labels = sorted(truth.astype(str).unique())
    if claim.metric == "AUC":
        return round(float(roc_auc_score(truth.astype(str) == labels[1], predictions[labels[1]])), 5)
    return round(float(log_loss(truth.astype(str), predictions[labels], labels=labels)), 5)


def _reference(claim: Claim, train: pd.DataFrame, test: pd.DataFrame, *, seed: int) -> pd.DataFrame:
    """Return the predictions of scikit-learn's HistGradientBoosting with its defaults."""
    X, X_test = train.drop(columns=claim.target).copy(), test.drop(columns=claim.target).copy()
    for name in X.columns[[not pd.api.types.is_numeric_dtype(dtype) for dtype in X.dtypes]]:
        levels = X[name].dropna().unique()
        if len(levels) > IDENTIFIER_LEVELS:
            X, X_test = X.drop(columns=name), X_test.drop(columns=name)
            continue
        kind = pd.CategoricalDtype(sorted(levels))
        X[name], X_test[name] = X[name].astype(kind), X_test[name].astype(kind)
    y = train[claim.target]
    if claim.metric == "RMSE":
        regressor = HistGradientBoostingRegressor(categorical_features="from_dtype", random_state=seed)
        return pd.DataFrame({"prediction": regressor.fit(X, y).predict(X_test)})
    classifier = HistGradientBoostingClassifier(categorical_features="from_dtype", random_state=seed)
    probabilities = classifier.fit(X, y.astype(str)).predict_proba(X_test)
    return pd.DataFrame(probabilities, columns=list(classifier.classes_))


if __name__ == "__main__":
    sys.exit(main())
