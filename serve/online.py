"""Entity rows → a variant's columns, with features from the online store."""

from __future__ import annotations

import threading

import numpy as np

from factory.data.online import OnlineReader
from factory.errors import Detail, FactoryError, InvalidRequest, ServiceFault, UserFault
from factory.settings import Settings
from factory.spec import Variant
from factory.variants.bundle import Bundle
from serve.inputs import EntityRows, NamedColumns, Values


class FeatureReaders:
    """One reader for each feature service, made at the first request that needs it.

    Args:
        settings: Where the feature store is.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._readers: dict[str, OnlineReader] = {}
        self._lock = threading.Lock()

    def columns(self, entities: EntityRows, *, variant: Variant, bundle: Bundle) -> NamedColumns:
        """Return the variant's columns for entity rows; called in a thread, since stores are read synchronously.

        A row holds the entity's keys, and a value for each column of the variant that is not a feature. An entity
        or a value that the store does not have, or that is older than its view's TTL, is missing, as in training.

        Raises:
            InvalidRequest: the variant was not trained on a feature service, or a row has wrong keys.
            ServiceFault: the online store cannot be read.
        """
        if variant.feature_service is None:
            names = ", ".join(column.name for column in bundle.columns)
            raise InvalidRequest(
                f"{variant.name}/{variant.version} was not trained on a feature service, so it knows no entities.",
                hint=f'Send its columns with "dataframe_records": {names}.',
                details=[Detail("entities", "This variant takes columns.")],
            )
        reader = self._reader(variant.feature_service)
        features = reader.definition.columns
        own = [column.name for column in bundle.columns if column.name not in features]
        keys = reader.entity_keys
        asked = [{k: v for k, v in row.items() if k in keys or k not in own} for row in entities.rows]
        read = _read(reader, asked)
        columns: dict[str, Values] = {
            column.name: read[column.name] if column.name in features else _column(entities, column.name)
            for column in bundle.columns
            if column.name in features or any(column.name in row for row in entities.rows)
        }
        return NamedColumns(columns)

    def warm_up(self, service: str) -> None:
        """Make a service's reader before somebody asks for it: importing Feast takes seconds.

        Raises:
            ServiceFault: the store or the service is not there.
        """
        self._reader(service)

    def _reader(self, service: str) -> OnlineReader:
        with self._lock:
            if service not in self._readers:
                try:
                    self._readers[service] = OnlineReader(self._settings, service)
                except UserFault as error:
                    # What is wrong with the store is no fault of a caller's.
                    raise ServiceFault(error.message, hint=error.hint, details=error.details) from error
            return self._readers[service]


def _read(reader: OnlineReader, rows: list[dict[str, object]]) -> dict[str, np.ndarray]:
    try:
        return reader.read(rows).values
    except FactoryError:
        raise
    except Exception as error:
        # Every online store raises its own driver's errors, and Feast hands them on as they are.
        raise ServiceFault(
            f"The online store could not be read: {type(error).__name__}: {error}",
            hint="Check feature_store.yaml and that the online store answers; `factory doctor` looks.",
        ) from error


def _column(entities: EntityRows, name: str) -> list[object]:
    return [row.get(name) for row in entities.rows]
