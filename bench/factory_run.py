"""``factory run REQUEST.yaml`` as a user runs it, measured from outside, and what the ledger says came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from bench.record import clean_environment, factory_command
from bench.sampler import Measurement, measure
from factory.ledger import Ledger, RequestRecord
from factory.ledger.records import Event
from factory.settings import Settings
from factory.spec import Variant
from factory.variants.bundle import Bundle
from factory.variants.registry import Registry

LOG = "run.log"
TEAM = "bench"


@dataclass(frozen=True)
class Came:
    """What a request came to: its record, its variants (the pooled one first), and its events in order."""

    record: RequestRecord
    variants: tuple[Variant, ...]
    events: tuple[Event, ...]

    @property
    def made_s(self) -> float:
        """Seconds from the request's receipt to its end."""
        return (self.record.updated - self.record.created).total_seconds()

    def told(self, kind: str) -> list[str]:
        """Return the sentences of one kind of events."""
        return [event.message for event in self.events if event.kind == kind]


def run(
    document: Mapping[str, Any],
    *,
    folder: Path,
    home: Path,
    timeout_s: float,
    variables: Mapping[str, str] | None = None,
) -> Measurement:
    """Write a request's YAML into a folder and run it there; the output goes to a log beside it.

    Args:
        document: The request, without its team.
        folder: Made if need be.
        home: FACTORY_HOME.
        timeout_s: Seconds after which it is killed.
        variables: Further ones of its environment.
    """
    folder.mkdir(parents=True, exist_ok=True)
    request = folder / "request.yaml"
    request.write_text(yaml.safe_dump({"team": TEAM, **document}, sort_keys=False))
    return measure(
        [factory_command(), "run", str(request)],
        env=clean_environment(home) | dict(variables or {}),
        cwd=folder,
        log=folder / LOG,
        timeout_s=timeout_s,
    )


def newest(home: Path) -> Came | None:
    """Return what the newest request of a home came to; None where none was accepted."""
    settings = Settings(home=home)
    settings.prepare_home()
    with Ledger.open(settings.ledger) as ledger:
        if not (records := ledger.requests(limit=1)):
            return None
        made = ledger.variants(request_id=records[0].id)
        events = ledger.events(records[0].id)
    return Came(records[0], tuple(sorted(made, key=lambda v: (v.segment != "", v.name))), tuple(events))


def bundle_of(variant: Variant, home: Path) -> Bundle:
    """Return a registered variant from MLflow, in memory."""
    folder = Registry(Settings(home=home)).local_bundle(variant.name, variant.version)
    return Bundle.load(folder, digest=variant.bundle_digest)


def predictions(bundle: Bundle, rows: pd.DataFrame) -> pd.DataFrame:
    """Predict rows in the form of ``factory fit --out``: a column for each class, or ``prediction``; index kept."""
    raw = bundle.predict_raw(bundle.require(rows))
    columns = list(bundle.classes) or ["prediction"]
    return pd.DataFrame(raw, columns=columns, index=rows.index)
