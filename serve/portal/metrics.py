"""Metrics as Prometheus reads them: of the calls, from memory; of queue, jobs and cost, from the ledger when asked."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from threading import Lock
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from factory.errors import FactoryError
from factory.ledger.moments import now
from factory.ledger.records import UNDER_WAY
from factory.operate.controller import LEAD
from factory.operate.figures import admissions, ends
from serve.portal.team_documents import TeamUsage

if TYPE_CHECKING:
    from serve.portal.context import Portal

log = logging.getLogger(__name__)

CALL_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)
WAIT_S = (1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 4 * 3600.0, 12 * 3600.0, 24 * 3600.0)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """The metrics of one portal.

    Args:
        portal: Has the ledger.
    """

    def __init__(self, portal: Portal) -> None:
        self._portal = portal
        self._registry = CollectorRegistry()
        self._calls = Histogram(
            "factory_http_seconds",
            "Time until the answer of a call was complete, by the template of its route.",
            ("method", "route", "status"),
            buckets=CALL_S,
            registry=self._registry,
        )
        self._waits = Histogram(
            "factory_admission_seconds",
            "Time from a request's receipt to its first admission, of those admitted since this process started.",
            ("team",),
            buckets=WAIT_S,
            registry=self._registry,
        )
        self._last_admission = now()
        self._looking = Lock()
        self._registry.register(_OfLedger(portal))

    def note_call(self, method: str, route: str, status: int, took_s: float) -> None:
        """Count a call."""
        self._calls.labels(method, route, str(status)).observe(took_s)

    def text(self) -> bytes:
        """Return all metrics; those of the ledger are missing where it cannot be read."""
        with self._looking:
            try:
                for one in admissions(self._portal.ledger, after=self._last_admission):
                    self._waits.labels(one.team).observe(one.waited_s)
                    self._last_admission = one.at
            except FactoryError as error:
                log.warning("metrics without admissions: %s", error.message)
            return generate_latest(self._registry)


class _OfLedger:
    """Reads the ledger each time that it is asked."""

    def __init__(self, portal: Portal) -> None:
        self._portal = portal

    def describe(self) -> list[Metric]:
        """Return nothing: what there is depends on the ledger, and is not looked up at registration."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        up = GaugeMetricFamily("factory_ledger_up", "Whether the ledger can be read.")
        try:
            found = list(self._read())
        except FactoryError as error:
            log.warning("metrics without the ledger: %s", error.message)
            up.add_metric((), 0)
            yield up
            return
        up.add_metric((), 1)
        yield from (up, *found)

    def _read(self) -> Iterator[Metric]:
        ledger, moment = self._portal.ledger, now()
        requests = GaugeMetricFamily("factory_requests", "Requests.", labels=("team", "state"))
        oldest = GaugeMetricFamily(
            "factory_oldest_request_seconds", "Age of the oldest request under way.", labels=("team", "state")
        )
        for count in ledger.state_counts():
            requests.add_metric((count.team, count.state.value), count.n)
            if count.state in UNDER_WAY:
                oldest.add_metric((count.team, count.state.value), max((moment - count.oldest).total_seconds(), 0.0))
        yield from (requests, oldest)
        yield from self._queue()
        yield from self._attempts()
        yield from self._usage()
        leads = GaugeMetricFamily("factory_controller_leads", "Whether a controller leads.")
        leads.add_metric((), ledger.leader(LEAD) is not None)
        listeners = GaugeMetricFamily("factory_event_listeners", "Open streams of events, of this process.")
        listeners.add_metric((), self._portal.feed.n_listeners)
        yield from (leads, listeners)

    def _queue(self) -> Iterator[Metric]:
        length = GaugeMetricFamily("factory_queue_length", "Requests that wait to be admitted.", labels=("team",))
        age = GaugeMetricFamily(
            "factory_queue_oldest_seconds", "Age of the oldest request that waits to be admitted.", labels=("team",)
        )
        since: dict[str, list[float]] = {}
        for queued in self._portal.ledger.waiting():
            since.setdefault(queued.team, []).append(queued.since.timestamp())
        for team, moments in sorted(since.items()):
            length.add_metric((team,), len(moments))
            age.add_metric((team,), max(now().timestamp() - min(moments), 0.0))
        yield from (length, age)

    def _attempts(self) -> Iterator[Metric]:
        n_open = GaugeMetricFamily("factory_open_attempts", "Jobs that are admitted.", labels=("team",))
        held = GaugeMetricFamily("factory_held", "What open attempts hold.", labels=("team", "resource"))
        sums: dict[str, list[float]] = {}
        for attempt in self._portal.ledger.open_attempts():
            mine = sums.setdefault(attempt.team, [0.0, 0.0, 0.0, 0.0])
            for place, amount in enumerate((1.0, attempt.cpus, attempt.gpus, attempt.memory_gb or 0.0)):
                mine[place] += amount
        for team, (n, *amounts) in sorted(sums.items()):
            n_open.add_metric((team,), n)
            for resource, amount in zip(("cpus", "gpus", "memory_gb"), amounts, strict=True):
                held.add_metric((team, resource), amount)
        ended = CounterMetricFamily("factory_attempts_ended", "Jobs, by how they ended.", labels=("team", "outcome"))
        for one in ends(self._portal.ledger):
            ended.add_metric((one.team, one.outcome), one.n)
        yield from (n_open, held, ended)

    def _usage(self) -> Iterator[Metric]:
        trials = GaugeMetricFamily("factory_month_trials", "Trials that finished this month.", labels=("team",))
        seconds = GaugeMetricFamily("factory_month_trial_seconds", "Seconds of these trials.", labels=("team",))
        cost = GaugeMetricFamily("factory_month_cost", "Cost of what was held this month.", labels=("team", "currency"))
        for usage in self._portal.ledger.usage():
            priced = TeamUsage.of(usage, self._portal.settings)
            trials.add_metric((usage.team,), usage.trials)
            seconds.add_metric((usage.team,), usage.trial_s)
            cost.add_metric((usage.team, priced.currency), priced.cost)
        ended = CounterMetricFamily("factory_trials", "Trials that finished.", labels=("team",))
        took = CounterMetricFamily("factory_trial_seconds", "Seconds of these trials.", labels=("team",))
        for team, (n, trial_s) in self._portal.ledger.trials_ever().items():
            ended.add_metric((team,), n)
            took.add_metric((team,), trial_s)
        yield from (trials, seconds, cost, ended, took)
