"""The factory from Python: ``factory.fit(frame, target="churned")`` in a notebook or a script.

The same pipeline as every other door, in this process: no server, no
controller.  A data frame is stored as an upload, so that the variant's lineage
leads back to it; a file is read where it lies.
"""

from __future__ import annotations

import shutil
import webbrowser
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path

import numpy as np
import pandas as pd

from factory.data.loading import store_table
from factory.errors import Conflict, Detail, InvalidRequest
from factory.ledger import Ledger
from factory.operate.inprocess import user
from factory.operate.intake import Intake
from factory.pipeline import Outcome, Progress, produce
from factory.search.clock import Clock
from factory.settings import Settings, load_settings
from factory.spec import Actor, Task, Variant
from factory.variants.attribution import Scale
from factory.variants.bundle import Bundle
from factory.variants.counterexamples import CounterExamples, counterexamples
from factory.variants.explain import EXPLAIN_S, Explanation, explain
from factory.variants.registry import Registry

LOADED_S = 0.3
"""What of a budget it takes to read the variant that was made (0.2 s for 33 models and preparations)."""


@dataclass(frozen=True)
class Predictor:
    """A variant in memory, ready to predict; :func:`load` returns one.

    Attributes:
        bundle: The models.
        folder: The bundle on disk.
    """

    bundle: Bundle
    folder: Path

    @property
    def classes(self) -> np.ndarray:
        """Labels that :meth:`predict` answers with, (n_classes,); empty for a regression."""
        texts = np.asarray(self.bundle.classes, dtype=object)
        return _numbers(texts) if self.bundle.metadata.get("labels") == "numbers" else texts

    def predict(self, frame: pd.DataFrame) -> np.ndarray:
        """Return class labels (n_rows,), or predictions, float64 (n_rows,).

        Labels are of the kind that the training table had them: int64, float64, bool, or text as object.

        Raises:
            InvalidData: a needed column is missing, or a value does not fit; all problems are named.
        """
        raw = self.bundle.predict_raw(self.bundle.require(frame))
        return self.classes[self.bundle.labels(raw)] if self.bundle.classes else raw

    def predict_proba(self, frame: pd.DataFrame) -> np.ndarray:
        """Return probabilities, float64 (n_rows, n_classes), in the order of ``classes``.

        Raises:
            InvalidRequest: the variant is a regression.
            InvalidData: a needed column is missing, or a value does not fit; all problems are named.
        """
        if self.bundle.task is Task.REGRESSION:
            raise InvalidRequest("A regression has no probabilities.", hint="Call predict.")
        return self.bundle.predict_raw(self.bundle.require(frame))

    def explain(
        self,
        frame: pd.DataFrame,
        n: int = 10,
        *,
        scale: Scale = "prediction",
        limit_s: float = EXPLAIN_S,
        seed: int = 0,
    ) -> Explanation:
        """Say what each input column added to the predictions of the first ``n`` rows.

        Args:
            frame: Rows with the variant's columns.
            n: Rows to explain, from the first.
            scale: ``margin`` explains the sum that the predictions of one model are the link of, as log-odds.
            limit_s: Seconds after which no further sample is drawn.
            seed: Of the samples.

        Raises:
            InvalidRequest: ``n`` is not positive or more than 1,000, or ``limit_s`` is more than 30.
            InvalidData: as for :meth:`predict`.
            Conflict: the variant was made before variants kept rows to compare with, or has no margin.
        """
        if n < 1 or len(frame) == 0:
            message = f"{min(n, len(frame))} rows cannot be explained."
            raise InvalidRequest(f"n: {message}", hint="Give at least one row.", details=[Detail("n", message)])
        return explain(self.bundle, self.bundle.require(frame.head(n)), scale=scale, limit_s=limit_s, seed=seed)

    def counterexamples(
        self, frame: pd.DataFrame, n: int = 1, *, to: object = None, fixed: Sequence[str] = ()
    ) -> tuple[CounterExamples, ...]:
        """Return the nearest rows that are predicted otherwise, made of values that occur, for each of 20 rows at most.

        Args:
            frame: Rows with the variant's columns.
            n: Counter-examples of each row at most, 1 to 10.
            to: Class that is wanted, any other than the row's own if None; of a regression a range ``[low, high]``.
            fixed: Columns that may not change.

        Raises:
            InvalidRequest: one of these is not allowed; all that are not are named.
            InvalidData: as for :meth:`predict`.
            Conflict: the variant was made before variants kept rows to compare with.
        """
        return counterexamples(self.bundle, self.bundle.require(frame), n=n, to=to, fixed=fixed)

    def save(self, folder: str | Path) -> Path:
        """Copy the bundle into a new folder, for :func:`load` wherever the factory is installed.

        Raises:
            Conflict: there is something at that place already.
        """
        target = Path(folder)
        if target.exists():
            raise Conflict(f"{str(target)!r} exists already.", hint="Name a folder that does not exist yet.")
        shutil.copytree(self.folder, target)
        return target


