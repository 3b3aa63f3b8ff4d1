"""Following a request that another process makes, with the progress line of one that is made here."""

from __future__ import annotations

import logging
import threading
import time
from typing import NoReturn

import typer

from factory import plugins
from factory.cli._backend import Backend
from factory.cli._console import ProgressLine, came_to, end, err, out
from factory.errors import FactoryError
from factory.ledger import Event, RequestRecord
from factory.operate.answers import ListedVariant
from factory.pipeline import Progress
from factory.spec import RequestState, Trial, Variant
from factory.variants.report import LeaderboardRow, leaderboard

log = logging.getLogger(__name__)

LOOK_S = 2.0
"""Between two looks at trials and at why a request waits, which are no events."""
USUAL_S = 60.0
"""Of a request whose budget is its recipe's, where nothing else says how long it takes."""
INTERRUPTED = 130


def follow(record: RequestRecord, factory: Backend, *, json: bool) -> NoReturn:
    """Wait for a request's end with its progress shown, print what came of it, and leave with its exit code."""
    if not json:
        out.print(f"Request {record.id}")
    try:
        with ProgressLine(quiet=json) as line, Watcher(record, factory, line) as watcher:
            ended = factory.wait(record.id, progress=watcher.tell)
    except KeyboardInterrupt:
        err.print(f"\nNo longer waiting; the request goes on. See: factory requests show {record.id}", markup=False)
        raise typer.Exit(INTERRUPTED) from None
    variants = [_bare(variant) for variant in factory.variants(request_id=record.id)]
    result = came_to(ended, variants)
    rows = _ranked(list(factory.trials(record.id)), variants[0]) if variants else ()
    shown = variants[0].name if variants else record.request.variant
    end(result, json=json, rows=rows, following=[f"variants show {shown}", "deployments list"])


class Watcher:
    """Tells a progress line of events as they come, and of what it sees itself in between: trials, and why it waits."""

    def __init__(self, record: RequestRecord, factory: Backend, line: ProgressLine) -> None:
        self._record, self._factory, self._line = record, factory, line
        budget = record.request.budget
        self._total_s = budget.time_s if budget is not None else record.expected_s or USUAL_S
        self._state = record.state
        self._began: Event | None = None
        self._left_s, self._seen_at = self._total_s, time.monotonic()
        self._held = ""
        self._finished: set[tuple[str, int]] = set()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look_again_and_again, name=f"watch-{record.id}", daemon=True)

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(LOOK_S)

    def tell(self, event: Event) -> None:
        """Show an event."""
        if self._began is None and event.state not in (RequestState.RECEIVED, RequestState.QUEUED):
            self._began = event
        if self._began is not None:
            # By the factory's own clock, which need not be this machine's; it began with the job's process.
            taken_s = (event.time - self._began.time).total_seconds() + float(self._began.payload.get("start_s", 0))
            self._left_s = max(0.0, self._total_s - taken_s)
        self._seen_at, self._state = time.monotonic(), event.state
        self._show(event.message)

    def _show(self, message: str, trial: Trial | None = None) -> None:
        waited_s = time.monotonic() - self._seen_at if self._began is not None else 0.0
        segment = trial.segment if trial is not None else ""
        left_s = max(0.0, self._left_s - waited_s)
        self._line(Progress(self._record.id, self._state, message, trial=trial, segment=segment, left_s=left_s))

    def _look_again_and_again(self) -> None:
        while not self._over.wait(LOOK_S):
            try:
                self._look()
            except (FactoryError, RuntimeError) as error:
                # The wait itself says when it is too much; and at the end the connection may be closed already.
                log.info("request %s: %s", self._record.id, error)

    def _look(self) -> None:
        record = self._factory.request(self._record.id)
        if record.held is not None and record.held.sentence != self._held:
            self._held = record.held.sentence
            self._show(self._held)
        if self._state is not RequestState.SEARCHING:
            return
        for trial in self._factory.trials(record.id):
            key = (trial.segment, trial.number)
            if trial.finished and key not in self._finished:
                self._finished.add(key)
                self._show("", trial)


def _bare(variant: ListedVariant) -> Variant:
    return Variant.model_validate(variant.model_dump(exclude={"aliases"}))


def _ranked(trials: list[Trial], variant: Variant) -> tuple[LeaderboardRow, ...]:
    """Return the leaderboard of a variant's search, without families that are not installed here."""
    known = set(plugins.names("families"))
    mine = [trial for trial in trials if trial.segment == variant.segment and trial.family in known]
    return leaderboard(mine, weights=variant.blend)
