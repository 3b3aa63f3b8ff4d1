"""Single rows of many callers predicted in one go, where that is cheaper and changes no answer.

Most of what a forest takes for one row it takes for eight as well.  So calls
that come while others of the same variant are predicted wait for these, and
are then predicted together.  Who is alone waits for nobody.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

from factory.data.columns import FEW
from serve import predictions
from serve.inputs import NamedColumns, NamelessColumns
from serve.joined import joined, shape_of, shares
from serve.loaded import Loaded
from serve.predictions import INLINE_MS, Prediction
from serve.remembered import in_thread

GAIN_MS = 0.1
"""That a row has to take less among others: waiting for them and parting the answers takes about a third of it."""
MOST_ROWS = FEW
"""Predicted in one go. Values of more rows are read in another way, and would hold up the event loop."""
MOST_OF_ONE = 8
"""Rows of a call that is predicted with others; larger ones gain little."""

Columns = NamedColumns | NamelessColumns


@dataclass(frozen=True, eq=False)
class _Waiting:
    """A call that waits.

    Attributes:
        columns: To be predicted.
        shape: Calls of one shape are predicted together.
        made: Gets its prediction, or its error; is cancelled where the caller has given up.
    """

    columns: Columns
    shape: tuple[object, ...]
    made: asyncio.Future[Prediction]

    def tell(self, made: Prediction | Exception) -> None:
        """Tell the caller, who may have given up."""
        if self.made.done():
            return
        if isinstance(made, Exception):
            self.made.set_exception(made)
        else:
            self.made.set_result(made)


class MicroBatches:
    """The calls of one replica that are predicted together; used in its event loop.

    Args:
        threads: Where variants predict that are slow.
    """

    def __init__(self, threads: Executor) -> None:
        self._threads = threads
        self._waiting: dict[tuple[str, int], list[_Waiting]] = {}
        self._predicted: set[tuple[str, int]] = set()
        self._going: set[asyncio.Task[None]] = set()

    def take(self, columns: Columns, loaded: Loaded) -> bool:
        """Return whether a call is to be predicted with others; who is told so asks for that, the others go on at once.

        Args:
            columns: Of a small body.
            loaded: Who predicts.
        """
        if loaded.times.gain_ms < GAIN_MS or columns.n_rows > MOST_OF_ONE:
            return False
        key = _key(loaded)
        if loaded.times.row_ms >= INLINE_MS or key in self._waiting or key in self._predicted:
            return True
        # The first one of a turn of the loop waits for nobody; others that are ready in it come before its end is told.
        self._predicted.add(key)
        asyncio.get_running_loop().call_soon(self._predicted.discard, key)
        return False

    async def predicted(self, columns: Columns, loaded: Loaded) -> Prediction:
        """Return the prediction of columns, which are checked, made with those of others who wait for it.

        The answers have the bits that they have alone, and a wrong call fails alone.

        Raises:
            InvalidData: as :func:`~serve.inputs.arrays` does.
        """
        one = _Waiting(columns, shape_of(columns), asyncio.get_running_loop().create_future())
        key = _key(loaded)
        if key in self._waiting:
            self._waiting[key].append(one)
        else:
            self._waiting[key] = [one]
            # Its own task, since the first caller may give up. Those who are ready now come before it.
            task = asyncio.create_task(self._go(key, loaded))
            self._going.add(task)
            task.add_done_callback(self._going.discard)
        return await one.made

    async def _go(self, key: tuple[str, int], loaded: Loaded) -> None:
        """Predict until nobody waits."""
        waiting = self._waiting[key]
        try:
            while waiting:
                await self._predict(_next(waiting), loaded)
                await asyncio.sleep(0)
        finally:
            del self._waiting[key]

    async def _predict(self, group: Sequence[_Waiting], loaded: Loaded) -> None:
        """Predict a group in one go; where that fails one by one, so that an error is told to whoever has made it."""
        payloads = [one.columns for one in group]
        if len(group) > 1:
            try:
                whole = await self._made(joined(payloads), loaded)
            except Exception:  # noqa: BLE001 - it is raised again to those whose error it is
                whole = None
            if whole is not None:
                for one, share in zip(group, shares(whole, payloads), strict=True):
                    one.tell(share)
                return
        for one in group:
            try:
                one.tell(await self._made(one.columns, loaded))
            except Exception as error:  # noqa: BLE001 - it is its caller's
                one.tell(error)

    async def _made(self, columns: Columns, loaded: Loaded) -> Prediction:
        # The first row takes what it takes alone, and each further one less.
        ms = loaded.times.row_ms + (columns.n_rows - 1) * (loaded.times.row_ms - loaded.times.gain_ms)
        if ms < INLINE_MS:
            return predictions.predicted(columns, loaded)
        return await in_thread(self._threads, lambda: predictions.predicted(columns, loaded))


def _key(loaded: Loaded) -> tuple[str, int]:
    return loaded.variant.name, loaded.variant.version


def _next(waiting: list[_Waiting]) -> list[_Waiting]:
    """Take those out that are predicted next: of the first one's shape, in their order; none who has given up."""
    group: list[_Waiting] = []
    left: list[_Waiting] = []
    rows = 0
    for one in waiting:
        if one.made.done():
            continue
        if (not group or one.shape == group[0].shape) and rows + one.columns.n_rows <= MOST_ROWS:
            group.append(one)
            rows += one.columns.n_rows
        else:
            left.append(one)
    waiting[:] = left
    return group