@dataclass(frozen=True)
class Report:
    """A model card: one HTML file that needs nothing else. A notebook shows it in place.

    Attributes:
        path: The file.
    """

    path: Path

    def open(self) -> bool:
        """Open the card in a browser; return whether there was one."""
        return webbrowser.open(self.path.resolve().as_uri())

    def __fspath__(self) -> str:
        return str(self.path)

    def _repr_html_(self) -> str:
        page = escape(self.path.read_text(encoding="utf-8"))
        return f'<iframe srcdoc="{page}" sandbox width="100%" height="800" style="border:0"></iframe>'


@dataclass(frozen=True)
class Fitted(Predictor):
    """A variant that was made just now.

    Attributes:
        variant: With score, interval, lineage and MLflow URI.
        outcome: The whole request: trials, verdicts, further variants of segments.
        card: The model card, one HTML file.
    """

    variant: Variant
    outcome: Outcome
    card: Path

    @property
    def leaderboard(self) -> pd.DataFrame:
        """The trials by rank: family, framework, scores, folds, cost, weight in the blend.

        Those with the most folds come first, since scores over different folds cannot be compared. ``test_score`` is
        of one model of the trial on the rows that were set aside for the gate.
        """
        return pd.DataFrame([row.model_dump() for row in self.outcome.made[0].card.leaderboard])

    def report(self) -> Report:
        """Return the model card, which a notebook shows and a browser opens."""
        return Report(self.card)


def load(folder: str | Path) -> Predictor:
    """Load a variant from a folder that :meth:`Predictor.save` wrote; nothing in it is unpickled.

    Raises:
        UntrustedBundle: the folder is no bundle, or of a format that this factory does not read.
    """
    return Predictor(Bundle.load(Path(folder)), Path(folder))


