"""Two workers against one, and a node killed in mid-training, on a test cluster of two nodes (Must show 9)."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from factory.data.preparation import Table
from factory.errors import InvalidRequest
from factory.families.base import Deadline, FitContext, Model, Sample
from factory.plugins import load
from factory.search.distributed import fit_distributed
from factory.spec import Task

FAMILIES = ["torch_network", "keras_network"]
TOLERANCE = 1e-5
"""Of a probability after a few hundred steps of plain SGD: float32 sums in another order, nothing else."""

PARAMETERS: dict[str, Any] = {
    "layers": 2,
    "width": 16,
    "embedding_size": 4,
    "activation": "silu",
    "dropout": 0.0,
    "optimizer": "sgd",
    "lr": 0.1,
    "weight_decay": 0.01,
    "batch_size": 50,
    "epochs": 6,
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


def context(**changes: Any) -> FitContext:
    return FitContext(**{"task": Task.BINARY, "n_classes": 2, "seed": 3, "deadline": Deadline.after(300)} | changes)


def newest_epoch(storage: Path) -> int:
    """Return the epochs of the newest whole checkpoint; 0 where there is none."""
    for path in sorted(storage.glob("*/run/checkpoint_*/progress.json"), reverse=True):
        try:
            return int(json.loads(path.read_text())["epochs"])
        except (OSError, ValueError):
            continue
    return 0


def assert_equal(one: Model, many: Model, validation: Sample) -> None:
    assert many.rounds == one.rounds
    assert [p.step for p in many.curve] == [p.step for p in one.curve]
    assert [p.validation for p in many.curve] == pytest.approx([p.validation for p in one.curve], abs=TOLERANCE)
    np.testing.assert_allclose(many.predict(validation.table), one.predict(validation.table), atol=TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_two_workers_equal_one_and_survive_the_loss_of_a_node(
    name: str, cluster: SimpleNamespace, tmp_path: Path
) -> None:
    family = load("families", name)
    train, validation = samples()
    t0 = time.time()
    one = family.fit(train, validation=validation, parameters=PARAMETERS, context=context())
    print("single", time.time() - t0)
    t0 = time.time()
    two = fit_distributed(
        family,
        train,
        validation=validation,
        parameters=PARAMETERS,
        context=context(),
        workers=2,
        gpus_per_worker=0,
        storage=tmp_path,
    )
    print("two", time.time() - t0)
    assert_equal(one, two, validation)

    longer = PARAMETERS | {"epochs": 40}
    seen: list[int] = []

    def kill_when_under_way() -> None:
        while (epoch := newest_epoch(tmp_path)) < 4:
            time.sleep(0.05)
        cluster.nodes.remove_node(cluster.second, allow_graceful=False)
        print("killed after epoch", epoch, time.time() - t0)
        seen.append(newest_epoch(tmp_path))
        while newest_epoch(tmp_path) <= seen[0] and not over.is_set():
            time.sleep(0.02)
        seen.append(newest_epoch(tmp_path))
        print("first after", seen, time.time() - t0)

    over = threading.Event()
    killer = threading.Thread(target=kill_when_under_way)
    t0 = time.time()
    killer.start()
    survived = fit_distributed(
        family,
        train,
        validation=validation,
        parameters=longer,
        context=context(),
        workers=(1, 2),
        gpus_per_worker=0,
        storage=tmp_path,
    )
    over.set()
    killer.join()
    print("survived", time.time() - t0, seen)
    assert_equal(family.fit(train, validation=validation, parameters=longer, context=context()), survived, validation)


@pytest.mark.parametrize(
    ("family", "workers", "gpus", "problem"),
    [
        ("constant", 2, 0.0, "cannot train on several workers"),
        ("torch_network", 0, 0.0, "workers 0"),
        ("torch_network", (3, 2), 0.0, r"workers \(3, 2\)"),
        ("torch_network", 2, 2.0, "gpus_per_worker 2.0"),
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
