"""``factory predict --out FOLDER``: 200,000 rows a second and core by a small LightGBM variant, 50 million in 3 GB.

Variant and rows are made.  Also
ended after some seconds, and gone on with.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from bench import small_variant
from bench.claim import bare_parser
from bench.command import as_row
from bench.record import WORK, clean_environment, factory_command, save
from bench.sampler import measure

FOLDER = WORK / "batch"
ROWS, QUICK_ROWS = 50_000_000, 2_000_000
GROUP_ROWS = 1_000_000
LEAST_A_SECOND = 200_000
"""And core."""
MOST_MB = 3_000
ENDED_AFTER = 1 / 3
"""Of the files of a whole run."""

COLUMNS = {
    "what": "what",
    "rows": "rows",
    "wall_s": "wall s",
    "a_second": "rows a second and core, the whole command",
    "peak_pss_mb": "peak PSS MB",
    "files": "files",
    "others_cores": "cores used by others",
    "met": "met",
}
NOTE = (
    f"Variant: {small_variant.ABOUT}. Rows: Parquet with row groups of {GROUP_ROWS:,}. "
    "The whole command, Ray's start and the reading and writing of files included; PSS summed over all processes. "
    f"Met: {LEAST_A_SECOND:,} rows a second and core or more, and {MOST_MB:,} MB or less. Ended: by SIGINT when "
    "a third of the files are there; the second run goes on, and no row is predicted twice."
)


def main() -> int:
    """Make variant and rows, predict them; return 1 where that was slow, large or not resumed."""
    arguments = bare_parser(__doc__, quick=f"{QUICK_ROWS:,} rows")
    arguments.add_argument("--rows", type=int, default=ROWS, metavar="N", help=f"to be predicted (default: {ROWS:,})")
    chosen = arguments.parse_args()
    n_rows = QUICK_ROWS if chosen.quick else chosen.rows
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    home = FOLDER / "home"
    name = small_variant.make_variant(home, FOLDER, name="batch")
    data = write_rows(FOLDER / "rows.parquet", n_rows)
    whole = at_once(name, data, home, n_rows)
    rows = [whole, *ended(name, data, home, n_rows, n_files=max(1, round(ENDED_AFTER * whole["files"])))]
    save("batch", rows, columns=COLUMNS, note=NOTE, documented=len(sys.argv) == 1)
    shutil.rmtree(FOLDER)
    return 0 if all(row["met"] for row in rows) else 1


def write_rows(path: Path, n_rows: int) -> Path:
    """Write so many rows of normally distributed numbers."""
    random = np.random.default_rng(1)
    schema = pa.schema([("id", pa.int64()), *((name, pa.float64()) for name in small_variant.NAMES)])
    with parquet.ParquetWriter(path, schema, compression="snappy", use_dictionary=False) as writer:
        for start in range(0, n_rows, GROUP_ROWS):
            n = min(GROUP_ROWS, n_rows - start)
            numbers = {name: random.normal(size=n) for name in small_variant.NAMES}
            writer.write_table(pa.table({"id": np.arange(start, start + n), **numbers}, schema=schema))
    return path


def command(name: str, data: Path, out: Path) -> list[str]:
    """Return the command that a user types."""
    return [factory_command(), "predict", name, "--data", str(data), "--out", str(out), "--keep", "id"]


def at_once(name: str, data: Path, home: Path, n_rows: int) -> dict[str, Any]:
    """Predict everything in one run."""
    out = FOLDER / "at-once"
    taken = measure(
        command(name, data, out), env=clean_environment(home), cwd=FOLDER, log=FOLDER / "predict.log", timeout_s=3_600
    )
    row = {"what": "at once", "rows": n_rows, **as_row(taken), **_whole(out, n_rows)}
    cores = len(os.sched_getaffinity(0))
    row["a_second"] = round(n_rows / taken.wall_s / cores)
    row["met"] &= taken.returncode == 0 and row["a_second"] >= LEAST_A_SECOND and taken.peak_pss_mb <= MOST_MB
    return row


def ended(name: str, data: Path, home: Path, n_rows: int, *, n_files: int) -> list[dict[str, Any]]:
    """End a run when so many files are there, and go on with it."""
    out = FOLDER / "ended"

    def there() -> list[Path]:
        return list(out.glob("part-*.parquet"))

    with (FOLDER / "ended.log").open("wb") as log:
        process = subprocess.Popen(
            command(name, data, out), env=clean_environment(home), cwd=FOLDER, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
        while process.poll() is None and len(there()) < n_files:
            time.sleep(0.1)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGINT)
        process.wait(timeout=60)
    before = {path.name: path.stat().st_mtime_ns for path in there()}
    first = {"what": "ended", "files": len(before), "met": not (out / "_manifest.json").exists() or not before}
    taken = measure(
        command(name, data, out), env=clean_environment(home), cwd=FOLDER, log=FOLDER / "again.log", timeout_s=3_600
    )
    kept = all((out / part).stat().st_mtime_ns == moment for part, moment in before.items())
    second = {"what": "gone on with", "rows": n_rows, **as_row(taken), **_whole(out, n_rows)}
    second["met"] &= taken.returncode == 0 and kept
    return [first, second]


def _whole(out: Path, n_rows: int) -> dict[str, Any]:
    """Return how many files there are, and whether each row is in one of them, once."""
    try:
        manifest = json.loads((out / "_manifest.json").read_text())
    except OSError:
        return {"files": 0, "met": False}
    there = np.zeros(n_rows, dtype=bool)
    n_found = 0
    for file in manifest["files"]:
        ids = parquet.read_table(out / file["file"], columns=["id"])["id"].to_numpy()
        there[ids] = True
        n_found += len(ids)
    return {"files": len(manifest["files"]), "met": bool(there.all()) and n_found == n_rows}


if __name__ == "__main__":
    sys.exit(main())
