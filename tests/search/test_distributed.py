"""Two workers against one, and a node killed in mid-training, on a test cluster of two nodes (Must show 9)."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from factory.data.preparation import Table
from factory.errors import InvalidRequest, TrainingFault
from factory.families.base import Deadline, FitContext, Model, Sample
from factory.plugins import load
from factory.search.cluster import session
from factory.search.distributed import STOP_GRACE_S, fit_distributed
from factory.settings import Settings
from factory.spec import Task

KILL_AFTER = 6
FAMILIES = ["torch_network", "keras_network"]
TOLERANCE = 1e-5
"""Of a probability after a few hundred steps of plain SGD: float32 sums in another order, nothing else."""

PARAMETERS: dict[str, Any] = {
    "layers": 2,
    "width": 16,
    "number_size": 4,
    "embedding_size": 4,
    "activation": "silu",
    "dropout": 0.0,
    "optimizer": "sgd",
    "lr": 0.1,
    "weight_decay": 0.01,
    "batch_size": 50,
    "epochs": 4,
}


def samples() -> tuple[Sample, Sample]:
    """Return 301 training rows (an odd number, so that the workers' shares differ) and 99 validation rows."""
    rng = np.random.default_rng(0)
    numeric = rng.normal(size=(400, 4)).astype(np.float32)
    codes = rng.integers(0, 12, (400, 1)).astype(np.int32)
    table = Table(numeric, codes, (12,), ("a", "b", "c", "d"), ("e",))
    y = (numeric[:, 0] + numeric[:, 1] ** 2 + rng.normal(size=12)[codes[:, 0]] > 1).astype(np.int64)
    order = np.arange(400)
    return Sample(table.rows(order[:301]), y[:301]), Sample(table.rows(order[301:]), y[301:])


@pytest.fixture
def cluster() -> Iterator[SimpleNamespace]:
    """A head and a second node, one CPU each."""
    import ray
    from ray.cluster_utils import Cluster

    quick = {"health_check_period_ms": 500, "health_check_timeout_ms": 500, "health_check_failure_threshold": 3}
    head = {"num_cpus": 1, "include_dashboard": False, "_system_config": quick}
    nodes = Cluster(initialize_head=True, head_node_args=head)
    second = nodes.add_node(num_cpus=1)
    ray.init(address=nodes.address, log_to_driver=False)
    yield SimpleNamespace(nodes=nodes, second=second)
    ray.shutdown()
    nodes.shutdown()


@pytest.mark.slow
def test_a_session_leaves_the_process_to_a_ray_of_its_own(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    import ray

    before = {name: value for name, value in os.environ.items() if "AUTH" in name}
    with session(Settings(home=tmp_path, cpus=1)):
        assert ray.is_initialized()
    assert {name: value for name, value in os.environ.items() if "AUTH" in name} == before
    # Its control store would ask for a token that nobody names any more, and end before it wrote its port.
    request.getfixturevalue("cluster")
    assert ray.cluster_resources()["CPU"] == 2


def context(**changes: Any) -> FitContext:
    return FitContext(**{"task": Task.BINARY, "n_classes": 2, "seed": 3, "deadline": Deadline.after(300)} | changes)


def distributed(
    name: str, parameters: dict[str, Any], workers: int | tuple[int, int], storage: Path, **changes: Any
) -> Model:
    train, validation = samples()
    return fit_distributed(
        load("families", name),
        train,
        validation=validation,
        parameters=parameters,
        context=context(**changes),
        workers=workers,
        gpus_per_worker=0,
        storage=storage,
    )


def alone(name: str, parameters: dict[str, Any]) -> Model:
    train, validation = samples()
    return load("families", name).fit(train, validation=validation, parameters=parameters, context=context())


def assert_equal(one: Model, many: Model) -> None:
    _, validation = samples()
    assert many.rounds == one.rounds
    assert [p.step for p in many.curve] == [p.step for p in one.curve]
    assert [p.validation for p in many.curve] == pytest.approx([p.validation for p in one.curve], abs=TOLERANCE)
    np.testing.assert_allclose(many.predict(validation.table), one.predict(validation.table), atol=TOLERANCE)


class NodeKiller(threading.Thread):
    """Kills the second node once some epochs have their checkpoint, and notes the lowest epoch written after that."""

    def __init__(self, cluster: SimpleNamespace, storage: Path) -> None:
        super().__init__(daemon=True)
        self.cluster, self.storage = cluster, storage
        self.last_before, self.lowest_after = 0, 1000
        self.over = threading.Event()

    def run(self) -> None:
        while max(self.checkpoints().values(), default=0) < KILL_AFTER:
            time.sleep(0.02)
        self.cluster.nodes.remove_node(self.cluster.second, allow_graceful=False)
        before = self.checkpoints()
        self.last_before = max(before.values())
        while not self.over.wait(0.02):
            later = [epoch for path, epoch in self.checkpoints().items() if path > max(before)]
            self.lowest_after = min([self.lowest_after, *later])

    def checkpoints(self) -> dict[str, int]:
        """Return path → epochs of the checkpoints that are whole."""
        found = {}
        for path in self.storage.glob("*/run/checkpoint_*/progress.json"):
            with contextlib.suppress(OSError, ValueError):
                found[path.parent.name] = int(json.loads(path.read_text())["epochs"])
        return found


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_two_workers_equal_one_and_outlive_a_node(name: str, cluster: SimpleNamespace, tmp_path: Path) -> None:
    assert_equal(alone(name, PARAMETERS), distributed(name, PARAMETERS, 2, tmp_path))

    longer = PARAMETERS | {"epochs": 24}
    killer = NodeKiller(cluster, tmp_path)
    killer.start()
    survived = distributed(name, longer, (1, 2), tmp_path)
    killer.over.set()
    killer.join()
    assert killer.last_before >= KILL_AFTER
    assert killer.lowest_after >= killer.last_before - 2, "it began anew instead of at the last checkpoint"
    assert_equal(alone(name, longer), survived)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_deadline_ends_training_and_waiting(cluster: SimpleNamespace, tmp_path: Path) -> None:
    started = time.monotonic()
    endless = PARAMETERS | {"epochs": 256, "lr": 1e-3}
    model = distributed("torch_network", endless, 2, tmp_path, deadline=Deadline.after(30))
    assert 0 < model.rounds <= len(model.curve) < 256
    assert time.monotonic() - started < 30 + STOP_GRACE_S

    started = time.monotonic()
    with pytest.raises(TrainingFault, match="workers did not end in time"):
        distributed("torch_network", PARAMETERS, 3, tmp_path, deadline=Deadline.after(2))
    assert time.monotonic() - started < 2 + STOP_GRACE_S + 10


@pytest.mark.parametrize(
    ("family", "workers", "gpus", "problem"),
    [
        ("constant", 2, 0.0, "cannot train on several workers"),
        ("torch_network", 0, 0.0, "workers 0"),
        ("torch_network", (3, 2), 0.0, r"workers \(3, 2\)"),
        ("torch_network", 2, 2.0, r"gpus_per_worker 2.0"),
    ],
)
def test_what_cannot_be_distributed_is_refused(
    family: str, workers: int | tuple[int, int], gpus: float, problem: str, tmp_path: Path
) -> None:
    train, validation = samples()
    with pytest.raises(InvalidRequest, match=problem):
        fit_distributed(
            load("families", family),
            train,
            validation=validation,
            parameters=PARAMETERS,
            context=context(),
            workers=workers,
            gpus_per_worker=gpus,
            storage=tmp_path,
        )
    assert list(tmp_path.iterdir()) == []
