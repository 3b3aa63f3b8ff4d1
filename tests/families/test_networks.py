"""What is particular to networks; the contract of every family is tested in test_families.py."""

from __future__ import annotations

import itertools
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from factory import plugins
from factory.data.preparation import Table
from factory.errors import TrainingFault, UntrustedBundle
from factory.families._epochs import Group, run
from factory.families._job import Job, Progress
from factory.families._mlp import ACTIVATIONS, NetworkModel, bin_edges, forward
from factory.families._network import NetworkFamily
from factory.families.base import Deadline, FitContext, Sample
from factory.spec import Task

FAMILIES = ["torch_network", "keras_network"]
PARAMETERS: dict[str, Any] = {
    "layers": 2,
    "width": 24,
    "number_size": 4,
    "embedding_size": 6,
    "activation": "silu",
    "dropout": 0.1,
    "optimizer": "adamw",
    "lr": 0.01,
    "weight_decay": 0.01,
    "batch_size": 32,
    "epochs": 12,
}
TABM = PARAMETERS | {"members": 4, "activation": "relu"}
PLAIN = PARAMETERS | {"optimizer": "sgd", "dropout": 0.0, "lr": 0.05, "epochs": 4}
N_CLASSES = {Task.BINARY: 2, Task.MULTICLASS: 3, Task.REGRESSION: 0}


def network(name: str) -> NetworkFamily:
    family = plugins.load("families", name)
    assert isinstance(family, NetworkFamily)
    return family


def sample(task: Task, n_rows: int, seed: int) -> Sample:
    """Return rows with missing values, a column of few levels and one of 20, which is embedded."""
    rng = np.random.default_rng(seed)
    numeric = rng.normal(size=(n_rows, 3)).astype(np.float32)
    codes = np.column_stack([rng.integers(0, 4, n_rows), rng.integers(0, 20, n_rows)]).astype(np.int32)
    signal = numeric[:, 0] + np.sin(np.arange(20.0))[codes[:, 1]] * 2
    numeric[rng.random(n_rows) < 0.1, 1] = np.nan
    y = {
        Task.REGRESSION: 1000 + 50 * signal,
        Task.BINARY: (signal > 0).astype(np.int64),
        Task.MULTICLASS: np.digitize(signal, [-1, 1]).astype(np.int64),
    }[task]
    return Sample(Table(numeric, codes, (4, 20), ("a", "b", "c"), ("d", "e")), y)


def context(task: Task = Task.BINARY, **changes: Any) -> FitContext:
    return FitContext(**{"task": task, "n_classes": N_CLASSES[task], "seed": 7} | changes)


def job(family: NetworkFamily, parameters: dict[str, Any], task: Task = Task.BINARY, **changes: Any) -> Job:
    train, validation = sample(task, 200, 0), sample(task, 80, 1)
    made, _ = family.job(train, validation=validation, parameters=parameters, context=context(task, **changes))
    return made


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_numpy_forward_equals_pytorch(activation: str) -> None:
    import torch

    made = job(network("torch_network"), PARAMETERS | {"activation": activation, "dropout": 0.0})
    learner = network("torch_network").learner(made, group=Group())
    run(made, learner, group=Group(), stopped=lambda: False)
    inputs = made.train.inputs
    with torch.no_grad():
        expected = learner._forward(torch.tensor(inputs.dense), torch.tensor(inputs.codes.astype(np.int64))).numpy()
    np.testing.assert_allclose(forward(made.architecture, learner.weights(), inputs), expected, atol=1e-5)


@pytest.mark.parametrize("task", list(Task), ids=str)
def test_numpy_forward_of_members_equals_pytorch(task: Task) -> None:
    import torch

    made = job(network("tabm"), TABM | {"dropout": 0.0}, task)
    learner = network("tabm").learner(made, group=Group())
    run(made, learner, group=Group(), stopped=lambda: False)
    inputs = made.train.inputs
    with torch.no_grad():
        outputs = learner._forward(torch.tensor(inputs.dense), torch.tensor(inputs.codes.astype(np.int64)))
    assert outputs.shape == (4, 200, made.architecture.n_outputs)
    assert outputs.std(dim=0).mean() > 1e-3, "members differ"
    expected = outputs.mean(dim=0) if task is Task.REGRESSION else outputs.softmax(dim=2).mean(dim=0).log()
    np.testing.assert_allclose(forward(made.architecture, learner.weights(), inputs), expected.numpy(), atol=2e-5)


