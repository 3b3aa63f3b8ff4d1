"""The Feast store of a process: its configuration, its definitions, what it offers.

Importing Feast takes seconds, so it happens inside the functions here and once
for a process.  The shipped example is applied the first time it is needed and
keeps its state below FACTORY_HOME; a repository of one's own is used exactly as
its ``feature_store.yaml`` says and is changed by :func:`apply` only.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import linecache
import logging
import os
import sqlite3
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from factory.data.feast_guard import keep_shut
from factory.errors import Conflict, Detail, InvalidRequest, ServiceFault
from factory.settings import Settings
from factory.spec import Document

logger = logging.getLogger(__name__)

STORE_VARIABLE = "FACTORY_FEATURE_STORE"
"""Set to the folder of the embedded store while a repository is read; its files may use it."""

REDIS_S = 5
"""For which Redis is waited for: as long as the predictor does."""

LOCK = threading.RLock()
"""Offline work is done by one thread at a time: Feast shares one DuckDB connection in a process."""

_STORES: dict[tuple[Path, Path, bool], Any] = {}


class Change(Document):
    """One object of the registry that :func:`apply` touched."""

    action: Literal["created", "updated", "deleted"]
    kind: str = Field(description="Kind of object: entity, feature view, feature service.")
    name: str
    properties: tuple[str, ...] = Field((), description="Properties that an update changed.")


class ApplyReport(Document):
    """What :func:`apply` did."""

    repository: str
    changes: tuple[Change, ...]


def open_store(settings: Settings, *, patient: bool = True) -> Any:
    """Return the process's ``feast.FeatureStore``, applying the shipped example where nothing is applied yet.

    Args:
        settings: Where it is.
        patient: Whether an online store that refuses is asked again and again, for seconds.

    Raises:
        InvalidRequest: the folder is no Feast repository, or its feature_store.yaml is not valid.
        Conflict: a repository of one's own has not been applied.
        ServiceFault: Feast or its registry cannot be reached.
    """
    key = (settings.feature_repo_folder, settings.feature_store, patient)
    with LOCK:
        if key not in _STORES:
            store = _connect(settings, patient=patient)
            with feast_errors("open the registry"):
                applied = bool(store.list_feature_services())
            if not applied:
                if settings.feature_repo is not None:
                    raise Conflict(
                        f"The feature repository {str(key[0])!r} has no feature service in its registry.",
                        hint="Run `factory features apply` (or `feast apply` in the repository) first.",
                        details=[Detail("FACTORY_FEATURE_REPO", "The repository is not applied.")],
                    )
                apply(settings)
                store = _connect(settings, patient=patient)
            _STORES[key] = store
        return _STORES[key]


def refresh(store: Any) -> None:
    """Read the registry again, so that definitions applied elsewhere are seen."""
    with feast_errors("refresh the registry"):
        store.refresh_registry()


def apply(settings: Settings) -> ApplyReport:
    """Apply the repository's definitions to the registry and the online store, as ``feast apply`` does.

    Raises:
        InvalidRequest: the folder is no Feast repository, or a definition is not valid.
        ServiceFault: the registry or the online store cannot be written.
    """
    with LOCK:
        store = _connect(settings)
        from feast.repo_operations import apply_total_with_repo_instance

        folder = settings.feature_repo_folder
        with _variable(settings):
            contents = _definitions(folder, project=store.project)
        with offline("apply the feature repository"), silence():
            for view in contents.on_demand_feature_views:
                _try_out(folder, view)
            try:
                difference, _, _ = store.plan(contents)
            except ValueError as error:
                raise _bad_repository(folder, f"A definition is not valid: {error}") from error
            changes = _changes(difference)
            apply_total_with_repo_instance(store, store.project, store.registry, contents, False)
        logger.info("feast apply of %s: %d changes", folder, len(changes))
        for patient in (True, False):
            _STORES.pop((folder, settings.feature_store, patient), None)
        return ApplyReport(repository=str(folder), changes=tuple(changes))


def _try_out(folder: Path, view: Any) -> None:
    """Run an on-demand view's function on a made-up row, as Feast does when it is applied.

    Raises:
        InvalidRequest: it fails, or gives other features or types than the view's schema.
    """
    try:
        view.infer_features()
    except Exception as error:  # any code may run in a function
        said = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise _bad_repository(
            folder, f"The on-demand view {view.name!r} does not give its schema for a made-up row: {said[:300]}"
        ) from error


def repository_views(settings: Settings) -> dict[str, Any]:
    """Import the repository, and return its on-demand views by name, with their functions.

    Raises:
        InvalidRequest: the repository cannot be imported.
    """
    with LOCK, _variable(settings):
        contents = _definitions(settings.feature_repo_folder, project="repository")
    return {view.name: view for view in contents.on_demand_feature_views}


@contextlib.contextmanager
def feast_errors(doing: str) -> Iterator[None]:
    """Turn what Feast, its stores and its files raise into a ServiceFault that names the act."""
    import duckdb
    from feast.errors import FeastError
    from pyarrow import ArrowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (FeastError, SQLAlchemyError, sqlite3.Error, duckdb.Error, ArrowException, OSError) as error:
        raise ServiceFault(
            f"Feast could not {doing}: {type(error).__name__}: {error}",
            hint="Check feature_store.yaml and that its registry, offline and online store can be reached; "
            "`factory features apply` sets the store up anew.",
        ) from error


@contextlib.contextmanager
def offline(doing: str) -> Iterator[None]:
    """Do offline work alone, with its errors named."""
    with LOCK, feast_errors(doing), warnings.catch_warnings():
        # ibis 12 calls a method that DuckDB 2 renamed.
        warnings.filterwarnings("ignore", message="fetch_arrow_table", category=DeprecationWarning)
        # On-demand views are not computed by Feast here, which does not scale.
        warnings.filterwarnings("ignore", message="On demand feature view is an exp", category=RuntimeWarning)
        yield


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Keep Feast's prints and progress bars in the log, off the terminal.

    The streams are the whole process's, so this is for materializing and applying only, which print.
    """
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        yield
    logger.debug("feast: %s", said.getvalue())


