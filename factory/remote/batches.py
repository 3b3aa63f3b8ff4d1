"""Batches over HTTP."""

from __future__ import annotations

from pydantic import BaseModel

from factory.ledger import Batch, BatchRun
from factory.remote.calls import Calls, part


class BatchCalls(Calls):
    """The part of the client that knows batches."""

    def batches(self, *, team: str | None = None) -> list[Batch]:
        """Return batches by name, each with its last run; those of one team where given."""
        return list(self._pages(Batch, "batches", query={"team": team}))

    def batch(self, name: str) -> Batch:
        """Return a batch.

        Raises:
            NotFound: there is none, or the token does not see it.
        """
        return self._read(Batch, self._get(f"batches/{part(name)}"))

    def create_batch(self, document: object) -> Batch:
        """Declare a batch.

        Args:
            document: Of it: plain values, or a ``BatchWish``.

        Raises:
            InvalidRequest: it is not valid; all problems are reported.
            Conflict: there is one of this name.
        """
        plain = document.model_dump(mode="json", exclude_none=True) if isinstance(document, BaseModel) else document
        return self._read(Batch, self._json(self._call("POST", "batches", body=plain)))

    def enable_batch(self, name: str, enabled: bool) -> Batch:
        """Let the schedule of a batch count from now on, or rest."""
        word = "resume" if enabled else "pause"
        return self._read(Batch, self._json(self._call("POST", f"batches/{part(name)}/{word}")))

    def delete_batch(self, name: str) -> None:
        """Forget a batch and its runs; what they have written stays.

        Raises:
            Conflict: a run is under way.
        """
        self._call("DELETE", f"batches/{part(name)}")

    def run_batch(self, name: str) -> BatchRun:
        """Start a run now.

        Raises:
            Conflict: one is under way.
        """
        return self._read(BatchRun, self._json(self._call("POST", f"batches/{part(name)}/runs")))

    def batch_runs(self, name: str) -> list[BatchRun]:
        """Return the newest runs of a batch, the newest first."""
        return self._items(BatchRun, f"batches/{part(name)}/runs")

    def batch_log(self, name: str, number: int) -> str:
        """Return what the job of a run has printed so far."""
        return self._call("GET", f"batches/{part(name)}/runs/{number}/log").text
