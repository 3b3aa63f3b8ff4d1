"""Results with all that a reader needs to judge them: date, commit, hardware, versions, command."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
WORK = ROOT / "bench" / "work"

_PACKAGES = (
    "ray", "mlflow", "feast", "optuna", "scikit-learn", "lightgbm", "xgboost", "catboost", "torch", "tensorflow",
    "onnxruntime", "numpy", "pandas",
)  # fmt: skip

Row = Mapping[str, Any]


def factory_command() -> str:
    """Return the path of the ``factory`` command that belongs to this interpreter."""
    return str(Path(sys.executable).with_name("factory"))


def clean_environment(home: Path) -> dict[str, str]:
    """Return an environment in which only FACTORY_HOME is set of what would change how the factory works."""
    ours = ("FACTORY_", "RAY_", "MLFLOW_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return kept | {"FACTORY_HOME": str(home)}


def save(
    name: str,
    rows: Sequence[Row],
    *,
    columns: Mapping[str, str],
    note: str,
    documented: bool,
    draw: Callable[[Sequence[Row]], None] | None = None,
) -> None:
    """Print a table, append it to the claim's records, and render the Markdown and the chart of a documented run.

    Args:
        name: The claim's module.
        rows: One for each line; may hold more than is shown.
        columns: Heading by key of what is shown, in order.
        note: A sentence under the table: what is measured and what it is held against.
        documented: Whether this is the run that the documentation shows, or one with other arguments.
        draw: Writes its chart, where it has one.
    """
    record = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join([f"python -m bench.{name}", *sys.argv[1:]]),
        "commit": commit(),
        "hardware": hardware(),
        "versions": {"python": platform.python_version()} | {p: v for p in _PACKAGES if (v := _version(p))},
        "rows": list(rows),
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    records = json.loads(path.read_text()) if path.exists() else []
    path.write_text(json.dumps([*records, record], indent=1) + "\n")
    if documented:
        (RESULTS / f"{name}.md").write_text(_markdown(record, columns, note))
        if draw is not None:
            draw(rows)
    show(rows, columns, title=f"bench.{name}")


def show(rows: Sequence[Row], columns: Mapping[str, str], *, title: str) -> None:
    """Print a table of rows, with the headings of the columns by their keys."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for heading in columns.values():
        table.add_column(heading)
    for row in rows:
        table.add_row(*(_cell(row.get(key)) for key in columns))
    Console(width=None if sys.stdout.isatty() else 160, highlight=False).print(table)


def hardware() -> dict[str, Any]:
    """Return the processor's model, the cores this process may use, the memory and the system."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
    }


def commit() -> str:
    """Return the commit, marked where the sources differ from it."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", "factory", "serve", "recipes", "feature_repo")
        return git("rev-parse", "--short", "HEAD") + ("-changed" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 100 else f"{value:,.0f}"
    return str(value)


def _markdown(record: Mapping[str, Any], columns: Mapping[str, str], note: str) -> str:
    lines = [list(columns.values()), ["---"] * len(columns)]
    lines += [[_cell(row.get(key)) for key in columns] for row in record["rows"]]
    machine = record["hardware"]
    versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    told = [
        note,
        f"`{record['command']}`, {record['date'][:10]}, commit {record['commit']}; {machine['cpu']}, "
        f"{machine['cores']} cores, {machine['memory_gib']} GiB, {machine['system']}; {versions}.",
    ]
    return "\n".join(["| " + " | ".join(cells) + " |" for cells in lines] + ["", "\n\n".join(told)]) + "\n"