def _connect(settings: Settings, *, patient: bool = True) -> Any:
    """Build a FeatureStore from feature_store.yaml; for the shipped example with its state below FACTORY_HOME."""
    folder = settings.feature_repo_folder
    path = folder / "feature_store.yaml"
    if not path.is_file():
        raise _bad_repository(folder, "There is no feature_store.yaml in it.")
    import yaml

    # Importing Feast makes every DeprecationWarning of the process visible from then on.
    with warnings.catch_warnings():
        from feast import FeatureStore, RepoConfig
        from feast.errors import FeastError

    keep_shut()
    try:
        with _variable(settings):
            raw = yaml.safe_load(os.path.expandvars(path.read_text()))
        if settings.feature_repo is None:
            settings.prepare_home()
            settings.feature_store.mkdir(exist_ok=True)
            raw["registry"]["path"] = f"sqlite:///{settings.feature_store / 'registry.db'}"
            raw["online_store"]["path"] = str(settings.feature_store / "online.db")
        config = RepoConfig(**raw)
    except (yaml.YAMLError, TypeError, ValueError, FeastError) as error:
        raise _bad_repository(folder, f"Its feature_store.yaml is not valid: {error}") from error
    config.repo_path = folder
    _bound_redis(config, patient=patient)
    if settings.feature_repo is not None:
        _anchor_registry(config, folder)
    with feast_errors("open the registry"):
        return FeatureStore(repo_path=str(folder), config=config)


def _bound_redis(config: Any, *, patient: bool = True) -> None:
    """Let the connections of a Redis store end a wait, where its connection string does not say when.

    The driver would wait for ever: of a server that a network no longer reaches its readers would never come back. Of
    one that refuses it would ask again after pauses of up to 14 s in all, in which a server's callers are gone.
    """
    store = config.online_store
    text = getattr(store, "connection_string", None)
    if store is None or "redis" not in str(getattr(store, "type", "")).lower() or not isinstance(text, str):
        return
    named = {part.partition("=")[0].strip() for part in text.split(",") if "=" in part}
    ours = {"socket_timeout": REDIS_S, "socket_connect_timeout": REDIS_S} | ({} if patient else {"retry": "null"})
    added = [f"{name}={value}" for name, value in ours.items() if name not in named]
    store.connection_string = ",".join([text, *added])


def _anchor_registry(config: Any, folder: Path) -> None:
    """Resolve a relative SQLite registry against the repository, as ``feast apply`` run inside it would."""
    prefix = "sqlite:///"
    path = str(config.registry.path)
    if path.startswith(prefix) and not Path(path.removeprefix(prefix)).is_absolute():
        target = folder / path.removeprefix(prefix)
        target.parent.mkdir(parents=True, exist_ok=True)
        config.registry.path = f"{prefix}{target}"


