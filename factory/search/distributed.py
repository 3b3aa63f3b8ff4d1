"""Training of one network on several workers, through Ray Train.

:func:`fit_distributed` may be called from a Tune trial, a Ray task or a
driver.  The job's arrays are written once below ``storage`` (which every node
has to see), the workers read them from there and run the same epoch loop as a
single process.  Each epoch ends with a checkpoint.  When a worker or its node
is lost, Ray Train starts the group again, smaller if ``workers`` allows that,
and the loop goes on after the last checkpoint.

Ray Train's own ``fit`` blocks and knows no deadline, so it runs in a Ray task
that can be given up: what the last checkpoint holds is then the result.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

from factory.errors import InvalidRequest, ServiceFault, TrainingFault
from factory.families._epochs import Group, run
from factory.families._job import Job, Progress
from factory.families._network import NetworkFamily
from factory.families.base import Deadline, Family, FitContext, Model, Sample
from factory.plugins import load

logger = logging.getLogger(__name__)

MAX_FAILURES = 3
"""Times that a lost worker is replaced; a request's own trial retries are counted elsewhere."""
TRAIN_VARIABLES = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25", "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "15"}
"""Ray Train takes one checkpoint a health check: at its default of 2 s, an epoch of a small network would last 2 s.
After a lost node it may wait for CPUs that are gone, by default 60 s, before it counts anew."""
RESIZE_CHECK_S = 20.0
"""An elastic group looks this often whether it can grow again."""
STOP_GRACE_S = 20.0
"""After the deadline, workers have this long to end their batch, write a checkpoint and leave."""
_POLL_S = 0.5

_STOP, _FAULT = "stop", "fault.json"


def fit_distributed(
    family: Family,
    train: Sample,
    *,
    validation: Sample | None,
    parameters: dict[str, Any],
    context: FitContext,
    workers: tuple[int, int] | int,
    gpus_per_worker: float,
    storage: Path,
) -> Model:
    """Fit one network on several workers.

    Under plain SGD and without dropout the result equals that of one worker up to the rounding of float32 sums;
    with dropout each worker draws its own noise.

    Args:
        family: A family whose ``distributed`` is true.
        train: Rows to train on.
        validation: Rows for early stopping, or None.
        parameters: A point of the family's space.
        context: ``threads`` are those of each worker; the workers take them from the cluster beyond what the caller
            holds itself.
        workers: How many; a pair (fewest, most) lets training go on with fewer when a node is lost.
        gpus_per_worker: GPUs of each worker, at most 1.
        storage: A folder that every node sees.

    Raises:
        InvalidRequest: the family cannot train on several workers, or the numbers make no sense.
        ServiceFault: Ray is not running in this process.
        TrainingFault: training failed or the deadline passed before there was anything to keep.
    """
    import ray

    kind, fewest, most = _checked(family, workers, gpus_per_worker)
    if not ray.is_initialized():
        raise ServiceFault(
            "Training on several workers needs a running Ray.",
            hint="Connect with ray.init() first, or ask for workers: 1.",
        )
    job, inputs = kind.job(train, validation=validation, parameters=parameters, context=context)
    folder = storage.resolve() / f"{kind.name}-{uuid4().hex[:12]}"
    folder.mkdir(parents=True)
    try:
        job.save(folder)
        problem = _supervise(kind, folder, (fewest, most), gpus_per_worker, context)
        return kind.model(job, inputs, _outcome(folder, problem))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _checked(family: Family, workers: tuple[int, int] | int, gpus_per_worker: float) -> tuple[NetworkFamily, int, int]:
    if not isinstance(family, NetworkFamily):
        raise InvalidRequest(
            f"{family.name!r} cannot train on several workers.", hint="Ask for workers: 1, or leave the family out."
        )
    fewest, most = (workers, workers) if isinstance(workers, int) else workers
    if not 1 <= fewest <= most:
        raise InvalidRequest(f"workers {workers!r} is not a number of workers or a pair [fewest, most], from 1 up.")
    if not 0 <= gpus_per_worker <= 1:
        raise InvalidRequest(f"gpus_per_worker {gpus_per_worker!r} is not allowed.", hint="Allowed: 0 to 1.")
    return family, fewest, most


