"""Odd tables come to a sensible variant or to one clear error, in time: ``factory fit`` on each, end to end."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench.claim import PATIENCE_S, parser, settle
from bench.command import as_row
from bench.factory_fit import LOG, Fit, limit_s
from bench.factory_run import newest
from bench.peers.job import PREDICTIONS
from bench.record import WORK
from bench.sets import BenchSet, Score, score

FOLDER = WORK / "odd_tables"
TARGET = "y"
GOOD = ("arrived early and friendly staff", "great value would order again", "works perfectly very happy")
BAD = ("broken on arrival", "nobody answered and no refund", "late again and very disappointed")
FILLER = ("the parcel", "on monday", "for my mother", "in the second shop", "as a gift", "with the blue cover")

COLUMNS = {
    "table": "table",
    "rows": "rows",
    "columns": "columns",
    "returncode": "exit code",
    "came_to": "came to",
    "metric": "metric",
    "score": "score",
    "constant": "a constant's",
    "wall_s": "wall s",
    "limit_s": "limit s",
    "peak_pss_mb": "peak PSS MB",
    "met": "met",
}
NOTE = (
    "`factory fit` with its defaults on generated tables, scores on rows that were not given. Columns: the target "
    "included. Met: ended in time, without a traceback, and with a variant that is better than a constant; of 10 "
    "rows and of one value, which leave nothing to learn, also with a variant that the gate turned down for a "
    "stated reason (exit code 3) or one error that says what to do (exit code 2)."
)


@dataclass(frozen=True)
class Odd:
    """An odd table.

    Attributes:
        rows: How many are given.
        metric: How it is scored.
        make: Returns so many rows, unseen ones included.
        learnable: Whether there is enough in it to do better than a constant.
    """

    rows: int
    metric: Score
    make: Callable[[int, np.random.Generator], pd.DataFrame]
    learnable: bool = True


def few_rows(n_rows: int, rng: np.random.Generator) -> pd.DataFrame:
    """Return two classes in turn that one of two columns tells apart."""
    y = np.arange(n_rows) % 2
    return pd.DataFrame({"x": y + 0.3 * rng.normal(size=n_rows), "noise": rng.normal(size=n_rows), TARGET: y})


def two_columns(n_rows: int, rng: np.random.Generator) -> pd.DataFrame:
    """Return a number and what it comes to."""
    x = rng.uniform(-3, 3, n_rows)
    return pd.DataFrame({"x": x, TARGET: np.sin(x) + 0.2 * rng.normal(size=n_rows)})


def many_columns(n_rows: int, rng: np.random.Generator) -> pd.DataFrame:
    """Return two classes and 1,999 numbers, twenty of which matter."""
    X = rng.normal(size=(n_rows, 1_999))
    y = X[:, :20].sum(axis=1) + 2 * rng.normal(size=n_rows) > 0
    return pd.DataFrame(X, columns=[f"x{j}" for j in range(X.shape[1])]).assign(**{TARGET: np.where(y, "yes", "no")})


def many_classes(n_rows: int, rng: np.random.Generator) -> pd.DataFrame:
    """Return 200 classes around as many centres."""
    y = np.arange(n_rows) % 200
    X = rng.normal(size=(200, 10))[y] * 2 + rng.normal(size=(n_rows, 10))
    names = [f"x{j}" for j in range(10)]
    return pd.DataFrame(X, columns=names).assign(kind=np.array(list("abcde"))[y % 5], **{TARGET: [f"c{k}" for k in y]})


def all_text(n_rows: int, rng: np.random.Generator) -> pd.DataFrame:
    """Return sentences only: a comment, mostly of the target's tone, and a title that says nothing."""
    y = rng.random(n_rows) < 0.4
    tone = np.where(rng.random(n_rows) < 0.1, ~y, y)

    def sentence(phrases: tuple[str, ...]) -> str:
        return " ".join([*rng.choice(FILLER, 3), *rng.choice(phrases, 2), *rng.choice(FILLER, 2)])

    comments = [sentence(GOOD if good else BAD) for good in tone]
    titles = [sentence(FILLER) for _ in range(n_rows)]
    return pd.DataFrame({"title": titles, "comment": comments, TARGET: np.where(y, "kept", "returned")})


def all_but_one_missing(n_rows: int, rng: np.random.Generator) -> pd.DataFrame:
    """Return 30 columns, 29 of which have no value in any row."""
    x = rng.normal(size=n_rows)
    empty = pd.DataFrame(np.nan, index=range(n_rows), columns=[f"empty{j}" for j in range(29)])
    return empty.assign(x=x, **{TARGET: x**2 + 0.3 * rng.normal(size=n_rows)})


