"""What all commands print with: tables or JSON, a live progress line, one way to open the ledger."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from typing import Annotated, Any, NoReturn

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from factory.errors import FactoryError, SystemFault, UserFault, counted, error_of
from factory.ledger import Ledger, RequestRecord
from factory.ledger.wishes import cancelled
from factory.pipeline import Outcome, Progress
from factory.search.metric import Metric
from factory.settings import Settings, load_settings
from factory.spec import RequestState, Trial, TrialState, Variant, duration
from factory.variants.making import Made
from factory.variants.report import LeaderboardRow, ranked

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
REFUSED = 2
"""Exit code of what the person who asked has to mend."""
REJECTED = 3
"""Exit code of a request whose variant was turned down by its gate."""

WIDE = 160
"""Columns of a table that goes to a file or a pipe, where no terminal says how wide it is."""

out = Console(highlight=False, width=None if sys.stdout.isatty() else WIDE)
err = Console(stderr=True, highlight=False)


@contextmanager
def opened_ledger(*, patience_s: float | None = None) -> Iterator[tuple[Ledger, Settings]]:
    """Open the ledger of this process's settings, and close it at the end.

    Args:
        patience_s: For which a database that is away is waited for; the ledger's own where not given.
    """
    settings = load_settings()
    settings.prepare_home()
    with Ledger.open(settings.ledger, patience_s=patience_s) as ledger:
        yield ledger, settings


@contextmanager
def only_ours_on_stdout() -> Iterator[None]:
    """Send what libraries print to stderr: Ray tells of a dead worker on stdout, where a script expects our JSON."""
    with redirect_stdout(sys.stderr):
        yield


def print_json(document: object) -> None:
    """Print a document, or a list of them, as JSON."""
    sys.stdout.write(json.dumps(plain(document), indent=2, default=str) + "\n")


def plain(document: object) -> Any:
    """Return what JSON can hold of frozen documents and containers of them."""
    if isinstance(document, BaseModel):
        return document.model_dump(mode="json", by_alias=True)
    if isinstance(document, dict):
        return {key: plain(value) for key, value in document.items()}
    if isinstance(document, list | tuple):
        return [plain(item) for item in document]
    return document


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table; columns whose name ends in a dot are numbers, set to the right."""
    if title:
        out.print(title, style="bold", markup=False)
    drawn = Table(header_style="dim", box=None, pad_edge=False)
    for column in columns:
        drawn.add_column(column.rstrip("."), justify="right" if column.endswith(".") else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*("" if cell is None else str(cell) for cell in row))
    out.print(drawn)


def leaderboard(made: Made, metric: Metric) -> None:
    """Print the best trials of a search, and what its latency bound cost."""
    ranking(made.card.leaderboard, metric)
    out.print(f"[dim]{made.trade}[/dim]")


def ranking(found: Sequence[LeaderboardRow], metric: Metric, *, most: int = 12) -> None:
    """Print the best trials of a search: scores with their folds, cost and weight in the blend."""
    rows = [
        (
            row.number,
            row.family,
            row.framework,
            metric.display(row.score or 0),
            row.folds or "",
            _score_or_nothing(metric, row.train_score) + (" overfit?" if row.overfits else ""),
            _score_or_nothing(metric, row.test_score),
            f"{row.cost_s:.1f} s",
            f"{row.weight:.0%}" if row.weight else "",
        )
        for row in _worth_a_line([row for row in found if row.score is not None], most)
    ]
    states = {s: sum(row.state is s for row in found) for s in TrialState}
    counts = ", ".join(f"{n} {state}" for state, n in states.items() if n)
    columns = ("trial.", "family", "framework", metric.label + ".", "folds.", "training.", "test.", "cost.", "weight.")
    table(f"Leaderboard: {counted(len(found), 'trial')} ({counts})", columns, rows)


def _score_or_nothing(metric: Metric, score: float | None) -> str:
    return "" if score is None else metric.display(score)


def _worth_a_line(scored: Sequence[LeaderboardRow], most: int) -> list[LeaderboardRow]:
    """Members of the blend and the best trial of every family have a line, whatever their rank; then by rank."""
    best = {row.family: row.number for row in reversed(scored)}
    first = {row.number for row in scored if row.weight or best[row.family] == row.number}
    others = [row.number for row in scored if row.number not in first]
    chosen = {*first, *others[: max(0, most - len(first))]}
    return [row for row in scored if row.number in chosen]


def outcome(result: Outcome) -> None:
    """Print what a request came to."""
    rows = [
        (
            f"{v.name}/{v.version}",
            v.segment,
            v.state,
            _score(v),
            f"{v.latency_ms:.2f} ms",
            f"{v.size_mb:.1f} MB",
            f"{v.cost_s:.0f} s",
        )
        for v in result.variants
    ]
    table("Variants", ("variant", "segment", "gate", "score on unseen rows.", "one row.", "size.", "cost."), rows)
    if result.pooled_segments:
        out.print(f"Served by the pooled variant: {', '.join(result.pooled_segments)}")