def fit(
    data: pd.DataFrame | str | Path,
    target: str,
    *,
    name: str = "local.variant",
    task: str | None = None,
    recipe: str = "tabular-auto",
    budget_s: float | str | None = None,
    trials: int | None = None,
    metric: str | None = None,
    making: str = "auto",
    parent: str | None = None,
    scoring: str | None = None,
    weights: str | None = None,
    keep: Collection[str] = (),
    drop: Collection[str] = (),
    types: Mapping[str, str] | None = None,
    drift: str | None = None,
    families: Collection[str] | None = None,
    validation: Mapping[str, object] | None = None,
    gates: Mapping[str, object] | None = None,
    ceilings: Mapping[str, object] | None = None,
    segments: Mapping[str, object] | None = None,
    memory_gb: float | None = None,
    seed: int = 0,
    settings: Settings | None = None,
    listen: Callable[[Progress], None] = lambda _: None,
    clock: Clock | None = None,
) -> Fitted:
    """Make a variant from a table, in this process.

    What is said of a field of a request in ``docs/recipes.md`` holds for the argument of its name.

    Args:
        data: Rows with the target, (n_rows, n_columns), or a Parquet, CSV or Arrow file, path or fsspec URL.
        target: Column that is to be predicted.
        name: ``team.name`` of the variant.
        task: ``binary``, ``multiclass`` or ``regression``; inferred from the target where not given.
        recipe: How it is made.
        budget_s: Wall seconds, or ``"60s"``, ``"5m"``, ``"1h"``; the recipe's default where not given.
        trials: Trials at most; with it the same seed gives the same trials.
        metric: Name of a scikit-learn scorer; the recipe's where not given.
        making: ``cold``, ``warm_start``, ``refit``, ``incremental``, or ``auto``: from a parent, where one is named.
        parent: Variant that it comes from, as ``team.name``, ``team.name@alias`` or ``team.name/version``.
        scoring: Table of rows that will be predicted; columns that differ there are told of.
        weights: Column that says how much each row counts, in training and in every score; it is no feature.
        keep: Columns that stay whatever the screening finds.
        drop: Columns that are no features.
        types: Corrections of inferred types: column → ``numeric``, ``categorical``, ``text`` and so on.
        drift: ``warn`` tells of columns that differ altogether in later rows, ``drop`` leaves them out as well.
        families: Some of the recipe's families.
        validation: ``{"kind": "group", "column": "patient"}``, ``{"kind": "time", "column": "day", "gap": 24}`` and so
            on; the recipe's where not given.
        gates: ``{"slices": ["region"]}`` and so on; what it leaves open is the recipe's.
        ceilings: ``{"latency_ms": 1, "size_mb": 5}``, or one of both; the recipe's where not given.
        segments: ``{"by": "region"}`` makes a further variant for each value of a column; this one is the pooled one.
        memory_gb: That all processes may take; the recipe's default where not given.
        seed: The only source of randomness.
        settings: Where state is kept; from the environment where not given.
        listen: Told every state and every trial.
        clock: When the time of the budget began; with this call where not given.

    Raises:
        UserFault: the data or an argument cannot be used.
        SystemFault: no model could be made.
    """
    clock = clock or Clock.now()
    clock = replace(clock, after_s=clock.after_s + LOADED_S)
    settings = settings or load_settings()
    settings.prepare_home()
    where = {"upload": store_table(data, settings)} if isinstance(data, pd.DataFrame) else {"path": str(data)}
    team, _, short = name.partition(".")
    dataset = _given(
        **where,
        target=target,
        task=task,
        scoring=scoring,
        weights=weights,
        keep=_listed(keep),
        drop=_listed(drop),
        types=dict(types or {}),
        drift=drift,
    )
    document = _given(
        team=team,
        name=short,
        recipe=recipe,
        dataset=dataset,
        seed=seed,
        making=making,
        parent=parent,
        budget=_given(time_s=budget_s, trials=trials, memory_gb=memory_gb),
        metric=metric,
        families=None if families is None else _listed(families),
        validation=validation,
        gates=gates,
        ceilings=ceilings,
        segments=segments,
    )
    with Ledger.open(settings.ledger) as ledger:
        record = Intake(ledger, settings).submit(document, door="library", by=Actor(who=user())).record
        outcome = produce(record.id, ledger=ledger, settings=settings, listen=listen, clock=clock)
    variant = outcome.variants[0]
    folder = Registry(settings).bundle_folder(variant)
    bundle = Bundle.load(folder, digest=variant.bundle_digest)
    return Fitted(bundle, folder, variant, outcome, settings.workspace(record.id) / "pooled" / "card.html")


def _numbers(labels: np.ndarray) -> np.ndarray:
    """Return labels as the numbers, or truth values, that they are the canonical texts of."""
    if set(labels) <= {"True", "False"}:
        return np.asarray(labels == "True")
    numbers = labels.astype(np.float64)
    return numbers.astype(np.int64) if (numbers == np.floor(numbers)).all() else numbers


def _given(**fields: object) -> dict[str, object]:
    """Return the fields that say something; the others are left to the recipe."""
    return {name: value for name, value in fields.items() if value is not None and value not in ([], {})}


def _listed(names: Collection[str]) -> list[str]:
    """Return names as a list, where a lone one may be given as it is."""
    return [names] if isinstance(names, str) else list(names)