def one_value(n_rows: int, rng: np.random.Generator) -> pd.DataFrame:
    """Return a target and thirty columns that have one value between them."""
    frame = pd.DataFrame(np.nan, index=range(n_rows), columns=[f"x{j}" for j in range(30)])
    frame.loc[0, "x0"] = 1.0
    return frame.assign(**{TARGET: rng.normal(size=n_rows)})


TABLES = {
    "10 rows": Odd(10, "AUC", few_rows, learnable=False),
    "2 columns": Odd(1_000, "RMSE", two_columns),
    "2,000 columns": Odd(1_000, "AUC", many_columns),
    "200 classes": Odd(6_000, "log-loss", many_classes),
    "all text": Odd(2_000, "AUC", all_text),
    "all columns missing but one": Odd(1_000, "RMSE", all_but_one_missing),
    "all values missing but one": Odd(500, "RMSE", one_value, learnable=False),
}
UNSEEN_SHARE = 1 / 3
LEAST_UNSEEN = 200


def main() -> int:
    """Fit each table; return 1 where one came to something else than a sensible end."""
    arguments = parser(__doc__, budget_s=30)
    arguments.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES), metavar="T", help="(all)")
    chosen = arguments.parse_args()
    if chosen.quick:
        chosen.tables, chosen.budget = ["10 rows", "all values missing but one"], 10
    keys = [{"table": table, "budget_s": chosen.budget, "seed": chosen.seed} for table in chosen.tables]
    return settle("odd_tables", keys, end_of, again=chosen.again, columns=COLUMNS, note=NOTE)


def end_of(*, table: str, budget_s: int, seed: int) -> dict[str, Any]:
    """Fit one table and say what it came to."""
    odd, place = TABLES[table], FOLDER / table.replace(" ", "-").replace(",", "")
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    n_unseen = max(round(odd.rows * UNSEEN_SHARE), LEAST_UNSEEN)
    frame = odd.make(odd.rows + n_unseen, np.random.default_rng(seed))
    train, test = frame.iloc[: odd.rows], frame.iloc[odd.rows :]
    train.to_parquet(place / "train.parquet", index=False)
    test.drop(columns=TARGET).to_parquet(place / "test.parquet", index=False)
    call = Fit(
        train=place / "train.parquet",
        test=place / "test.parquet",
        target=TARGET,
        budget_s=budget_s,
        seed=seed,
        home=place / "home",
    )
    taken = call.run(place / PREDICTIONS, timeout_s=budget_s + PATIENCE_S)
    bench_set, log = BenchSet(table, TARGET, odd.metric), (place / LOG).read_text(errors="replace")
    base = score(bench_set, test[TARGET], constant(bench_set, train[TARGET], n_rows=len(test)))
    out = place / PREDICTIONS
    reached = score(bench_set, test[TARGET], pd.read_parquet(out)) if out.exists() else None
    came_to, sensible = judged(taken.returncode, log, call.home)
    if odd.learnable:
        sensible = reached is not None and bench_set.loss(reached) < bench_set.loss(base) and taken.returncode == 0
    call.clean()
    return {
        "rows": len(train),
        "columns": train.shape[1],
        "metric": odd.metric,
        "score": reached,
        "constant": base,
        **as_row(taken),
        "came_to": came_to,
        "limit_s": limit_s(budget_s),
        "met": bool(sensible and taken.wall_s <= limit_s(budget_s) and "Traceback" not in log),
    }


def judged(returncode: int, log: str, home: Path) -> tuple[str, bool]:
    """Return what a fit came to, in a few words, and whether that is an end that a person can live with."""
    if returncode in (0, 3):
        came = newest(home)
        gates = came.told("gate") if came else []
        verdict = re.sub(r"^[\w.-]+/\d+: ", "", gates[-1]) if gates else ""
        return ("a variant" if returncode == 0 else f"turned down: {verdict}"), bool(verdict)
    errors = re.findall(r"^Error: (.+)$", log, flags=re.MULTILINE)
    hints = re.findall(r"^Hint: (.+)$", log, flags=re.MULTILINE)
    clear = returncode == 2 and len(errors) == 1 and len(hints) == 1
    return f"error: {errors[0]}" if errors else "no word", clear


def constant(bench_set: BenchSet, y: pd.Series, *, n_rows: int) -> pd.DataFrame:
    """Return the mean, or the shares of the classes, as predictions of ``n_rows`` rows."""
    if bench_set.task == "regression":
        return pd.DataFrame({"prediction": np.full(n_rows, y.mean())})
    shares = y.astype(str).value_counts(normalize=True).sort_index()
    return pd.DataFrame(np.tile(shares.to_numpy(), (n_rows, 1)), columns=list(shares.index))


if __name__ == "__main__":
    sys.exit(main())
