"""A variant as a folder that predicts without the factory: its bundle, the modules that read it, and a short loader.

The modules are those that the loader imports, found by reading their source;
what they need beside are NumPy, pandas, pydantic and the members' own
frameworks, in the versions that are installed here.  Or it is one ONNX file
(:mod:`factory.variants.onnx_file`).
"""

from __future__ import annotations

import ast
import importlib.util
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib.metadata import distribution, packages_distributions, version
from pathlib import Path
from typing import Literal, get_args

from factory.data.drawing import MISSING_MOMENT
from factory.errors import Conflict, Detail, InvalidRequest, StorageFault, listing
from factory.spec import ColumnType, Variant
from factory.variants import onnx_file
from factory.variants.bundle import Bundle
from factory.variants.mlflow_model import bundle_of

Format = Literal["folder", "docker", "onnx"]
PACKAGE = "factory"
_ROOT = "factory.variants.bundle"
_LOADER = '''"""{name}/{version}: `python predict.py ROWS.csv > predictions.csv`, or `from predict import predict`."""

import sys
from pathlib import Path

import pandas as pd

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "runtime"))

from factory.variants.bundle import Bundle  # noqa: E402

DIGEST = "{digest}"
_bundle = Bundle.load(HERE / "bundle", digest=DIGEST)


def predict(rows: pd.DataFrame) -> pd.DataFrame:
    """Return `prediction`, and a `probability_...` for each class, of rows with the columns of README.md."""
    return _bundle.predict(_bundle.require(rows))


if __name__ == "__main__":
    read = pd.read_parquet if sys.argv[1].endswith(".parquet") else pd.read_csv
    predict(read(sys.argv[1])).to_csv(sys.stdout, index=False)
'''
_README = """# {name}/{version}

Made by model-variant-factory on {created} with the recipe `{recipe}`. {task}; {metric} {score:.5g}.

```
python -m venv .venv && .venv/bin/pip install -r requirements.txt
.venv/bin/python predict.py rows.csv > predictions.csv
```

Python {python}. `predict.py` refuses a bundle that was changed. Nothing is unpickled.

| column | type |
|---|---|
{columns}
"""
_ONNX_README = """# {variant} as ONNX

```python
import numpy as np, onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
answers = session.run(None, {{"COLUMN": np.array([[1.5]], dtype=np.float32), ...}})
```

Each input is one column, (rows, 1). Its type:

| column | type |
|---|---|
{columns}

Outputs:

{outputs}

{exact}
Categories are texts as the factory writes them: `3` and not `3.0`, `True`; an empty text is missing.
"""
_INPUTS = {
    ColumnType.NUMERIC: "float32; NaN is missing",
    ColumnType.BOOLEAN: "float32: 1 or 0; NaN is missing",
    ColumnType.CATEGORICAL: "string; empty is missing",
    ColumnType.DATETIME: f"int64: microseconds since 1970 in UTC; {MISSING_MOMENT} is missing",
}
_DOCKERFILE = """FROM python:{python}-slim
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/*
WORKDIR /variant
COPY requirements.txt .
RUN pip install --no-cache-dir -r requirements.txt
COPY . .
USER nobody
ENV PYTHONPATH=/variant/runtime MLFLOW_ALLOW_PICKLE_DESERIALIZATION=false
EXPOSE 8080
CMD ["mlflow", "models", "serve", "-m", "model", "--env-manager", "local", "-h", "0.0.0.0", "-p", "8080"]
"""


def export(variant: Variant, model: Path, out: Path, *, as_: Format = "folder") -> None:
    """Write a variant into a new or empty folder.

    Args:
        variant: What the ledger says of it.
        model: The folder of its MLflow model.
        out: Gets ``bundle/``, ``runtime/``, ``predict.py``, ``requirements.txt`` and ``README.md``.
        as_: ``docker`` adds the MLflow model, and a ``Dockerfile`` whose container serves it. ``onnx`` writes
            ``model.onnx`` and ``README.md``, nothing else.

    Raises:
        InvalidRequest: there is no such format.
        Conflict: the folder is not empty, or ONNX does not have what the variant does.
        UntrustedBundle: the bundle is not what the ledger says.
        StorageFault: the folder cannot be written.
    """
    if as_ not in get_args(Format):
        raise InvalidRequest(
            f"format: There is none that is called {as_!r}.",
            hint=f"Allowed: {listing(get_args(Format))}.",
            details=[Detail("format", f"{as_!r} is not allowed")],
        )
    bundle = bundle_of(model)
    loaded = Bundle.load(bundle, digest=variant.bundle_digest)
    try:
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            raise Conflict(
                f"{str(out)!r} is not empty.",
                hint="Name another folder, or remove this one.",
                details=[Detail("out", "is not empty")],
            )
        if as_ == "onnx":
            _write_onnx(out, variant, loaded)
            return
        shutil.copytree(bundle, out / "bundle")
        families = sorted({member.family for member in loaded.members})
        modules = list(closure([_ROOT, *(f"factory.families.{family}" for family in families)]))
        _copy(modules, out / "runtime")
        if as_ == "docker":
            shutil.copytree(model, out / "model")
        _write(out, variant, loaded, modules=modules, as_=as_)
    except OSError as error:
        raise StorageFault(
            f"{str(out)!r} cannot be written: {error.strerror or error}.",
            hint="Make room, or name another folder.",
            details=[Detail("out", str(error))],
        ) from error


