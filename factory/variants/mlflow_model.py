"""A bundle as a plain MLflow model folder, and back.

``mlflow.pyfunc.load_model`` and ``mlflow models serve --env-manager local``
work on what :func:`save_model` writes with nothing but the installed package:
the loader is named, the data are plain files, no code and no pickle is stored.
"""

from __future__ import annotations

import os
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from factory.errors import UntrustedBundle
from factory.spec import ColumnType
from factory.variants.manifest import Manifest, read_manifest

if TYPE_CHECKING:
    from mlflow.models import Model, ModelSignature

LOADER = "factory.variants.bundle"
DATA = "data"
"""Folder of a logged model that the bundle lies in."""
DISTRIBUTION = "model-variant-factory"
"""What a logged model requires; never the bare import name, which is another project's on the package index."""


def make_ready() -> None:
    """Import what :func:`save_model` needs, and let MLflow list the installed packages: it takes a second for both.

    MLflow does so at the first model that it saves, and then no more.
    """
    from mlflow.pyfunc import save_model as _  # noqa: F401
    from mlflow.utils import requirements_utils

    # Not of MLflow's public parts: where it is gone, the first model is saved a second later.
    check = getattr(requirements_utils, "warn_dependency_requirement_mismatches", None)
    if check is not None:
        check([_requirement()])


def save_model(folder: Path, path: Path, *, example: pd.DataFrame, model: Model) -> None:
    """Write the MLflow model of a bundle.

    Args:
        folder: The saved bundle.
        path: New folder of the MLflow model.
        example: Rows of input; the first three are kept as the model's input example.
        model: MLflow's description of the model, to which signature and loader are added.
    """
    from mlflow import pyfunc

    manifest = read_manifest(folder)
    pyfunc.save_model(
        path=str(path),
        loader_module=LOADER,
        data_path=str(folder),
        signature=signature(manifest),
        input_example=_example(example, manifest),
        pip_requirements=[_requirement()],
        mlflow_model=model,
    )


def bundle_of(folder: Path) -> Path:
    """Return the bundle inside an MLflow model's folder, if the model is one of ours and nothing else."""
    from mlflow.models import Model

    try:
        flavour = Model.load(str(folder)).flavors["python_function"]
        loader, data, code = flavour["loader_module"], flavour["data"], flavour.get("code")
    except (OSError, KeyError, ValueError) as error:
        raise UntrustedBundle(
            f"The MLflow model in {str(folder)!r} cannot be read: {error}.", hint="Make the variant again."
        ) from error
    bundle = folder / str(data)
    if loader != LOADER or code or not bundle.resolve().is_relative_to(folder.resolve()):
        raise UntrustedBundle(
            f"The MLflow model in {str(folder)!r} is not one of ours: it is loaded by {loader!r}"
            + (" and brings code along." if code else "."),
            hint="Only variants that the factory registered are loaded.",
        )
    return bundle


def only_bundle_of(folder: Path) -> Path | None:
    """Return the one folder with data of an MLflow model, which is the bundle of one of ours; None if there is none."""
    try:
        found = list((folder / DATA).iterdir())
    except OSError:
        return None
    return found[0] if len(found) == 1 else None


def signature(manifest: Manifest) -> ModelSignature:
    """Return the MLflow signature of a bundle.

    Inputs are declared by name and as required, but with MLflow's ``Any`` type: its ``double`` refuses whole numbers,
    its ``long`` refuses missing values and its ``string`` refuses pandas categories, all of which a variant predicts.
    The bundle checks values itself, with better sentences.
    """
    from mlflow.models import ModelSignature
    from mlflow.types.schema import AnyType, ColSpec, Schema

    inputs = [
        ColSpec(AnyType(), name=column.name, required=column.type is not ColumnType.IDENTIFIER)
        for column in manifest.columns
    ]
    prediction = ColSpec("string" if manifest.classes else "double", name="prediction")
    probabilities = [ColSpec("double", name=f"probability_{label}") for label in manifest.classes]
    return ModelSignature(inputs=Schema(inputs), outputs=Schema([prediction, *probabilities]))


def _example(example: pd.DataFrame, manifest: Manifest) -> pd.DataFrame:
    """Take three rows of the needed columns, dates as text: the example is stored as JSON."""
    names = [column.name for column in manifest.columns if column.name in example]
    rows = example[names].head(3).reset_index(drop=True)
    dates = {name: rows[name].dt.strftime("%Y-%m-%dT%H:%M:%S") for name in names if rows[name].dtype.kind == "M"}
    return rows.assign(**dates)


def _requirement() -> str:
    try:
        return f"{DISTRIBUTION}>={version(DISTRIBUTION)}"
    except PackageNotFoundError:
        return DISTRIBUTION


def quieten() -> None:
    """Set what MLflow reads when it is imported: no pickles, no telemetry, no chatter on the terminal."""
    os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    # MLflow warns about its own classes when it is imported.
    warnings.filterwarnings("ignore", message=r".*Any type hint is inferred as AnyType")
