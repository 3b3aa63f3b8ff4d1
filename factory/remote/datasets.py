"""Datasets over HTTP: streamed from disk, known afterwards by the digest of their bytes."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
from pydantic import BaseModel

from factory.errors import Detail, InvalidData, InvalidRequest
from factory.ledger import Upload
from factory.remote.calls import Calls, part

if TYPE_CHECKING:
    import pandas as pd

CHUNK_BYTES = 256 * 1024
UPLOAD_S = 300.0
"""For the answer after the last byte: the portal counts the rows of a large CSV first."""


class _Dataset(BaseModel):
    dataset: Upload


class DatasetCalls(Calls):
    """The part of the client that knows datasets."""

    def upload(
        self,
        data: str | Path | pd.DataFrame,
        *,
        team: str | None = None,
        name: str | None = None,
        progress: Callable[[int, int], None] = lambda _sent, _total: None,
    ) -> Upload:
        """Send a table, and return it as it is kept; ``dataset: {upload: <digest>, target: ...}`` orders from it.

        The same bytes are kept once, so that sending them again changes nothing.

        Args:
            data: A Parquet, CSV or Arrow file, which is read as it is sent; or a data frame, sent as Parquet.
            team: Whose it is; the token's team where not given.
            name: What it is called; the file's name where not given.
            progress: Called with the bytes that were sent and with all there are, now and then.

        Raises:
            InvalidData: the file cannot be read, or is not the table that it says it is.
            ServiceFault: the portal cannot be reached.
        """
        if not isinstance(data, str | Path):
            with tempfile.TemporaryDirectory(prefix="factory-upload-") as folder:
                path = Path(folder) / "data.parquet"
                _write(data, path)
                return self.upload(path, team=team, name=name or path.name, progress=progress)
        path = Path(data).expanduser()
        try:
            n_bytes = path.stat().st_size
            path.open("rb").close()
        except OSError as error:
            raise InvalidData(
                f"{str(path)!r} cannot be read: {error.strerror or error}.",
                hint="Name a file of this machine that you may read.",
                details=[Detail("data", error.strerror or str(error))],
            ) from error
        query = {"filename": name or path.name} | ({"team": team} if team is not None else {})
        headers = {"content-type": "application/octet-stream", "content-length": str(n_bytes)}

        def build() -> httpx.Request:
            content = _chunks(path, n_bytes, progress)
            timeout = self._timeout(UPLOAD_S)
            return self._http.build_request(
                "POST", "datasets", params=query, headers=headers, content=content, timeout=timeout
            )

        return self._read(_Dataset, self._json(self._sent(build, repeatable=True))).dataset

    def dataset(self, digest: str) -> Upload:
        """Return a dataset by the digest of its bytes.

        Raises:
            NotFound: there is none that the token sees.
        """
        return self._read(_Dataset, self._get(f"datasets/{part(digest)}")).dataset

    def forget_dataset(self, digest: str, *, team: str | None = None) -> None:
        """Forget a dataset of a team, the token's where not given; requests that wait for it will fail.

        Raises:
            NotFound: the team does not have it.
        """
        self._call("DELETE", f"datasets/{part(digest)}", query={"team": team})

    def datasets(self, *, team: str | None = None, most: int | None = None) -> Iterator[Upload]:
        """Yield the datasets that were uploaded or shared, the newest first."""
        return self._pages(Upload, "datasets", query={"team": team}, most=most)


def _write(frame: pd.DataFrame, path: Path) -> None:
    """Write a data frame as Parquet.

    Raises:
        InvalidData: it has what Parquet cannot hold.
        InvalidRequest: it is no data frame.
    """
    if not hasattr(frame, "to_parquet"):
        raise InvalidRequest(
            f"data: a {type(frame).__name__} is neither a file nor a data frame.",
            hint="Give a path or a pandas data frame.",
            details=[Detail("data", f"received a {type(frame).__name__}")],
        )
    try:
        frame.to_parquet(path, index=False)
    except (ValueError, TypeError) as error:  # pyarrow's own errors are both
        raise InvalidData(
            f"The data frame cannot be written as Parquet: {error}.",
            hint="Let each column hold values of one kind, and have a name of its own.",
            details=[Detail("data", str(error))],
        ) from error


def _chunks(path: Path, n_bytes: int, progress: Callable[[int, int], None]) -> Iterator[bytes]:
    n_sent = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk
            n_sent += len(chunk)
            progress(n_sent, n_bytes)
