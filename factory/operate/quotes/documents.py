"""What a quote says, as every door returns it."""

from __future__ import annotations

from typing import Self

from pydantic import Field

from factory.settings import Settings
from factory.spec import Document

COVERAGE = 0.8
"""Share of requests that end within the interval of their quote; one in ten takes less, one in ten more."""


class Interval(Document):
    """What is expected, and the ends between which :data:`COVERAGE` of the cases lie."""

    low: float
    expected: float
    high: float

    def times(self, factor: float) -> Interval:
        """Return it in another unit.

        >>> Interval(low=1, expected=2, high=4).times(10)
        Interval(low=10.0, expected=20.0, high=40.0)
        """
        return Interval(low=factor * self.low, expected=factor * self.expected, high=factor * self.high)


class Rates(Document):
    """What is charged for what an attempt holds, whether it is busy or not; usage is counted the same way."""

    cpu_hour: float = Field(ge=0)
    gpu_hour: float = Field(ge=0)
    gb_hour: float = Field(ge=0)
    currency: str = "USD"

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Return those of the settings."""
        return cls(
            cpu_hour=settings.cpu_hour,
            gpu_hour=settings.gpu_hour,
            gb_hour=settings.gb_hour,
            currency=settings.currency,
        )


class Holding(Document):
    """What an attempt holds of the cluster for as long as it runs."""

    cpus: float
    gpus: float
    memory_gb: float

    def hourly(self, rates: Rates) -> float:
        """Return what it costs for an hour.

        >>> rates = Rates(cpu_hour=0.05, gpu_hour=2.5, gb_hour=0.005)
        >>> Holding(cpus=2, gpus=1, memory_gb=4).hourly(rates)
        2.62
        """
        return self.cpus * rates.cpu_hour + self.gpus * rates.gpu_hour + self.memory_gb * rates.gb_hour


class Usual(Document):
    """What a request of a recipe usually takes, before anything of it is known.

    Attributes:
        time_s: Half of a team's earlier requests took less; that of the recipe's budget where there are none.
        money: What its resources cost for that long, in ``currency``.
        n_past: Earlier requests that it comes from.
    """

    time_s: float
    money: float
    currency: str
    n_past: int = 0


class Place(Document):
    """Where a request would stand in the queue."""

    position: int = Field(ge=1, description="1 is the next one to be started.")
    eta_s: float | None = Field(None, ge=0, description="Seconds until it starts; None where that cannot be told.")
    sentence: str


class Problem(Document):
    """A check that the request would fail."""

    field: str
    message: str


class ExpectedScore(Document):
    """What the history says of the score.

    Attributes:
        metric: Greater is better; losses are negative.
        score: On rows that the search has not seen, as a variant's.
        n_requests: Earlier requests that it comes from.
        nearest: Variant of the one whose data are most alike.
        distance: Of its data, in [0, 1].
    """

    metric: str
    score: Interval
    n_requests: int
    nearest: str
    distance: float


class Quote(Document):
    """What a request would take and come to; nothing has been started.

    Attributes:
        problems: Checks that it would fail, all that can be told before it starts; a request with one is not made.
        wall_s: From the start of its driver to its end; None where the request could not be understood.
        used_cpu_s: Processor time of all its processes.
        cpu_s: CPUs that it holds, times seconds; ``gpu_s`` and ``gb_s`` likewise. What usage counts.
        money: What these cost, in ``currency``.
        promise_s: Seconds after which the engine has ended, whatever happens: budget x 1.05 + 15.
        holding: What it holds while it runs.
        n_past: Earlier requests that correct the estimate.
        basis: Where the estimate comes from, for a person.
        score: What to expect; None where nothing is known.
        score_basis: Where that comes from, or why nothing is known, for a person.
        place: In the queue; None where nobody knows it.
        n_rows: Of the table, where its file tells; an estimate for a long CSV.
        n_columns: Likewise.
        notes: What could not be looked at.
        coverage: Share of requests that end within their intervals.
    """

    problems: tuple[Problem, ...] = ()
    wall_s: Interval | None = None
    used_cpu_s: Interval | None = None
    cpu_s: Interval | None = None
    gpu_s: Interval | None = None
    gb_s: Interval | None = None
    money: Interval | None = None
    currency: str
    promise_s: float | None = None
    holding: Holding | None = None
    n_past: int = 0
    basis: str = ""
    score: ExpectedScore | None = None
    score_basis: str = ""
    place: Place | None = None
    n_rows: int | None = None
    n_columns: int | None = None
    notes: tuple[str, ...] = ()
    coverage: float = COVERAGE
