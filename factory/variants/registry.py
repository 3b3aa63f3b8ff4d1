"""Variants in MLflow: logged and registered as plain models, aliases as a mirror of the ledger's.

Everything goes through clients that are given their URI, never through
MLflow's global state: a notebook that calls the factory keeps its own tracking
server and its own active run.  A variant is registered once for each request
and segment, however often a killed driver comes back: the model version, which
is created last and carries their names as tags, is the sign that it was done.
"""

from __future__ import annotations

import json
import logging
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

import pandas as pd
from sqlalchemy.exc import SQLAlchemyError

from factory.errors import NotFound, ServiceFault, StorageFault
from factory.settings import Settings
from factory.spec import CurvePoint, Variant
from factory.variants.bundle import Bundle
from factory.variants.mlflow_away import insisting
from factory.variants.mlflow_files import on_this_machine
from factory.variants.mlflow_model import bundle_of, only_bundle_of, quieten, save_model
from factory.variants.mlflow_records import BATCH, ONCE, as_metrics, as_parameters, completed, lineage, once

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

JUDGE, CARD = "judge", "card.html"
"""Of a run's artifacts: the folder with what the gate judged in place of a variant, and its model card."""


class Registry:
    """MLflow as the factory uses it.

    Args:
        settings: Says where MLflow is and where artifacts of the embedded default lie.
        patience_s: Seconds for which a variant that is made waits for a server that is away.
    """

    def __init__(self, settings: Settings, *, patience_s: float = 0.0) -> None:
        self.settings = settings
        self.patience_s = patience_s
        self.uri = settings.tracking_uri
        self._client: MlflowClient | None = None
        quieten()

    def warm_up(self) -> None:
        """Import MLflow and create its database; can run in a thread while something else starts.

        Raises:
            StorageFault: FACTORY_HOME cannot be written.
            ServiceFault: MLflow does not answer.
        """
        with self._asking("answer"):
            self.client().search_registered_models(max_results=1)

    def client(self) -> MlflowClient:
        """Return the client, made at the first call."""
        if self._client is None:
            if self.uri.startswith("sqlite:"):
                self.settings.prepare_home()
            from mlflow import MlflowClient

            self._client = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
        return self._client

    @insisting
    def register(
        self,
        folder: Path,
        *,
        variant: Variant,
        example: pd.DataFrame,
        metrics: Mapping[str, float],
        parameters: Mapping[str, object] | None = None,
        curves: Mapping[str, Sequence[CurvePoint]] | None = None,
        files: Mapping[str, str] | None = None,
        judge: Path | None = None,
        tags: Mapping[str, str] | None = None,
        description: str = "",
    ) -> Variant:
        """Log a bundle as an MLflow model and register it as the next version of ``variant.name``.

        A second call for the same request, segment and bundle returns the version of the first one.

        Args:
            folder: The saved bundle.
            variant: Its lineage; ``version``, ``model_uri`` and ``created`` are filled by this call.
            example: A few rows of input, kept as the model's input example.
            metrics: Scores on held-out rows by name; what is not finite is left out.
            parameters: How it was made, by name.
            curves: Learning curves by member.
            files: Texts by file name that are kept with the run: model card, leaderboard, evidence.
            judge: The bundle that the gate judged in its place, kept with the run.
            tags: Further tags of the version.
            description: A sentence for people.

        Raises:
            ServiceFault: MLflow refused or is not there.
            StorageFault: there is no room for the artifacts.
        """
        with self._asking("register the variant"):
            if (found := self._registered(variant)) is not None:
                return found
            experiment = self._experiment(variant.name.partition(".")[0])
            all_tags = {**lineage(variant), **(tags or {})}
            run = self._run(experiment, variant, all_tags)
            model_id = self._log_model(folder, experiment=experiment, run=run, variant=variant, example=example)
            self._log_evidence(run, model_id, metrics=metrics, parameters=parameters or {}, curves=curves or {})
            self._log_files(run, files or {})
            if judge is not None:
                self.client().log_artifacts(run, str(judge), JUDGE)
            self.client().set_terminated(run)
            self._create_model(variant.name)
            made = self.client().create_model_version(
                name=variant.name,
                source=self._source(model_id),
                run_id=run,
                tags=all_tags,
                description=description,
                model_id=model_id,
            )
            link = json.dumps([{"name": made.name, "version": made.version}])
            self.client().set_logged_model_tags(model_id, {"mlflow.modelVersions": link})
            return completed(variant, made, artifacts=self._location(made))

    @insisting
    def set_alias(self, name: str, alias: str, version: int | None) -> None:
        """Point an alias of a registered model to a version, or clear it with None.

        Raises:
            NotFound: there is no such version.
            ServiceFault: MLflow refused or is not there.
        """
        with self._asking("move an alias"):
            if version is None:
                self.client().delete_registered_model_alias(name, alias)
                return
            self._version(name, version)
            self.client().set_registered_model_alias(name, alias, str(version))

    @insisting
    def aliases(self, name: str) -> dict[str, int]:
        """Return MLflow's aliases of a registered model, version by alias; empty where there is no such model."""
        from mlflow.exceptions import MlflowException

        with self._asking("list aliases"):
            try:
                found = self.client().get_registered_model(name).aliases
            except MlflowException as error:
                if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    return {}
                raise
        return {alias: int(number) for alias, number in found.items()}

    @insisting
    def local_bundle(self, name: str, version: int) -> Path:
        """Return the folder of a version's bundle on this machine, as :meth:`local_model` finds it.

        What is returned is not trusted yet: :meth:`Bundle.load` checks it against the ledger's digest.

        Raises:
            UntrustedBundle: the model is not one of ours, or brings code along.
        """
        return bundle_of(self.local_model(name, version))

    @insisting
    def bundle_folder(self, variant: Variant) -> Path:
        """Return the folder of a variant's bundle by the ledger alone; MLflow is asked where that does not say it.

        What is returned is as little trusted as that of :meth:`local_bundle`; raises as it does.
        """
        if variant.artifacts:
            with self._asking("find a variant's files"):
                found = only_bundle_of(self._here(variant.artifacts, f"{variant.name}-{variant.version}"))
            if found is not None:
                return found
        return self.local_bundle(variant.name, variant.version)

    @insisting
    def local_model(self, name: str, version: int) -> Path:
        """Return the folder of a version's MLflow model on this machine; artifacts elsewhere are downloaded once.

        Raises:
            NotFound: there is no such version.
            StorageFault: its files are gone.
            ServiceFault: MLflow refused or is not there.
        """
        with self._asking("find a variant's files"):
            folder = self._here(self._location(self._version(name, version)), f"{name}-{version}")
        if not folder.is_dir():
            raise StorageFault(
                f"The files of {name}/{version} are not where MLflow has put them: {str(folder)!r} is not there.",
                hint="Is the artifact storage mounted? Otherwise restore a backup of it, or make the variant again.",
            )
        return folder

    @insisting
    def judge(self, variant: Variant) -> Bundle:
        """Return what stands for a registered variant on rows of a gate: models that none of them has taught.

        Raises:
            NotFound: there is no such version.
            UntrustedBundle: the files are not those that the ledger knows.
            ServiceFault: MLflow refused or is not there.
        """
        if not variant.judge_digest:
            return Bundle.load(self.bundle_folder(variant), digest=variant.bundle_digest)
        with self._asking("find what a variant was judged by"):
            folder = self._of_run(variant.name, variant.version, JUDGE)
        return Bundle.load(folder, digest=variant.judge_digest)

    @insisting
    def card(self, name: str, version: int) -> Path:
        """Return the file of a version's model card on this machine.

        Raises:
            NotFound: there is no such version, or its card is not kept any more.
            ServiceFault: MLflow refused or is not there.
        """
        with self._asking("find a model card"):
            path = self._of_run(name, version, CARD)
        if not path.is_file():
            raise NotFound(f"The model card of {name}/{version} is not kept any more.", hint="Its scores are.")
        return path

    @property
    def is_made(self) -> bool:
        """Whether there is something to ask: the embedded default makes its database when it is first written to."""
        path = self.uri.removeprefix("sqlite:///")
        return path == self.uri or Path(path).exists()

    def _registered(self, variant: Variant) -> Variant | None:
        same = f"tag.`{ONCE}` = '{once(variant)}'"
        versions = self.client().search_model_versions(f"name = '{variant.name}' and {same}")
        return completed(variant, versions[0], artifacts=self._location(versions[0])) if versions else None

    def _experiment(self, team: str) -> str:
        """Return the id of the team's experiment, with artifacts in FACTORY_HOME unless a server keeps them."""
        from mlflow.exceptions import MlflowException

        found = self.client().get_experiment_by_name(team)
        if found is None:
            location = (self.settings.artifacts / team).as_uri() if self._is_database else None
            try:
                return str(self.client().create_experiment(team, artifact_location=location))
            except MlflowException:
                # Another process created it in the meantime.
                found = self.client().get_experiment_by_name(team)
                if found is None:
                    raise
        if found.lifecycle_stage == "deleted":
            self.client().restore_experiment(found.experiment_id)
        return str(found.experiment_id)

    @property
    def _is_database(self) -> bool:
        """Whether we talk to MLflow's database ourselves, without a server of its own."""
        return urlparse(self.uri).scheme not in ("http", "https", "databricks")

    def _source(self, model_id: str) -> str:
        """Return where a logged model lies; without a server, MLflow would look an id up in its global state."""
        if self._is_database:
            return str(self.client().get_logged_model(model_id).artifact_location)
        return f"models:/{model_id}"

    def _run(self, experiment: str, variant: Variant, tags: Mapping[str, str]) -> str:
        """Start a run, after ending the unfinished ones that a killed driver left behind."""
        unfinished = f"tags.`{ONCE}` = '{once(variant)}' and attributes.status = 'RUNNING'"
        stale = self.client().search_runs([experiment], unfinished)
        for run in stale:
            self.client().set_terminated(run.info.run_id, status="KILLED")
        title = f"{variant.name} {variant.segment}".strip()
        return str(self.client().create_run(experiment, run_name=title, tags=dict(tags)).info.run_id)

    def _log_model(self, folder: Path, *, experiment: str, run: str, variant: Variant, example: pd.DataFrame) -> str:
        """Do what ``pyfunc.log_model`` does, without its global state and without running the model."""
        from mlflow.entities import LoggedModelOutput
        from mlflow.models import Model

        client = self.client()
        logged = client.create_logged_model(
            experiment, name=variant.name.replace(".", "-"), source_run_id=run, tags=lineage(variant)
        )
        client.log_outputs(run, models=[LoggedModelOutput(logged.model_id, step=0)])
        with tempfile.TemporaryDirectory() as place:
            path = Path(place) / "model"
            save_model(
                folder,
                path,
                example=example,
                model=Model(
                    artifact_path=logged.artifact_location,
                    model_uuid=logged.model_id,
                    run_id=run,
                    model_id=logged.model_id,
                    metadata={"bundle_digest": variant.bundle_digest, "task": str(variant.task)},
                ),
            )
            client.log_model_artifacts(logged.model_id, str(path))
        client.finalize_logged_model(logged.model_id, "READY")
        return str(logged.model_id)

    def _log_evidence(
        self,
        run: str,
        model_id: str,
        *,
        metrics: Mapping[str, float],
        parameters: Mapping[str, object],
        curves: Mapping[str, Sequence[CurvePoint]],
    ) -> None:
        points = as_metrics(metrics, curves, model_id=model_id)
        self.client().log_batch(run, metrics=list(islice(points, BATCH)), params=as_parameters(parameters))
        while batch := list(islice(points, BATCH)):
            self.client().log_batch(run, metrics=batch)

    def _log_files(self, run: str, files: Mapping[str, str]) -> None:
        if not files:
            return
        with tempfile.TemporaryDirectory() as place:
            for name, text in files.items():
                (Path(place) / name).write_text(text, encoding="utf-8")
            self.client().log_artifacts(run, place)

    def _create_model(self, name: str) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self.client().create_registered_model(name)
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_ALREADY_EXISTS", "ALREADY_EXISTS"):
                raise

    def _version(self, name: str, version: int) -> Any:
        from mlflow.exceptions import MlflowException

        try:
            return self.client().get_model_version(name, str(version))
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            raise NotFound(
                f"MLflow at {_public(self.uri)} has no version {version} of {name!r}.",
                hint="`factory variants list` shows what there is.",
            ) from error

    def _location(self, version: Any) -> str:
        """Return where the files of a model version are."""
        location = str(version.source)
        if location.startswith("models:/"):
            location = str(self.client().get_logged_model(location.rpartition("/")[2]).artifact_location)
        return location

    def _of_run(self, name: str, version: int, what: str) -> Path:
        """Return what is kept with the run that made a version, on this machine."""
        run = self.client().get_run(self._version(name, version).run_id)
        location = f"{str(run.info.artifact_uri).rstrip('/')}/{what}"
        return self._here(location, f"{name}-{version}-{what}")

    def _here(self, location: str, label: str) -> Path:
        return on_this_machine(location, kept=self.settings.root / "cache" / "models" / label, uri=self.uri)

    @contextmanager
    def _asking(self, what: str) -> Iterator[None]:
        """Turn MLflow's, the database's and the disk's errors into ours; MLflow is imported only where there is one."""
        try:
            yield
        except OSError as error:
            raise StorageFault(
                f"The artifacts of MLflow could not be written or read: {error}.",
                hint="Free some space, or check the rights on FACTORY_HOME.",
            ) from error
        except Exception as error:
            from mlflow.exceptions import MlflowException

            if not isinstance(error, MlflowException | SQLAlchemyError):
                raise
            raise ServiceFault(
                f"MLflow at {_public(self.uri)} could not {what}: {str(error).splitlines()[0][:300]}",
                hint="Check MLFLOW_TRACKING_URI and that the server or database answers; `factory doctor` looks.",
            ) from error


def _public(uri: str) -> str:
    """Return a URI without user and password."""
    return re.sub(r"//[^/@]*@", "//", uri)