def test_members_equal_those_of_the_authors_library() -> None:
    import rtdl_num_embeddings
    import tabm
    import torch

    whole = sample(Task.REGRESSION, 200, 0)
    numeric = np.nan_to_num(whole.table.numeric) + np.linspace(0, 1, 600, dtype=np.float32).reshape(200, 3)
    train = Sample(Table(numeric, np.empty((200, 0), np.int32), (), ("a", "b", "c"), ()), whole.y)
    family = network("tabm")
    made, _ = family.job(train, validation=None, parameters=TABM, context=context(Task.REGRESSION))
    learner = family.learner(made, group=Group())
    weights, a = run(made, learner, group=Group(), stopped=lambda: False).best, made.architecture
    x, n_bins = torch.tensor(made.train.inputs.dense), int((weights["bins_slope"][0] > 0).sum())
    edges = bin_edges(made.train.inputs.dense, bins=a.bins)
    assert {len(e) for e in edges} == {n_bins + 1}

    embeddings = rtdl_num_embeddings.PiecewiseLinearEmbeddings(
        [torch.tensor(e) for e in edges], a.number_size, activation=False, version="B"
    )
    theirs = tabm.TabM.make(
        n_num_features=3, d_out=1, num_embeddings=embeddings, n_blocks=2, d_block=a.width, k=4, dropout=0.0
    )
    ours = {
        "num_module.linear0.weight": weights["numbers_slope"],
        "num_module.linear0.bias": weights["numbers_bias"],
        "num_module.linear.weight": weights["numbers_kernel"][:, :n_bins],
        "output.weight": weights["output_kernel"],
        "output.bias": weights["output_bias"],
    }
    for i in range(2):
        ours[f"backbone.blocks.{i}.0.weight"] = weights[f"layer{i}_kernel"].T
        for name, part in (("r", "in"), ("s", "out"), ("bias", "bias")):
            ours[f"backbone.blocks.{i}.0.{name}"] = weights[f"layer{i}_{part}"]
    missing, unknown = theirs.load_state_dict({n: torch.tensor(w) for n, w in ours.items()}, strict=False)
    assert unknown == []
    assert all("impl" in name for name in missing), "the bins only"
    with torch.no_grad():
        expected = theirs.eval()(x).mean(dim=1).numpy()
    np.testing.assert_allclose(forward(a, weights, made.train.inputs), expected, atol=1e-5)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_numpy_forward_equals_keras(activation: str) -> None:
    from factory.families.keras_network import _forward

    made = job(network("keras_network"), PARAMETERS | {"activation": activation, "epochs": 4})
    learner = network("keras_network").learner(made, group=Group())
    run(made, learner, group=Group(), stopped=lambda: False)
    inputs = made.train.inputs
    expected = _forward(made.architecture, learner._layers, inputs.dense, inputs.codes, 0.0, None)
    np.testing.assert_allclose(forward(made.architecture, learner.weights(), inputs), expected, atol=1e-5)


