"""What is suspicious about a table's first rows, before anybody has ordered anything of it."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from factory.data.dataset import from_frame
from factory.data.findings import Finding
from factory.data.inspection import Inspection
from factory.data.metadata import HEAD_BYTES, sniff
from factory.data.screening import screen
from factory.errors import InvalidData
from factory.spec import Document, UploadDataset

MOST_ROWS, LEAST_ROWS, MOST_CELLS = 5_000, 200, 200_000
"""Rows that are looked at: so many, and fewer of wide tables, so that it takes a second."""
KEPT = 64
"""Answers that are kept; uploads do not change."""


class FirstLook(Document):
    """What the screening finds in the first rows of a table.

    Attributes:
        target: The column that would be predicted.
        n_rows: That were looked at.
        whole: Whether these are all of them.
        findings: In the order of the columns.
    """

    target: str
    n_rows: int
    whole: bool
    findings: tuple[Finding, ...]


@lru_cache(maxsize=KEPT)
def first_look(path: Path, target: str, *, digest: str, max_rows: int) -> FirstLook:
    """Screen the first rows of an upload as a search screens its training rows.

    Args:
        path: Its file.
        target: The column that would be predicted.
        digest: Of the upload.
        max_rows: Most rows that a table may have.

    Raises:
        InvalidData: it cannot be used with that target, or no column would be left.
    """
    with path.open("rb") as file:
        sniffed = sniff(file.read(HEAD_BYTES), shown=path.name)
    inspection = Inspection(path, sniffed, shown=path.name, max_rows=max_rows)
    n_columns = len(inspection.preview().columns)
    frame, whole = inspection.beginning(max(LEAST_ROWS, min(MOST_ROWS, MOST_CELLS // n_columns)))
    dataset = from_frame(frame, UploadDataset(upload=digest, target=target))
    try:
        findings = screen(dataset)
    except InvalidData as error:  # no column would be left, which its details tell one by one
        raise InvalidData(error.message, hint="Choose another target, or bring more columns.") from error
    return FirstLook(target=target, n_rows=len(frame), whole=whole, findings=findings)