def _write(out: Path, variant: Variant, bundle: Bundle, *, modules: Iterable[str], as_: Format) -> None:
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    about = {"name": variant.name, "version": variant.version, "digest": variant.bundle_digest}
    (out / "predict.py").write_text(_LOADER.format(**about), encoding="utf-8")
    needed = set(requirements(modules))
    if as_ == "docker":
        needed.add(_pinned("mlflow"))
        (out / "Dockerfile").write_text(_DOCKERFILE.format(python=python), encoding="utf-8")
    (out / "requirements.txt").write_text("".join(f"{line}\n" for line in sorted(needed)), encoding="utf-8")
    readme = _README.format(
        **about,
        created=f"{variant.created:%Y-%m-%d}" if variant.created else "an unknown day",
        recipe=variant.recipe,
        task=variant.task.capitalize(),
        metric=variant.metric,
        score=variant.score,
        python=python,
        columns="\n".join(f"| `{column.name}` | {column.type} |" for column in bundle.columns),
    )
    (out / "README.md").write_text(readme, encoding="utf-8")


def _write_onnx(out: Path, variant: Variant, bundle: Bundle) -> None:
    about = {"variant": f"{variant.name}/{variant.version}", "digest": variant.bundle_digest, "task": variant.task}
    told = onnx_file.write(bundle, out, about=about)
    columns = "\n".join(f"| `{column.name}` | {_INPUTS[column.type]} |" for column in bundle.columns)
    outputs = [f"`{onnx_file.PREDICTION}`: the answer, (rows,)."]
    if bundle.classes:
        labels = ", ".join(f"`{label}`" for label in bundle.classes)
        outputs.append(f"`{onnx_file.PROBABILITIES}`: float64 (rows, {len(bundle.classes)}), of {labels}.")
    exact = f"{told.rows} rows were compared with the variant: no answer differs by more than {told.difference:.1g}."
    text = _ONNX_README.format(
        **about, columns=columns, outputs="\n".join(f"- {line}" for line in outputs), exact=exact
    )
    (out / "README.md").write_text(text, encoding="utf-8")


# --- the modules ----------------------------------------------------------------------


def closure(roots: Iterable[str]) -> Iterator[str]:
    """Yield modules of this package and all of this package that they import, also within functions."""
    left, seen = list(roots), set[str]()
    while left:
        name = left.pop()
        if name in seen or importlib.util.find_spec(name) is None:
            continue
        seen.add(name)
        yield name
        left += [name.rpartition(".")[0]] if "." in name else []
        left += [each for each in _imported(name) if each.partition(".")[0] == PACKAGE]


def requirements(modules: Iterable[str]) -> list[str]:
    """Return the distributions of others that modules import, pinned to what is installed, sorted."""
    names = {each.partition(".")[0] for module in modules for each in _imported(module)}
    known = _distributions()
    found = {known[name][0] for name in names if name != PACKAGE and name in known}
    return sorted(_pinned(name) for name in found)


@cache
def _distributions() -> Mapping[str, list[str]]:
    return packages_distributions()


def _pinned(name: str) -> str:
    # Without a local tag, as +cpu: whoever installs it chooses the build.
    return f"{distribution(name).metadata['Name']}=={version(name).partition('+')[0]}"


@cache
def _imported(name: str) -> tuple[str, ...]:
    """Return what a module imports, but for type checkers; names of a package may be its modules."""
    return tuple(_imports(name))


def _imports(name: str) -> Iterator[str]:
    for node in _nodes(ast.parse(_source(name).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            if node.module.partition(".")[0] == PACKAGE:
                yield from (
                    f"{node.module}.{alias.name}" for alias in node.names if _is_module(node.module, alias.name)
                )


def _nodes(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from _nodes(node)


def _is_module(package: str, name: str) -> bool:
    if re.fullmatch(r"[a-z_0-9]+", name) is None:
        return False
    source = _source(package)
    return source.name == "__init__.py" and (
        (source.parent / f"{name}.py").exists() or (source.parent / name / "__init__.py").exists()
    )


def _source(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin)


def _copy(modules: Iterable[str], into: Path) -> None:
    root = _source(PACKAGE).parent.parent
    for name in modules:
        source = _source(name)
        target = into / source.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