@pytest.mark.parametrize("task", list(Task), ids=str)
def test_both_frameworks_train_the_same_network_under_plain_sgd(task: Task) -> None:
    train, validation = sample(task, 201, 0), sample(task, 80, 1)
    models = [
        network(name).fit(train, validation=validation, parameters=PLAIN, context=context(task)) for name in FAMILIES
    ]
    scale = models[0].architecture.target_scale
    predictions = [model.predict(validation.table) / scale for model in models]
    np.testing.assert_allclose(predictions[0], predictions[1], atol=1e-5)
    assert [p.step for p in models[0].curve] == [1, 2, 3, 4]
    assert [p.train for p in models[0].curve] == pytest.approx([p.train for p in models[1].curve], rel=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_training_goes_on_from_a_checkpoint_as_if_never_interrupted(name: str, tmp_path: Path) -> None:
    family = network(name)
    made = job(family, PARAMETERS | {"epochs": 6})
    reports: list[Progress] = []
    whole = run(made, family.learner(made, group=Group()), group=Group(report=reports.append), stopped=lambda: False)
    reports[2].save(tmp_path)
    resumed = Group(resume=lambda: Progress.load(tmp_path))
    made.save(tmp_path)
    again = Job.load(tmp_path)
    assert again.plan == made.plan
    rest = run(again, family.learner(again, group=resumed), group=resumed, stopped=lambda: False)
    assert len(reports) == 6
    assert rest.curve == whole.curve
    assert rest.best_epoch == whole.best_epoch
    for array_name, array in whole.best.items():
        np.testing.assert_allclose(rest.best[array_name], array, atol=1e-6)


def test_best_epoch_is_kept_and_patience_ends_training() -> None:
    train, validation = sample(Task.BINARY, 60, 0), sample(Task.BINARY, 200, 1)
    hasty = PARAMETERS | {"lr": 0.1, "epochs": 200, "dropout": 0.0, "weight_decay": 1e-6}
    model = network("torch_network").fit(train, validation=validation, parameters=hasty, context=context())
    seen = [point.validation or np.inf for point in model.curve]
    assert model.rounds == int(np.argmin(seen)) + 1
    assert len(seen) == model.rounds + 66 < 200
    probability = model.predict(validation.table)[np.arange(200), validation.y]
    assert -np.log(probability).mean() == pytest.approx(min(seen), abs=1e-6)


def test_a_refit_trains_the_rounds_it_is_given_and_validates_nothing() -> None:
    train = sample(Task.BINARY, 200, 0)
    model = network("torch_network").fit(
        train, validation=sample(Task.BINARY, 50, 1), parameters=PARAMETERS, context=context(rounds=5)
    )
    assert model.rounds == 5
    assert [point.validation for point in model.curve] == [None] * 5


def test_a_long_epoch_is_stopped_within() -> None:
    train = sample(Task.BINARY, 4000, 0)
    calls = iter(range(100))
    stop_in_first_epoch = context(keep_going=lambda: next(calls) < 2)
    model = network("torch_network").fit(
        train, validation=None, parameters=PARAMETERS | {"batch_size": 32}, context=stop_in_first_epoch
    )
    assert model.rounds == 0
    assert not np.allclose(model.predict(train.table)[:, 1].std(), 0), "what it learned so far is kept"


def test_a_passed_deadline_leaves_the_class_shares() -> None:
    train = sample(Task.MULTICLASS, 300, 0)
    model = network("torch_network").fit(
        train, validation=None, parameters=PARAMETERS, context=context(Task.MULTICLASS, deadline=Deadline(0))
    )
    shares = (np.bincount(train.y) + 1) / 303
    np.testing.assert_allclose(model.predict(train.table), np.tile(shares, (300, 1)), atol=1e-6)


def test_diverging_training_says_so() -> None:
    train = sample(Task.REGRESSION, 100, 0)
    y = np.where(np.arange(100) == 3, np.inf, train.y)
    with (
        np.errstate(all="ignore"),
        pytest.raises(TrainingFault, match="not finite after epoch 1"),
    ):
        network("torch_network").fit(
            replace(train, y=y), validation=None, parameters=PLAIN, context=context(Task.REGRESSION)
        )


def test_weight_decay_and_dropout_have_an_effect() -> None:
    train = sample(Task.BINARY, 200, 0)

    def norm(**changes: Any) -> float:
        model = network("torch_network").fit(
            train, validation=None, parameters=PARAMETERS | {"dropout": 0.0} | changes, context=context()
        )
        return float(np.linalg.norm(model.weights["layer1_kernel"]))

    assert norm(weight_decay=0.5) < 0.95 * norm(weight_decay=1e-6)
    assert norm(dropout=0.4) != norm(dropout=0.0)


@pytest.mark.parametrize("name", FAMILIES)
def test_serving_imports_no_framework(name: str, tmp_path: Path) -> None:
    train = sample(Task.BINARY, 100, 0)
    model = network(name).fit(train, validation=None, parameters=PLAIN, context=context())
    model.save(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["encoder.npz", "network.json", "network.safetensors"]
    script = (
        "import sys\n"
        f"sys.path[:] = {sys.path!r}\n"
        "from pathlib import Path\n"
        "import numpy as np\n"
        "from factory import plugins\n"
        "from factory.data.preparation import Table\n"
        f"model = plugins.load('families', {name!r}).load(Path({str(tmp_path)!r}))\n"
        "row = Table(np.zeros((1, 3), np.float32), np.zeros((1, 2), np.int32), (4, 20), ('a', 'b', 'c'), ('d', 'e'))\n"
        "assert model.predict(row).shape == (1, 2)\n"
        "print([m for m in ('torch', 'tensorflow', 'keras', 'ray', 'sklearn') if m in sys.modules])\n"
    )
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert answer.stdout.strip() == "[]", answer.stderr


def test_weights_that_do_not_fit_are_not_loaded(tmp_path: Path) -> None:
    train = sample(Task.BINARY, 100, 0)
    model = network("torch_network").fit(train, validation=None, parameters=PLAIN, context=context())
    model.weights["output_bias"] = np.zeros(3, np.float32)
    model.save(tmp_path)
    with pytest.raises(UntrustedBundle, match="do not fit"):
        NetworkModel.load(tmp_path)


@pytest.fixture
def a_second_a_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a second pass each time that the schedule looks at the clock."""
    seconds = itertools.count()
    monkeypatch.setattr("factory.families._epochs.time", SimpleNamespace(perf_counter=lambda: float(next(seconds))))


@pytest.mark.usefixtures("a_second_a_look")
def test_the_schedule_ends_with_the_time() -> None:
    train, validation = sample(Task.BINARY, 1000, 0), sample(Task.BINARY, 100, 1)
    rates: list[float] = []
    family = network("tabm")
    made, _ = family.job(train, validation=validation, parameters=TABM | {"epochs": 10_000}, context=context())
    learner = family.learner(made, group=Group())
    step = learner.step

    def watched(rows: np.ndarray, *, n_batch: int, lr: float) -> float:
        rates.append(lr)
        return step(rows, n_batch=n_batch, lr=lr)

    learner.step = watched  # type: ignore[method-assign]  # to see the rates that a fit uses
    progress = run(made, learner, group=Group(), stopped=lambda: False, time_s=200)
    assert rates[0] == pytest.approx(0.01, rel=0.01)
    assert rates[-1] < 0.001
    assert rates == sorted(rates, reverse=True)
    assert progress.best_epoch >= 1


@pytest.mark.usefixtures("a_second_a_look")
def test_a_part_of_an_epoch_counts_where_there_is_no_time_for_more() -> None:
    n_steps = 20
    train, validation = sample(Task.BINARY, 1000, 0), sample(Task.BINARY, 100, 1)
    family = network("tabm")
    made, _ = family.job(train, validation=validation, parameters=TABM, context=context())
    learner = family.learner(made, group=Group())
    progress = run(made, learner, group=Group(), stopped=lambda: False, time_s=n_steps)
    assert n_steps < len(made.plan.batches(len(made.train), 0)), "an epoch is longer"
    assert len(progress.curve) == progress.best_epoch == 1
    assert progress.curve[0].validation is not None


@pytest.mark.parametrize("name", [*FAMILIES, "tabm"])
def test_rows_without_weight_are_not_learned(name: str) -> None:
    train = sample(Task.REGRESSION, 120, 0)
    chosen = np.arange(120) < 60
    parameters = TABM if name == "tabm" else PARAMETERS
    fitted = []
    for weight in (None, np.where(chosen, 2.0, 0.0)):
        weighted = replace(train, y=np.where(chosen, train.y, train.y + 100), weight=weight)
        model = network(name).fit(weighted, validation=None, parameters=parameters, context=context(Task.REGRESSION))
        fitted.append(model.predict(train.table)[chosen] - train.y[chosen])
    assert fitted[0].mean() > 25, "unweighted, it lies between the two halves"
    assert abs(fitted[1].mean()) < 15


def test_a_target_is_learned_on_its_scale() -> None:
    train = sample(Task.REGRESSION, 200, 0)
    skewed = replace(train, y=np.expm1((train.y - 700) / 100))
    model = network("torch_network").fit(
        skewed,
        validation=None,
        parameters=PARAMETERS,
        context=context(Task.REGRESSION, target_scale="log"),
    )
    assert model.architecture.target_mean == pytest.approx(np.log1p(skewed.y).mean())
    errors = np.log1p(model.predict(train.table)) - np.log1p(skewed.y)
    assert np.sqrt(np.mean(errors**2)) < 0.6 * np.log1p(skewed.y).std()


def test_going_on_fine_tunes_and_never_gets_worse_on_the_validation_rows() -> None:
    family, validation = network("tabm"), sample(Task.BINARY, 300, 1)
    first = family.fit(sample(Task.BINARY, 100, 0), validation=validation, parameters=TABM, context=context())
    arguments: dict[str, Any] = {"validation": validation, "parameters": TABM, "context": context()}
    more = family.resume(first, sample(Task.BINARY, 600, 2), **arguments)
    assert more is not None
    assert more.rounds > first.rounds

    def loss(model: NetworkModel) -> float:
        return float(-np.log(model.predict(validation.table)[np.arange(300), validation.y]).mean())

    assert loss(more) < loss(first)
    wrong = sample(Task.BINARY, 600, 2)
    unmoved = family.resume(first, replace(wrong, y=1 - wrong.y), **arguments)
    assert unmoved is not None
    assert loss(unmoved) <= loss(first)