def _supervise(
    family: NetworkFamily, folder: Path, workers: tuple[int, int], gpus_per_worker: float, context: FitContext
) -> str:
    """Run the trainer until it ends, or for a little longer than the deadline; return what went wrong, or nothing."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    # One call a process: the trainer imports its framework, which an idle pooled worker would keep in memory.
    task = ray.remote(num_cpus=0, max_calls=1, max_retries=0, scheduling_strategy=here)(_launch)
    running = task.remote(
        framework=family.framework,
        config={"family": family.name, "folder": str(folder), "deadline": context.deadline.at},
        workers=workers,
        resources={"CPU": max(1, context.threads), "GPU": gpus_per_worker},
    )
    give_up_at = float("inf")
    while not ray.wait([running], timeout=_POLL_S)[0]:
        if context.stopped and give_up_at == float("inf"):
            (folder / _STOP).touch()
            give_up_at = time.monotonic() + STOP_GRACE_S
        if time.monotonic() > give_up_at:
            ray.cancel(running, force=True)
            return "the workers did not end in time"
    try:
        ray.get(running)
    except ray.exceptions.RayError as error:
        logger.warning("training on %d to %d workers failed", *workers, exc_info=True)
        return str(error).strip().splitlines()[-1]
    return ""


def _launch(*, framework: str, config: dict[str, Any], workers: tuple[int, int], resources: dict[str, float]) -> None:
    """Run Ray Train to its end; a Ray task of its own, on the caller's node."""
    for variable, value in TRAIN_VARIABLES.items():
        os.environ.setdefault(variable, value)
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig

    fewest, most = workers
    options: dict[str, Any] = {
        "train_loop_config": config,
        "scaling_config": ScalingConfig(
            num_workers=most if fewest == most else (fewest, most),
            use_gpu=resources["GPU"] > 0,
            resources_per_worker={name: amount for name, amount in resources.items() if amount},
            placement_strategy="SPREAD",
            elastic_resize_monitor_interval_s=RESIZE_CHECK_S,
        ),
        "run_config": RunConfig(
            name="run",
            storage_path=config["folder"],
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            failure_config=FailureConfig(max_failures=MAX_FAILURES),
        ),
    }
    if framework == "torch":
        from ray.train.torch import TorchConfig, TorchTrainer

        backend = "nccl" if resources["GPU"] == 1 else "gloo"
        TorchTrainer(_work, torch_config=TorchConfig(backend=backend), **options).fit()
    else:
        from ray.train.tensorflow import TensorflowTrainer

        TensorflowTrainer(_work, **options).fit()


def _work(config: dict[str, Any]) -> None:
    """One worker: read the job, join the group, train."""
    from ray.train import get_context

    folder, place = Path(config["folder"]), get_context()
    rank, world = place.get_world_rank(), place.get_world_size()
    family = load("families", config["family"])
    if not isinstance(family, NetworkFamily):
        raise TypeError(f"{config['family']!r} is not a network")
    job, deadline = Job.load(folder), Deadline(config["deadline"])
    group = Group(rank, world, resume=_last_checkpoint, report=lambda progress: _report(progress, rank))
    try:
        learner = family.learner(job, group=group)
        run(job, learner, group=group, stopped=lambda: deadline.passed or (folder / _STOP).exists())
    except TrainingFault as fault:
        # The same rows and weights would fail again: told by a file, since an error makes Ray Train try again.
        if rank == 0:
            (folder / _FAULT).write_text(json.dumps({"message": fault.message, "hint": fault.hint}))


def _last_checkpoint() -> Progress | None:
    from ray.train import get_checkpoint

    checkpoint = get_checkpoint()
    if checkpoint is None:
        return None
    with checkpoint.as_directory() as folder:
        return Progress.load(Path(folder))


def _report(progress: Progress, rank: int) -> None:
    """Hand an epoch's checkpoint to Ray Train; every worker has to report, the first one writes."""
    from ray.train import Checkpoint, report

    metrics = {"epochs": progress.epochs}
    if rank:
        report(metrics)
        return
    with tempfile.TemporaryDirectory() as folder:
        progress.save(Path(folder))
        report(metrics, checkpoint=Checkpoint.from_directory(folder))


def _outcome(folder: Path, problem: str) -> Progress:
    """Return the newest checkpoint, which holds the best weights so far."""
    if (folder / _FAULT).exists():
        fault = json.loads((folder / _FAULT).read_text())
        raise TrainingFault(fault["message"], hint=fault["hint"])
    newest = next(_checkpoints(folder), None)
    if newest is None or (problem and not newest.best_epoch):
        raise TrainingFault(
            f"Training on several workers gave no model: {problem or 'the time was over before the first batch'}.",
            hint="Give it more time, and more free CPUs in the cluster than the workers ask for.",
        )
    if problem:
        logger.warning("training ended early, the best of %d epochs is kept: %s", newest.epochs, problem)
    return newest


def _checkpoints(folder: Path) -> Iterator[Progress]:
    """Yield the readable checkpoints, newest first; the very last may be half-written when its worker was killed."""
    from safetensors import SafetensorError

    for path in sorted((folder / "run").glob("checkpoint_*"), reverse=True):
        try:
            yield Progress.load(path)
        except (OSError, ValueError, SafetensorError):
            logger.debug("checkpoint %s is not whole", path, exc_info=True)