def _definitions(folder: Path, *, project: str) -> Any:
    """Import the repository's modules and collect Feast's objects, as ``feast apply`` does.

    Feast's own reader needs the process's working directory to be the repository, which other threads would feel.
    """
    from feast.feature_view import DUMMY_ENTITY
    from feast.project import Project
    from feast.repo_contents import RepoContents
    from feast.repo_operations import get_repo_files

    files = get_repo_files(folder)
    names = [".".join(path.relative_to(folder).with_suffix("").parts) for path in files]
    # A file may have changed since this process read it; the text of on-demand views comes from that cache.
    linecache.checkcache()
    before = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    sys.path.insert(0, str(folder))
    try:
        objects = [value for name in names for value in vars(importlib.import_module(name)).values()]
    except Exception as error:  # any code may run in a repository
        raise _bad_repository(folder, f"Its definitions cannot be imported: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(str(folder))
        for name in names:
            sys.modules.pop(name, None)
        sys.modules.update(before)
    groups = _grouped({id(o): o for o in objects}.values())
    groups["entities"].append(DUMMY_ENTITY)
    if not groups["projects"]:
        groups["projects"].append(Project(name=project))
    return RepoContents(**groups)


def _grouped(objects: Any) -> dict[str, list[Any]]:
    """Sort Feast's objects by kind; the sources of views are added."""
    from feast import Entity, FeatureService, FeatureView, OnDemandFeatureView, StreamFeatureView
    from feast.data_source import DataSource
    from feast.labeling.label_view import LabelView
    from feast.permissions.permission import Permission
    from feast.project import Project

    # A stream view is a feature view too: the first kind that fits counts.
    kinds: dict[str, type] = {
        "projects": Project,
        "data_sources": DataSource,
        "stream_feature_views": StreamFeatureView,
        "feature_views": FeatureView,
        "on_demand_feature_views": OnDemandFeatureView,
        "label_views": LabelView,
        "entities": Entity,
        "feature_services": FeatureService,
        "permissions": Permission,
    }
    groups: dict[str, list[Any]] = {name: [] for name in kinds}
    for item in objects:
        if group := next((name for name, kind in kinds.items() if isinstance(item, kind)), None):
            groups[group].append(item)
    sources = {id(source): source for source in groups["data_sources"]}
    for holder in [*groups["feature_views"], *groups["stream_feature_views"], *groups["data_sources"]]:
        for attribute in ("batch_source", "stream_source"):
            if (source := getattr(holder, attribute, None)) is not None:
                sources[id(source)] = source
    groups["data_sources"] = list(sources.values())
    return groups


def _changes(difference: Any) -> list[Change]:
    from feast.diff.property_diff import TransitionType
    from feast.feature_view import DUMMY_ENTITY_NAME

    actions: dict[Any, Literal["created", "updated", "deleted"]] = {
        TransitionType.CREATE: "created",
        TransitionType.UPDATE: "updated",
        TransitionType.DELETE: "deleted",
    }
    return [
        Change(
            action=actions[item.transition_type],
            kind=item.feast_object_type.value,
            name=item.name,
            properties=tuple(p.property_name for p in item.feast_object_property_diffs),
        )
        for item in difference.feast_object_diffs
        if item.transition_type in actions and item.name != DUMMY_ENTITY_NAME
    ]


@contextlib.contextmanager
def _variable(settings: Settings) -> Iterator[None]:
    """Let the repository's files see the embedded store's folder, for as long as they are read."""
    before = os.environ.get(STORE_VARIABLE)
    os.environ[STORE_VARIABLE] = str(settings.feature_store)
    try:
        yield
    finally:
        if before is None:
            del os.environ[STORE_VARIABLE]
        else:
            os.environ[STORE_VARIABLE] = before


def _bad_repository(folder: Path, problem: str) -> InvalidRequest:
    return InvalidRequest(
        f"{str(folder)!r} is not a feature repository that can be used. {problem}",
        hint="Set FACTORY_FEATURE_REPO to the folder of a Feast repository in which `feast apply` works.",
        details=[Detail("FACTORY_FEATURE_REPO", problem)],
    )