def _score(variant: Variant) -> str:
    metric = Metric(variant.metric, variant.task)
    ends = sorted((metric.display(variant.score_low), metric.display(variant.score_high)))
    return f"{metric.label} {metric.display(variant.score)} ({ends[0]} to {ends[1]})"


def came_to(record: RequestRecord, variants: Sequence[Variant]) -> Outcome:
    """Return what a request that another process has made came to.

    Raises:
        UserFault, SystemFault: it failed, for this reason.
        Conflict: it was cancelled.
    """
    if record.state is RequestState.FAILED:
        raise _fault_of(record)
    if record.state is RequestState.CANCELLED:
        raise cancelled(record)
    return Outcome(request_id=record.id, state=record.state, variants=tuple(variants), verdicts=(), made=())


def _fault_of(record: RequestRecord) -> FactoryError:
    if record.error is None:
        return SystemFault(f"Request {record.id} failed.", hint=f"See `factory requests logs {record.id}`.")
    error, otherwise = record.error, UserFault if record.fault == "user" else SystemFault
    return error_of(error.code, error.message, hint=error.hint, details=error.details, otherwise=otherwise)


def end(
    result: Outcome,
    *,
    json: bool,
    following: Sequence[str],
    notes: Sequence[str] = (),
    rows: Sequence[LeaderboardRow] | None = None,
) -> NoReturn:
    """Print what a request came to and which commands may follow, and leave with its exit code.

    Args:
        result: What it came to.
        json: Whether for a machine.
        following: Commands, without ``factory``.
        notes: Sentences to add.
        rows: Of the leaderboard; those of what was made here where not given.
    """
    made = result.made[0] if result.made else None
    first = result.variants[0] if result.variants else None
    if json:
        found = rows if rows is not None else made.card.leaderboard if made is not None else ()
        print_json(
            {
                "request": result.request_id,
                "state": result.state,
                "variant": first,
                "variants": list(result.variants),
                "pooled_segments": list(result.pooled_segments),
                "leaderboard": list(found),
            }
        )
        raise typer.Exit(exit_code(result.state))
    if first is not None:
        metric = Metric(first.metric, first.task)
        if rows:
            ranking(rows, metric)
        elif made is not None:
            leaderboard(made, metric)
    outcome(result)
    for note in notes:
        out.print(note)
    out.print("Next: " + "   ".join(f"factory {words}" for words in following))
    raise typer.Exit(exit_code(result.state))


def exit_code(state: RequestState) -> int:
    """Return 0 for a variant that was made, 3 for one that its gate turned down."""
    return 0 if state in (RequestState.REGISTERED, RequestState.SERVING) else REJECTED


@dataclass
class ProgressLine:
    """A listener that prints each state as a line and keeps a live bar of trials, best score and time below.

    On a terminal the bar moves four times a second; elsewhere only the lines are printed.
    """

    quiet: bool = False
    _total_s: float = 0.0
    _trials: dict[tuple[str, int], Trial] = field(default_factory=dict)
    _last: Progress | None = None
    _deadline: float = 0.0

    def __enter__(self) -> ProgressLine:
        self._lock = threading.Lock()
        self._live = Live(get_renderable=self._bar, console=err, refresh_per_second=4, transient=True)
        if not self.quiet and err.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def __call__(self, progress: Progress) -> None:
        """Take one step."""
        with self._lock:
            self._deadline = time.monotonic() + progress.left_s
            self._total_s = self._total_s or progress.left_s
            changed = self._last is None or progress.state is not self._last.state
            self._last = progress
            if progress.trial is not None:
                self._trials[progress.segment, progress.trial.number] = progress.trial
                return
        if not self.quiet:
            state = progress.state.upper() if changed else ""
            err.print(Text.assemble((f"{state:<11}", "bold cyan"), " ", progress.message), soft_wrap=True)

    def _bar(self) -> Text:
        with self._lock:
            trials, last = list(self._trials.values()), self._last
        if last is None:
            return Text("")
        if last.state in (RequestState.RECEIVED, RequestState.QUEUED):
            return Text.assemble((f"{last.state.upper():<11}", "bold cyan"), " ", last.message)
        left_s = max(0.0, self._deadline - time.monotonic())
        share = min(1.0, 1 - left_s / max(self._total_s, 1e-9))
        filled = round(28 * share)
        done = [t for t in trials if t.finished]
        scored = [t for t in done if t.score is not None]
        best = ranked(scored)[0] if scored else None
        parts = [
            counted(len(done), "trial"),
            f"best {best.score:.5g} ({best.family})" if best is not None else "no score yet",
            f"{duration(left_s)} left",
        ]
        if last.segment:
            parts.insert(0, f"segment {last.segment}")
        return Text.assemble(
            (f"{last.state.upper():<11}", "bold cyan"), " ", ("━" * filled, "cyan"), ("━" * (28 - filled), "dim"),
            " ", " · ".join(parts),
        )  # fmt: skip
