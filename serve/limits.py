"""What one replica of the predictor takes on."""

from __future__ import annotations

from dataclasses import dataclass

from factory.settings import Settings


@dataclass(frozen=True)
class Limits:
    """What one replica takes on.

    Attributes:
        rows: Rows of one request at most.
        body_mb: Body of one request at most, in MB.
        ongoing: Requests that are answered at one time; the next is told to come again.
        deadline_s: Seconds until a request is answered, with an error if need be.
        bundles: Bundles in memory at most; small ones take more memory than their files, so MB alone are no bound.
        bundles_mb: MB of bundles in memory at most.
        a_minute: Calls that a token may make in a minute.
    """

    rows: int
    body_mb: float
    ongoing: int = 64
    deadline_s: float = 30.0
    bundles: int = 64
    bundles_mb: float = 2048.0
    a_minute: float = 60_000.0

    @classmethod
    def of(cls, settings: Settings) -> Limits:
        """Return the limits that the settings name."""
        return cls(
            rows=settings.max_request_rows,
            body_mb=settings.max_request_mb,
            ongoing=settings.serve_max_ongoing,
            deadline_s=settings.serve_deadline_s,
            bundles_mb=settings.serve_cache_mb,
            a_minute=settings.predictions_a_minute,
        )
