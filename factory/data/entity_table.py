"""An entity table as a feature store needs it: keys in the store's types, moments in UTC.

A comparison of a text key with a number, or of a moment with and without a
zone, finds nothing or fails deep inside the store.  Both are settled here, and
every problem of a table is reported at once.
"""

from __future__ import annotations

import pandas as pd

from factory.data.feature_service import ServiceDefinition
from factory.errors import Detail, InvalidData, listing, suggest

MOMENT = "event_timestamp"
"""Name that Feast expects of an entity table's timestamp."""


def entity_spine(entities: pd.DataFrame, *, timestamp: str, service: ServiceDefinition) -> pd.DataFrame:
    """Return the entity keys and the moment of each row, (n_rows, n_keys + 1), in the order of the table.

    A missing key stays missing: it finds no feature. A text key must be text in the table too, since ``007`` read
    as a number is another key.

    Args:
        entities: The entity table.
        timestamp: Its column with the moments; those without a zone are taken as UTC.
        service: The feature service that will be joined.

    Raises:
        InvalidData: a key or the timestamp is not a column or cannot be read, or a column is named like a
            feature; all of them are named.
    """
    columns: dict[str, pd.Series] = {}
    details: list[Detail] = []
    names = [str(name) for name in entities.columns]
    for key in service.keys:
        column = key.column
        if column not in names:
            details.append(Detail(column, f"This entity key is not a column.{suggest(column, names)}"))
            continue
        try:
            columns[column] = _as_key(entities[column], key.dtype)
        except (ValueError, TypeError):
            received = f"received {entities[column].dtype}, such as {_first(entities[column])!r}"
            advice = (
                " Type it 'identifier' in the dataset's types, to read it as text." if key.dtype == "String" else ""
            )
            details.append(Detail(column, f"The store keeps this entity key as {key.dtype}; {received}.{advice}"))
    for field in service.request:
        if field.name not in names:
            needed = (
                f"On-demand views need it ({listing(field.views)}), and it is no column.{suggest(field.name, names)}"
            )
            details.append(Detail(field.name, needed))
    if timestamp not in names:
        details.append(Detail(timestamp, f"The timestamp is not a column.{suggest(timestamp, names)}"))
    else:
        columns[MOMENT] = _as_moments(entities[timestamp])
        if (bad := columns[MOMENT].isna().to_numpy()).any():
            count = f"{bad.sum()} of {len(bad)} values are no date, such as {entities[timestamp][bad].tolist()[0]!r}"
            details.append(Detail(timestamp, f"{count}; allowed: dates and ISO 8601 text."))
    for name in sorted(set(service.columns) & set(names)):
        details.append(Detail(name, "The feature service brings a feature of this name."))
    if details:
        needed_columns = [*(key.column for key in service.keys), *(field.name for field in service.request)]
        raise InvalidData(
            f"The entity table does not fit the feature service {service.name!r}: "
            + " ".join(f"{d.field}: {d.message}" for d in details),
            hint=f"It needs the columns {listing(needed_columns)} and a timestamp, and no column that "
            f"is named like a feature. Its columns: {listing(names)}.",
            details=details,
        )
    return pd.DataFrame(columns).reset_index(drop=True)


def _as_key(column: pd.Series, dtype: str) -> pd.Series:
    if dtype == "String":
        if not column.dropna().map(lambda value: isinstance(value, str)).all():
            raise TypeError("not text")
        return column.astype(object).where(column.notna(), None)
    if dtype in ("Int32", "Int64"):
        if pd.api.types.is_bool_dtype(column):
            raise TypeError("not whole numbers")
        return pd.to_numeric(column).astype("Int64" if column.isna().any() else "int64")
    return column


def _as_moments(column: pd.Series) -> pd.Series:
    """Return the moments in UTC and microseconds, NaT where the value is no date."""
    if pd.api.types.is_numeric_dtype(column):
        # pandas would take a number for nanoseconds since 1970, which nobody means.
        return pd.Series(pd.NaT, index=column.index, dtype="datetime64[us, UTC]")
    if pd.api.types.is_datetime64_any_dtype(column):
        return pd.to_datetime(column, utc=True).astype("datetime64[us, UTC]")
    return pd.to_datetime(column, utc=True, errors="coerce", format="ISO8601").astype("datetime64[us, UTC]")


def _first(column: pd.Series) -> object:
    return next(iter(column.dropna().tolist()), None)
