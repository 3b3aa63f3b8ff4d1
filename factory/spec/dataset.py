"""The data of a request: a table in a file, an upload, or entities joined to a feature service."""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple, Self

from pydantic import Discriminator, Field, Tag, model_validator

from factory.errors import listing
from factory.spec.document import ColumnType, Document, Task

DEFAULT_TIMESTAMP = "event_timestamp"
"""Column with the moment of each row of an entity table, unless a request names another."""


class FeatureJoin(NamedTuple):
    """What a table is joined to: the Feast feature service, and the column with the moment of each row."""

    feature_service: str
    timestamp: str


class _DatasetBase(Document):
    target: str = Field(min_length=1, title="Target", description="Column that is to be predicted.")
    task: Task | None = Field(None, title="Task", description="Kind of prediction; inferred from the target if empty.")
    types: dict[str, ColumnType] = Field(
        default_factory=dict, title="Column types", description="Corrections of the inferred column types."
    )
    weights: str | None = Field(
        None,
        min_length=1,
        title="Weights",
        description=(
            "Column that says how much each row counts, in training and in every score; numbers from 0 up. It is no "
            "feature, and rows of weight 0 are left out."
        ),
    )
    drop: tuple[str, ...] = Field((), title="Columns left out", description="Columns that are not used as features.")
    keep: tuple[str, ...] = Field(
        (), title="Columns kept", description="Columns that stay although the screening would drop them."
    )
    drift: Literal["warn", "drop"] = Field(
        "warn",
        title="Drifted columns",
        description="What is done about columns that differ altogether in later rows: named, or left out as well.",
    )

    @property
    def join(self) -> FeatureJoin | None:
        """What its rows are joined to as of their moments; None of a table that has its features."""
        return None

    @model_validator(mode="after")
    def _dropped_or_kept(self) -> Self:
        if both := set(self.drop) & set(self.keep):
            raise ValueError(f"drop and keep both name {listing(both)}; leave it out of one of them")
        return self

    @model_validator(mode="after")
    def _weights_are_no_feature(self) -> Self:
        if self.weights is not None and self.weights in (self.target, *self.keep, *self.types):
            raise ValueError(f"{self.weights!r} holds the weights of the rows: it is no target, and no feature")
        return self


class _TableDataset(_DatasetBase):
    scoring: str | None = Field(
        None,
        min_length=1,
        title="Rows to be predicted",
        description="Table, path or fsspec URL; its columns are compared with those to learn from.",
    )


class FileDataset(_TableDataset):
    """A table in a file or object store."""

    path: str = Field(min_length=1, title="Path", description="Parquet, CSV or Arrow/Feather file, path or fsspec URL.")


class UploadDataset(_TableDataset):
    """A table that was uploaded before; where it names a feature service, an entity table."""

    upload: str = Field(pattern=r"^[0-9a-f]{64}$", title="Upload", description="Content digest of the uploaded table.")
    feature_service: str | None = Field(
        None,
        min_length=1,
        title="Features from the store",
        description="Feast feature service that is joined to the table's keys as of each row's moment; none if empty.",
    )
    timestamp: str | None = Field(
        None,
        min_length=1,
        title="Moment of each row",
        description=f"Column by which features are joined; {DEFAULT_TIMESTAMP} if empty.",
    )

    @property
    def join(self) -> FeatureJoin | None:
        """What its rows are joined to as of their moments; None of a table that has its features."""
        return FeatureJoin(self.feature_service, self.timestamp or DEFAULT_TIMESTAMP) if self.feature_service else None

    @model_validator(mode="after")
    def _joined_as_a_whole(self) -> Self:
        if self.feature_service is None and self.timestamp is not None:
            raise ValueError("timestamp says how features are joined; name a feature_service, or leave it out")
        if self.feature_service is not None and self.scoring is not None:
            raise ValueError("scoring names a table that has its features; leave it out with a feature_service")
        return self


class EntityDataset(_DatasetBase):
    """Entity keys, event timestamp and target, joined to a Feast feature service point-in-time."""

    entities: str = Field(min_length=1, title="Entity table", description="File with entity keys, timestamp, target.")
    timestamp: str = Field(DEFAULT_TIMESTAMP, title="Timestamp", description="Column with the moment of each row.")
    feature_service: str = Field(min_length=1, title="Feature service", description="Name of a Feast feature service.")

    @property
    def join(self) -> FeatureJoin:
        """What its rows are joined to as of their moments."""
        return FeatureJoin(self.feature_service, self.timestamp)


def _dataset_kind(value: object) -> str:
    fields = value if isinstance(value, dict) else getattr(value, "__dict__", {})
    return next((kind for kind in ("entities", "upload") if kind in fields), "path")


DatasetRef = Annotated[
    Annotated[FileDataset, Tag("path")]
    | Annotated[EntityDataset, Tag("entities")]
    | Annotated[UploadDataset, Tag("upload")],
    Discriminator(_dataset_kind),
]
