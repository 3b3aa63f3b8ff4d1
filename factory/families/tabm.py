"""TabM: some perceptrons in one that share their kernels and are trained together (PyTorch).

Gorishniy, Kotelnikov and Babenko (2024), with their piecewise-linear embeddings
of numbers.  Their defaults (32 members of width 512, a constant learning rate
of .002 for as long as it takes) need minutes on a CPU; here fewer and narrower
members learn at a higher rate that comes down to zero by the end of the time,
see docs/decisions/networks.md.
"""

from __future__ import annotations

from factory.families._epochs import Group
from factory.families._job import Job
from factory.families._mlp import ACTIVATIONS
from factory.families._network import BATCH_SIZES, FIRST_RANK, NetworkFamily
from factory.families.torch_network import TorchLearner
from factory.space import ChoiceDimension, FloatDimension, IntDimension, Parameters, Space
from factory.spec import Task


class TabM(NetworkFamily):
    """An ensemble of perceptrons for the price of a few."""

    name = "tabm"
    framework = "torch"
    pool = "torch"
    members = 8
    first_rank = FIRST_RANK - 100
    base_memory_mb = 200.0

    def bets(self, task: Task) -> tuple[Parameters, ...]:
        """Return a small ensemble and a larger one; classes want more regularization than numbers."""
        lr, dropout = (0.016, 0.0) if task is Task.REGRESSION else (0.005, 0.2)
        small: Parameters = {
            "members": 8,
            "layers": 2,
            "width": 128,
            "number_size": 8,
            "embedding_size": 8,
            "activation": "relu",
            "dropout": dropout,
            "lr": lr,
            "weight_decay": 3e-4,
        }
        return (small, {**small, "members": 16, "width": 192, "dropout": 0.1, "lr": 0.008})

    def space(self, task: Task) -> Space:  # noqa: ARG002 - the same for all tasks
        """Return the full search space."""
        return {
            "categoricals": ChoiceDimension(choices=("native", "target")),
            "members": IntDimension(low=4, high=32, log=True),
            "layers": IntDimension(low=1, high=4),
            "width": IntDimension(low=32, high=512, log=True),
            "number_size": IntDimension(low=0, high=16),
            "embedding_size": IntDimension(low=2, high=32, log=True),
            "activation": ChoiceDimension(choices=ACTIVATIONS),
            "dropout": FloatDimension(low=0.0, high=0.5),
            "lr": FloatDimension(low=3e-4, high=0.03, log=True),
            "weight_decay": FloatDimension(low=1e-6, high=0.3, log=True),
            "batch_size": ChoiceDimension(choices=BATCH_SIZES),
            "epochs": IntDimension(low=4, high=256, log=True),
        }

    def learner(self, job: Job, *, group: Group) -> TorchLearner:
        """Return a fresh copy of the network."""
        return TorchLearner(job, group=group)


PLUGIN = TabM()
