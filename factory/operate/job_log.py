"""What a job does, as lines of JSON for machines: each state and each trial, with request, attempt, trial and trace."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from factory.ledger import Ledger
from factory.operate.attending import log_path
from factory.operate.json_logs import JsonLines
from factory.pipeline import Listener, Progress
from factory.settings import Settings

_log = logging.getLogger("factory.job")


@contextmanager
def job_log(request_id: str, *, ledger: Ledger, settings: Settings) -> Iterator[Listener]:
    """Write what happens meanwhile to ``FACTORY_HOME/logs/ID/ATTEMPT.jsonl``, warnings of the factory included.

    Yields:
        What is to be told each step; it does nothing in a process that is no attempt of a controller's.
    """
    attempts = [attempt for attempt in ledger.attempts(request_id) if attempt.ended_at is None]
    if not attempts:
        yield lambda _: None
        return
    number = attempts[-1].number
    ids = {"request": request_id, "attempt": str(number)}
    if trace := ledger.events(request_id, limit=1)[0].payload.get("trace"):
        ids["trace"] = str(trace)
    path = log_path(settings, request_id, number).with_suffix(".jsonl")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handler = logging.FileHandler(path, encoding="utf-8")
    except OSError as error:  # a log is nothing to fail for
        _log.warning("%s is not written: %s", path, error.strerror or error)
        yield lambda _: None
        return
    handler.setFormatter(JsonLines(ids))
    level, _log.propagate = _log.level, False
    _log.setLevel(logging.INFO)
    ours = logging.getLogger("factory")
    for logger in (_log, ours):
        logger.addHandler(handler)
    try:
        yield _tell
    finally:
        for logger in (_log, ours):
            logger.removeHandler(handler)
        _log.setLevel(level)
        _log.propagate = True
        handler.close()


def _tell(progress: Progress) -> None:
    about = {"state": progress.state.value, "segment": progress.segment or None}
    trial = progress.trial
    if trial is None:
        _log.info("%s", progress.message, extra=about)
    elif trial.finished:
        said = {"trial": trial.number, "family": trial.family, "score": trial.score, "cost_s": trial.cost_s}
        _log.info("trial %d of %s: %s", trial.number, trial.family, trial.state, extra=about | said)
