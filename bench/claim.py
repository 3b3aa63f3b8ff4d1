"""What the long measurements share: their arguments, where the tables are, and rows that outlive an interruption."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from bench.record import WORK, commit, save, show
from bench.sets import SOURCE_VARIABLE, source

AGAIN, QUICK = "--again", "--quick"
PATIENCE_S = 300.0
"""Beyond the budget, after which a command is killed."""


def parser(about: str | None, *, budget_s: int | None, seed: str = "everything random") -> argparse.ArgumentParser:
    """Return a parser with the arguments that every long measurement has.

    Args:
        about: What is measured.
        budget_s: The default; None where each table has its own.
        seed: What is random; without it there is no ``--seed``.
    """
    made = bare_parser(about, seed=seed, quick="a small part of it in less than a minute")
    help_ = f"of each request (default: {budget_s or 'as the table needs'})"
    made.add_argument("--budget", type=int, default=budget_s, metavar="SECONDS", help=help_)
    made.add_argument(AGAIN, action="store_true", help="make again what an earlier run has made")
    return made


def bare_parser(about: str | None, *, seed: str = "", quick: str = "") -> argparse.ArgumentParser:
    """Return a parser whose help is a module's text.

    Args:
        about: What is measured.
        seed: What is random; without it there is no ``--seed``.
        quick: What is done in short; without it there is no ``--quick``.
    """
    made = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    if seed:
        made.add_argument("--seed", type=int, default=0, help=f"of {seed} (default: 0)")
    if quick:
        made.add_argument(QUICK, action="store_true", help=f"{quick}; proves nothing")
    return made


def tables() -> Path | None:
    """Return the folder with the tables; say that the measurement is skipped where there is none."""
    folder = source()
    if folder is None:
        print(f"Skipped: {SOURCE_VARIABLE} names no folder with the tables.")
    return folder


def report(name: str, rows: Sequence[Mapping[str, Any]], *, columns: Mapping[str, str], note: str) -> None:
    """Print the rows and save them, unless they are of a quick run, as :func:`bench.record.save` does.

    The documentation shows the run in which no argument changed what is measured.
    """
    if QUICK in sys.argv:
        show(rows, columns, title=f"bench.{name} {QUICK}")
    else:
        save(name, rows, columns=columns, note=note, documented=set(sys.argv[1:]) <= {AGAIN})


class Journal:
    """Rows by what they are of, on disk as soon as they are made; of a run that was stopped none is made twice."""

    def __init__(self, path: Path, *, again: bool = False) -> None:
        self._path = path
        if again:
            path.unlink(missing_ok=True)
        self._rows = dict(_lines(path)) if path.exists() else {}

    @classmethod
    def of(cls, name: str, *, again: bool) -> Journal:
        """Return the journal of a measurement, emptied where all is to be made again."""
        return cls(WORK / name / "rows.jsonl", again=again)

    def row(self, key: Mapping[str, Any], make: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """Return the row of a key: the one that is there, or one that is made, stored and printed now.

        Args:
            key: What it is of, budget and seed included; a part of the row.
            make: Measures the rest of it, as JSON can hold it.
        """
        name = json.dumps(key, sort_keys=True)
        if name not in self._rows:
            began = {"commit": commit(), "date": datetime.now(UTC).isoformat(timespec="seconds")}
            self._rows[name] = {**key, **make(), **began}
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # A process that was killed may have left half a line.
            with self._path.open("a", encoding="utf-8") as file:
                file.write("\n" + json.dumps({"key": name, "row": self._rows[name]}) + "\n")
                file.flush()
                os.fsync(file.fileno())
            shown = {k: v for k, v in self._rows[name].items() if not isinstance(v, list | dict)}
            print(json.dumps(shown), flush=True)
        return self._rows[name]


def settle(
    name: str,
    keys: Iterable[Mapping[str, Any]],
    make: Callable[..., Mapping[str, Any]],
    *,
    again: bool,
    columns: Mapping[str, str],
    note: str,
) -> int:
    """Make the row of each key that is not there yet, report all, and return 1 where one says that it is not met.

    Args:
        name: Of the measurement.
        keys: What the rows are of, in their order.
        make: Measures the rest of a row; called with its key as keywords.
        again: Whether rows that are there are made again.
        columns: Of the table.
        note: Below it.
    """
    journal = Journal.of(name, again=again)
    rows = [journal.row(key, partial(make, **key)) for key in keys]
    report(name, rows, columns=columns, note=note)
    return 0 if all(row["met"] for row in rows) else 1


def _lines(path: Path) -> list[tuple[str, dict[str, Any]]]:
    found = []
    for line in path.read_text(encoding="utf-8").split("\n"):
        try:
            known = json.loads(line)
        except json.JSONDecodeError:
            continue
        found.append((known["key"], known["row"]))
    return found
