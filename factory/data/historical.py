"""Features as they were at moments of the past: stored ones by Feast's join, the others computed from them.

Feast neither keeps the order of the rows nor, in some stores, all of them; both is seen to here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from factory.data.entity_table import MOMENT
from factory.data.feature_columns import canonical
from factory.data.feature_service import ServiceDefinition, StoredRead
from factory.data.feature_store import offline
from factory.data.on_demand import compute
from factory.errors import Detail, InvalidData, ServiceFault

_ROW = "factory_row_id"


def stored_features(store: Any, service: ServiceDefinition, spine: pd.DataFrame) -> pd.DataFrame:
    """Return the stored features of entity rows, also those that only others are computed from, (n_rows, ...)."""
    return pd.concat([historical(store, read, spine) for read in service.reads], axis=1)


def completed(stored: pd.DataFrame, entities: pd.DataFrame, *, service: ServiceDefinition) -> pd.DataFrame:
    """Return the service's features: stored ones, and those that are computed from them and from the table.

    Raises:
        InvalidData: a column of the table that an on-demand view is computed from is not of its type.
        SystemFault: an on-demand view cannot be computed.
    """
    if not service.on_demand:
        return stored[list(service.columns)]
    columns: dict[str, np.ndarray] = {}
    details = []
    for item in {item.column: item for view in service.on_demand for item in view.inputs}.values():
        try:
            source = entities if item.is_request else stored
            columns[item.column] = canonical(source[item.column], item.dtype)
        except ValueError as error:
            details.append(Detail(item.column, f"Received {error}; it is of type {item.dtype}."))
    if details:
        raise InvalidData(
            f"On-demand views of the feature service {service.name!r} cannot be computed from these columns: "
            + " ".join(f"{d.field}: {d.message}" for d in details),
            hint="Give the columns of the entity table the types that the view's request sources name.",
            details=details,
        )
    computed = compute(service.on_demand, columns, len(stored))
    return pd.DataFrame({name: computed[name] if name in computed else stored[name] for name in service.columns})


def historical(store: Any, read: StoredRead, spine: pd.DataFrame) -> pd.DataFrame:
    """Return stored features as of the moment of each row, in the order of the rows, (n_rows, n_features).

    Args:
        store: Feast's store.
        read: What is joined.
        spine: Key columns and ``event_timestamp`` in UTC, (n_rows, n_keys + 1); others are left out.
    """
    # Feast neither keeps the order nor the index of the rows.
    keys = {name: spine[column] for name, column in read.keys.items()}
    asked = pd.DataFrame({**keys, MOMENT: spine[MOMENT]})
    asked = asked.assign(**{_ROW: np.arange(len(spine), dtype=np.int64)})
    with offline("join the features"):
        joined: pd.DataFrame = store.get_historical_features(
            features=read.features, entity_df=asked, full_feature_names=read.full_names
        ).to_df()
    joined = joined.sort_values(_ROW, kind="stable", ignore_index=True)
    if not np.array_equal(joined[_ROW].to_numpy(), asked[_ROW].to_numpy()):
        raise ServiceFault(
            f"Feast returned {len(joined)} rows for {len(asked)} entity rows.",
            hint="Use DuckDB or PostgreSQL as offline store; Feast's file (Dask) store drops and merges rows.",
        )
    return pd.DataFrame({f.column: joined[read.answered(v, f)] for v in read.views for f in v.features})
