"""A variant as one ONNX file: preparation, models, blend and calibration, from raw columns to the answer.

Written only where it says the same: before the file is there, ONNX Runtime
predicts rows that the variant carries, rows without any value and rows with
levels that nobody has seen, and has to come within :data:`EXACT` of the
variant.  What ONNX does not have is named, member by member.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from factory.data.columns import as_datetime, as_numeric, as_text
from factory.data.graph import COLUMNS, DOUBLE, ML, STRING, CannotDraw, Graph, Node
from factory.errors import Conflict, Detail, SystemFault, listing
from factory.search.calibration import TILT, Calibration
from factory.spec import NUMBERS, ColumnType
from factory.variants.bundle import Bundle
from factory.variants.inputs import Columns

FILE = "model.onnx"
EXACT = 1e-5
"""Difference of probabilities, or of numbers relative to the largest one, that rounding may make."""
PREDICTION, PROBABILITIES = "prediction", "probabilities"
OPSETS = {"": 21, ML: 5}
"""Versions of the operators: 5 is the first one with splits on sets of levels."""
IR_VERSION = 10
_UNSEEN = "a level that nobody has seen"


@dataclass(frozen=True)
class Told:
    """How exact a file is.

    Attributes:
        rows: That were compared.
        difference: The largest one, in the units of :data:`EXACT`.
    """

    rows: int
    difference: float


def write(bundle: Bundle, folder: Path, *, about: Mapping[str, str]) -> Told:
    """Write ``model.onnx`` into an existing folder.

    Args:
        bundle: The variant.
        folder: Gets the file.
        about: Metadata of the file.

    Raises:
        Conflict: parts of the variant cannot be written in ONNX, or come out otherwise there.
        SystemFault: onnx or onnxruntime is not installed.
    """
    serialized = _serialized(drawn(bundle), bundle, about)
    told = compared(serialized, bundle)
    (folder / FILE).write_bytes(serialized)
    return told


def drawn(bundle: Bundle) -> Graph:
    """Draw a variant; its outputs are PREDICTION and, of classes, PROBABILITIES.

    Raises:
        Conflict: what ONNX does not have is in the details.
    """
    graph, problems = Graph(), []
    reserved = {PREDICTION, PROBABILITIES} & {column.name for column in bundle.columns}
    problems += [Detail(f"columns.{name}", "a column of this name, which the file's output has") for name in reserved]
    tables: list[Any] = []
    for i, preparation in enumerate(bundle.preparations):
        try:
            tables.append(preparation.draw(graph))
        except CannotDraw as reason:
            tables.append(None)
            problems.append(Detail(f"preparations.{i}", str(reason)))
    answers = []
    for i, member in enumerate(bundle.members):
        try:
            if (table := tables[member.preparation]) is not None:
                answers.append(graph.add("Mul", member.model.draw(table), np.array(member.weight)))
        except CannotDraw as reason:
            problems.append(Detail(f"members.{i}.{member.family}", str(reason)))
    if problems:
        raise Conflict(
            f"ONNX does not have {listing({problem.message for problem in problems}, most=6)}.",
            hint="Export it as a folder, or order it with `families` that are trees or linear, without texts.",
            details=problems,
        )
    blend = graph.sum_of(answers)
    if not bundle.classes:
        if (floor := bundle.calibration.floor) is not None:
            blend = graph.add("Max", blend, np.array(floor))
        _named(graph, graph.add("Reshape", blend, np.array([-1], dtype=np.int64)), PREDICTION)
        return graph
    shares = _calibrated(graph, blend, bundle.calibration)
    index = _decided(graph, shares, bundle.calibration, len(bundle.classes))
    label = graph.add("Gather", np.array(bundle.classes, dtype=object), index, axis=0)
    _named(graph, label, PREDICTION)
    _named(graph, shares, PROBABILITIES)
    return graph


def _named(graph: Graph, tensor: str, name: str) -> None:
    """Give an output its name."""
    graph.nodes.append(Node("Identity", (tensor,), name, "", {}))


def _calibrated(graph: Graph, blend: str, calibration: Calibration) -> str:
    """Draw :meth:`Calibration.apply`."""
    if calibration.method == "temperature":
        inside = graph.add("Min", graph.add("Max", blend, np.array(1e-15)), np.array(1.0))
        powered = graph.add("Pow", inside, np.array(1 / calibration.temperature))
        return graph.add("Div", powered, graph.total(powered))
    if calibration.method == "none":
        return blend
    second = graph.columns(blend, [1])
    knots, levels = np.array(calibration.knots), np.array(calibration.levels)
    risen: str | np.ndarray = np.array(levels[0])
    # Each piece adds what the curve rises within it.
    for at in range(len(knots) - 1):
        slope = (levels[at + 1] - levels[at]) / (knots[at + 1] - knots[at])
        inside = graph.add("Min", graph.add("Max", second, np.array(knots[at])), np.array(knots[at + 1]))
        piece = graph.add("Mul", graph.add("Sub", inside, np.array(knots[at])), np.array(slope))
        risen = graph.add("Add", risen, piece)
    tilted = graph.add("Mul", second, np.array(TILT))
    second = graph.add("Add", graph.add("Mul", risen, np.array(1 - TILT)), tilted)
    return graph.both(second)


def _decided(graph: Graph, shares: str, calibration: Calibration, n_classes: int) -> str:
    """Draw :meth:`Calibration.labels`: int64 (n_rows,)."""
    if n_classes == 2 and calibration.threshold != 0.5:
        odds = np.array([calibration.threshold, 1 - calibration.threshold])
        shares = graph.add("Mul", shares, odds)
    return graph.add("ArgMax", shares, axis=COLUMNS, keepdims=0)


# --- ONNX ---------------------------------------------------------------------------------


def _serialized(graph: Graph, bundle: Bundle, about: Mapping[str, str]) -> bytes:
    onnx = _imported("onnx")
    helper = onnx.helper
    types: dict[str, tuple[int, list[str | int]]] = {PREDICTION: (STRING if bundle.classes else DOUBLE, ["rows"])}
    if bundle.classes:
        types[PROBABILITIES] = (DOUBLE, ["rows", len(bundle.classes)])
    made = helper.make_graph(
        [_node(helper, node) for node in graph.nodes],
        "variant",
        [helper.make_tensor_value_info(name, element, ["rows", 1]) for name, element in graph.inputs.items()],
        [helper.make_tensor_value_info(name, element, shape) for name, (element, shape) in types.items()],
        initializer=[_tensor(helper, name, values) for name, values in graph.constants.items()],
    )
    model = helper.make_model(
        made,
        producer_name="model-variant-factory",
        opset_imports=[helper.make_opsetid(domain, version) for domain, version in OPSETS.items()],
        ir_version=IR_VERSION,
    )
    helper.set_model_props(model, {**about, "classes": json.dumps(bundle.classes)})
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def _node(helper: Any, node: Node) -> Any:
    attributes = {
        name: _tensor(helper, name, value) if isinstance(value, np.ndarray) else value
        for name, value in node.attributes.items()
    }
    outputs = [f"{node.output}:{i}" for i in range(node.ignored)] + [node.output]
    return helper.make_node(node.operator, list(node.inputs), outputs, domain=node.domain, **attributes)


def _tensor(helper: Any, name: str, values: np.ndarray) -> Any:
    if values.dtype == object:
        encoded = [text.encode() for text in values.ravel().tolist()]
        return helper.make_tensor(name, STRING, values.shape, encoded)
    element = helper.np_dtype_to_tensor_dtype(values.dtype)
    return helper.make_tensor(name, element, values.shape, np.ascontiguousarray(values).tobytes(), raw=True)


def _imported(name: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise SystemFault(
            f"{name} is not installed, which ONNX files need.", hint="pip install 'model-variant-factory[onnx]'"
        ) from error


# --- whether it says the same -------------------------------------------------------------


def compared(serialized: bytes, bundle: Bundle) -> Told:
    """Hold a file against its variant.

    Raises:
        Conflict: they differ by more than rounding.
    """
    runtime = _imported("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    session = runtime.InferenceSession(serialized, options, providers=["CPUExecutionProvider"])
    rows = _rows(bundle)
    expected = bundle.predict_raw(rows)
    fed = as_inputs(rows, {one.name: one.type for one in session.get_inputs()})
    outputs = dict(zip([one.name for one in session.get_outputs()], session.run(None, fed), strict=True))
    got = outputs[PROBABILITIES] if bundle.classes else outputs[PREDICTION]
    unit = 1.0 if bundle.classes else max(float(np.abs(expected).max(initial=0.0)), 1e-12)
    difference = float(np.abs(got - expected).max(initial=0.0)) / unit
    if not difference <= EXACT:
        raise Conflict(
            f"In ONNX the variant's answers differ by {difference:.2g}, where {EXACT:g} is rounding.",
            hint="Export it as a folder; and tell the developers of the factory, who had not foreseen this.",
            details=[Detail("difference", f"{difference:.6g}")],
        )
    return Told(len(expected), difference)


def as_inputs(rows: Columns, wanted: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Return columns as an ONNX session takes them: float32, texts, or microseconds, (n_rows, 1).

    Args:
        rows: Arrays (n_rows,) by column name.
        wanted: ONNX Runtime's type of each input.
    """
    found: dict[str, np.ndarray] = {}
    for name, kind in wanted.items():
        values = np.asarray(rows[name])
        if kind == "tensor(string)":
            column = np.array([text or "" for text in as_text(values).tolist()], dtype=object)
        elif kind == "tensor(int64)":
            column = as_datetime(values).astype("M8[us]").astype(np.int64)
        else:
            column = as_numeric(values).astype(np.float32)
        found[name] = column.reshape(-1, 1)
    return found


def _rows(bundle: Bundle) -> dict[str, np.ndarray]:
    """Return rows to compare by: the variant's own, one without any value, one of levels that nobody has seen."""
    known = bundle.background.columns if bundle.background is not None else {}
    rows = {}
    for column in bundle.columns:
        own = known.get(column.name)
        if column.type in NUMBERS:
            extra: Sequence[Any] = [np.nan, 0.0, -1e9, np.inf]
            rows[column.name] = np.array([*([] if own is None else own), *extra], dtype=np.float64)
        elif column.type is ColumnType.DATETIME:
            moments = np.array(["NaT", "2024-02-29T23:59:59", "1969-12-31T00:00:01", "2100-03-01"], dtype="M8[us]")
            rows[column.name] = moments if own is None else np.concatenate([own.astype("M8[us]"), moments])
        else:
            rows[column.name] = np.array([*([] if own is None else own), None, _UNSEEN, "", "0"], dtype=object)
    return rows
