"""Metrics of a replica as Prometheus reads them: its calls by variant and version, and what it has in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest
from prometheus_client.registry import Collector

from serve.tally import Tally

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
MOST_VARIANTS = 500
"""Versions that have a label of their own; the others share one, so that thousands of variants do not drown a store."""
OTHER = "other"
_OTHERS = f"{OTHER}/{OTHER}"
CALL_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0)


class _Labelled(Collector):
    """A registry whose metrics have one label more; they are counted without it, which takes less."""

    def __init__(self, registry: CollectorRegistry, replica: str) -> None:
        self._registry, self._replica = registry, replica

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics with it."""
        for metric in self._registry.collect():
            metric.samples = [s._replace(labels={"replica": self._replica, **s.labels}) for s in metric.samples]
            yield metric


PREDICT = frozenset({"invoke", "infer"})
"""Routes whose calls count as a version's traffic; asking for its metadata is none."""


class Telemetry:
    """The metrics of one replica; used in its event loop.

    Attributes:
        tally: What of them is summed up in the ledger.
    """

    def __init__(self) -> None:
        self.tally = Tally()
        self._registry = CollectorRegistry()
        self._known: set[str] = set()
        self._children: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}
        self._calls = Counter(
            "factory_predictor_calls",
            "Calls by route, by the version that has answered, and by HTTP status.",
            ("route", "variant", "version", "status"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "factory_predictor_seconds",
            "Time from a call's arrival until its answer, by route and by the version that has answered.",
            ("route", "variant", "version"),
            buckets=CALL_S,
            registry=self._registry,
        )
        self._fallbacks = Counter(
            "factory_canary_failures",
            "Calls that a canary failed and its champion answered.",
            ("variant", "version"),
            registry=self._registry,
        )
        self._shadows = Counter(
            "factory_shadow_calls",
            "Calls that were mirrored to a shadow, by what came of it.",
            ("variant", "version", "outcome"),
            registry=self._registry,
        )
        self._features = Counter(
            "factory_online_features",
            "Features of entities that were missing or stale, or of the last read while the store was away.",
            ("variant", "version", "state"),
            registry=self._registry,
        )
        self._bundles = Gauge("factory_predictor_variants", "Versions in memory.", registry=self._registry)
        self._mb = Gauge("factory_predictor_variants_mb", "MB that they count with.", registry=self._registry)
        self._dropped = Gauge(
            "factory_predictions_not_written", "Predictions that did not fit into the log.", registry=self._registry
        )

    def call(self, route: str, answered_by: str, status: int, took_s: float) -> None:
        """Count a call.

        Args:
            route: Its last part, as ``invocations``.
            answered_by: ``name/version``; empty where it came to none.
            status: Of the answer.
            took_s: Seconds.
        """
        calls, seconds = self._of_call(route, answered_by, status)
        calls.inc()
        seconds.observe(took_s)
        if answered_by and route in PREDICT:
            self.tally.answered(answered_by, took_s=took_s, failed=status >= 500)

    def canary_failed(self, answered_by: str) -> None:
        """Count that a canary has failed."""
        self._fallbacks.labels(*self._labels(answered_by)).inc()
        self.tally.canary_failed(answered_by)

    def mirrored(self, answered_by: str, outcome: str) -> None:
        """Count what came of a call that was mirrored: ``compared``, ``failed`` or ``dropped``."""
        self._shadows.labels(*self._labels(answered_by), outcome).inc()

    def features(self, answered_by: str, cells: Mapping[str, int]) -> None:
        """Count features that were not as they should be, by state."""
        for state, n in cells.items():
            self._features.labels(*self._labels(answered_by), state).inc(n)

    def text(self, *, bundles: int, bundles_mb: float, dropped: int, replica: str) -> bytes:
        """Return all metrics, with what is in memory now.

        Args:
            bundles: Versions in memory.
            bundles_mb: MB that they count with.
            dropped: Predictions that did not fit into the log.
            replica: Number of this replica: a label of every metric.
        """
        self._bundles.set(bundles)
        self._mb.set(bundles_mb)
        self._dropped.set(dropped)
        return generate_latest(_Labelled(self._registry, replica))

    def _of_call(self, route: str, answered_by: str, status: int) -> tuple[Counter, Histogram]:
        """Return the counter and the histogram of calls; finding them by their labels takes longer than counting."""
        found = self._children.get((route, answered_by, status))
        if found is None:
            name, version = self._labels(answered_by)
            if name == OTHER and answered_by != _OTHERS:
                return self._of_call(route, _OTHERS, status)
            found = (self._calls.labels(route, name, version, str(status)), self._seconds.labels(route, name, version))
            self._children[route, answered_by, status] = found
        return found

    def _labels(self, answered_by: str) -> tuple[str, str]:
        if not answered_by:
            return "", ""
        if answered_by not in self._known:
            if len(self._known) >= MOST_VARIANTS:
                return OTHER, OTHER
            self._known.add(answered_by)
        name, _, version = answered_by.rpartition("/")
        return name, version
