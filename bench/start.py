"""``import factory`` and ``factory --help`` take less than 0.6 s and import no framework."""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from typing import Any

from bench.record import WORK, clean_environment, factory_command, save

LIMIT_S = 0.6
HEAVY = (
    "numpy", "pandas", "pyarrow", "sklearn", "scipy", "ray", "mlflow", "feast", "optuna", "torch", "tensorflow",
    "keras", "lightgbm", "xgboost", "catboost", "onnx", "onnxruntime", "duckdb", "sqlalchemy",
)  # fmt: skip
"""What must not be imported yet: all of it is slow, and none is needed to print a help text."""

IMPORT = "import factory"
HELP = "import contextlib, sys; sys.argv = ['factory', '--help']; import factory.cli"
RUN_HELP = f"{HELP}\nwith contextlib.suppress(SystemExit): factory.cli.main()\n"
_LIST = f"\nimport sys; print(*sorted({set(HEAVY)!r} & set(sys.modules)), file=sys.stderr)"


def main() -> int:
    """Measure both starts and an empty Python beside them; return 1 where one is late or heavy."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15, help="starts of each command (default: 15)")
    repeats = parser.parse_args().repeats
    WORK.mkdir(parents=True, exist_ok=True)
    rows = [
        _row("python -c pass", [sys.executable, "-c", "pass"], "", repeats),
        _row("import factory", [sys.executable, "-c", IMPORT], IMPORT, repeats),
        _row("factory --help", [factory_command(), "--help"], RUN_HELP, repeats),
    ]
    columns = {
        "what": "what",
        "median_s": "median s",
        "slowest_s": "slowest s",
        "limit_s": "limit s",
        "heavy": "frameworks imported",
        "met": "met",
    }
    note = f"Whole process, {repeats} starts, files in the page cache. Looked for: {', '.join(HEAVY)}."
    save("start", rows, columns=columns, note=note, documented=len(sys.argv) == 1)
    return 0 if all(row["met"] for row in rows) else 1


def _row(what: str, command: list[str], code: str, repeats: int) -> dict[str, Any]:
    _start(command)
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        _start(command)
        times.append(time.perf_counter() - started)
    median = statistics.median(times)
    heavy = _start([sys.executable, "-c", code + _LIST]).strip()
    return {
        "what": what,
        "median_s": round(median, 3),
        "slowest_s": round(max(times), 3),
        "limit_s": LIMIT_S,
        "heavy": heavy or "none",
        "met": median < LIMIT_S and not heavy,
    }


def _start(command: list[str]) -> str:
    """Run a command that has to succeed; return its standard error."""
    env = clean_environment(WORK / "start")
    return subprocess.run(command, env=env, cwd=WORK, capture_output=True, text=True, check=True).stderr


if __name__ == "__main__":
    sys.exit(main())
