"""What is predicted again and again: a variant, rows, and when."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from factory.spec.document import NAME, Document
from factory.spec.schedule import Schedule

_VARIANT = r"^[a-z][a-z0-9_-]{0,62}(\.[A-Za-z0-9_-]+)+(@[a-z]+|/[1-9][0-9]{0,8})?$"


class BatchWish(Document):
    """A batch as somebody declares it."""

    team: str = Field(pattern=NAME, title="Team", description="Whose batch it is.")
    name: str = Field(pattern=NAME, title="Name", description="Of the batch; with the team it is TEAM.NAME.")
    variant: str = Field(
        max_length=200,
        pattern=_VARIANT,
        title="Variant",
        description="As growth.churn (its champion then), growth.churn@challenger or growth.churn/3.",
    )
    path: str | None = Field(
        None,
        min_length=1,
        max_length=1024,
        title="Path",
        description=(
            "Rows: a Parquet, CSV or Arrow file, a folder or a pattern, absolute, as it is when a run begins. Of a "
            "variant with a feature service it may hold keys of entities and event_timestamp."
        ),
    )
    upload: str | None = Field(
        None, pattern=r"^[0-9a-f]{64}$", title="Upload", description="Instead: digest of an uploaded table."
    )
    keep: tuple[str, ...] = Field(
        (), max_length=100, title="Columns kept", description="Columns of the rows that the predictions have as well."
    )
    schedule: Schedule | None = Field(None, title="Schedule", description="When it runs; only when asked to if empty.")
    keep_runs: int = Field(
        30, ge=1, le=1_000, title="Runs kept", description="Of ended runs; older ones go with their output and log."
    )
    hours: float = Field(
        12.0,
        gt=0,
        le=168,
        title="Hours at most",
        description="That a run may take; then it is stopped, and has failed.",
    )

    @property
    def full_name(self) -> str:
        """``team.name``."""
        return f"{self.team}.{self.name}"

    @model_validator(mode="after")
    def _rows_once(self) -> Self:
        if (self.path is None) == (self.upload is None):
            raise ValueError("give either path or upload")
        return self
