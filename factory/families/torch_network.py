"""A tabular network in PyTorch; several workers train as DistributedDataParallel over the process group they are in."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from factory.families._epochs import Group, Learner
from factory.families._job import Examples, Job, Plan
from factory.families._mlp import EPSILON, Architecture, Arrays, decays, trains
from factory.families._network import DEFAULTS, NetworkFamily
from factory.families.base import Loss
from factory.space import Parameters
from factory.spec import Task

if TYPE_CHECKING:
    import torch


_NOISE = 1 << 20
"""Numbers in the store that masks of dropout are cut from; drawing them took half of a step on a CPU."""


class TorchLearner(Learner):
    """The network as a PyTorch module, wrapped in DDP where there is more than one worker."""

    def __init__(self, job: Job, *, group: Group) -> None:
        import torch

        torch.set_num_threads(max(1, job.plan.threads))
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._world = group.world
        self._noise = _Noise(job.plan.dropout, self._device)
        module = _module(job.architecture, job.initial_weights(), self._noise.drop).to(self._device)
        self._parameters: dict[str, torch.nn.Parameter] = dict(module.arrays.named_parameters())
        self._forward = module if group.alone else torch.nn.parallel.DistributedDataParallel(module)
        self._optimizer = _optimizer(self._parameters, job.plan)
        self._loss = _loss(job.architecture.task, job.plan.loss)
        self._dense, self._codes, self._y, self._weight = self._on_device(job.train)

    def _on_device(self, examples: Examples) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        import torch

        arrays = examples.inputs.dense, examples.inputs.codes.astype(np.int64), examples.y, examples.weight
        dense, codes, y, weight = (torch.tensor(a, device=self._device) for a in arrays)
        return dense, codes, y, weight

    def begin_epoch(self, *, seed: int) -> None:
        self._noise.begin(seed)

    def step(self, rows: np.ndarray, *, n_batch: int, lr: float) -> float:
        import torch

        for group in self._optimizer.param_groups:
            group["lr"] = lr
        index = torch.as_tensor(rows, device=self._device)
        outputs = self._forward(self._dense[index], self._codes[index])
        loss = self._weight[index] @ self._loss(outputs, self._y[index])
        self._optimizer.zero_grad()
        # DDP takes the mean over the workers; times their number, it is the sum that the whole batch's mean needs.
        (loss * (self._world / n_batch)).backward()
        self._optimizer.step()
        return float(loss.detach())

    def total(self, values: np.ndarray) -> np.ndarray:
        import torch

        tensor = torch.tensor(values, dtype=torch.float64, device=self._device)
        torch.distributed.all_reduce(tensor)
        return np.asarray(tensor.cpu().numpy())

    def weights(self) -> Arrays:
        return {name: p.detach().cpu().numpy().copy() for name, p in self._parameters.items()}

    def state(self) -> Arrays:
        state = self.weights()
        for name, parameter in self._parameters.items():
            for slot, value in self._optimizer.state[parameter].items():
                state[f"{slot}.{name}"] = value.detach().cpu().numpy().copy()
        return state

    def restore(self, state: Arrays) -> None:
        import torch

        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(torch.tensor(state[name]))
        for name, parameter in self._parameters.items():
            slots = {n.removesuffix(f".{name}"): torch.tensor(a) for n, a in state.items() if n.endswith(f".{name}")}
            if not slots:
                continue
            self._optimizer.state[parameter] = {slot: value.to(self._device) for slot, value in slots.items()}


class _Noise:
    """Dropout whose masks are cut from a store of numbers drawn once an epoch, where drawing is slow (CPUs).

    Args:
        share: Share of the numbers that are zero; the others are scaled up by what is lost.
    """

    def __init__(self, share: float, device: torch.device) -> None:
        self._share, self._device = share, device
        self._store: torch.Tensor | None = None
        self._places = np.random.default_rng(0)

    def begin(self, seed: int) -> None:
        """Draw anew."""
        import torch

        torch.manual_seed(seed)
        self._places = np.random.default_rng(seed)
        if self._share and self._device.type == "cpu":
            self._store = (torch.rand(2 * _NOISE) >= self._share).float() / (1 - self._share)

    def drop(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``x`` with some of its numbers zero."""
        from torch.nn import functional

        if not self._share:
            return x
        n = x.numel()
        if self._store is None or n > _NOISE:
            return functional.dropout(x, self._share)
        place = int(self._places.integers(len(self._store) - n))
        return x * self._store[place : place + n].view(x.shape)


def _module(architecture: Architecture, weights: Arrays, drop: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Return the network as a module whose parameters are the arrays by name.

    Its class is made here since PyTorch is imported only where a network is trained.
    """
    import torch
    from torch.nn import functional

    activate: Any = getattr(functional, architecture.activation)

    class Perceptron(torch.nn.Module):  # type: ignore[misc]  # PyTorch is not read by mypy
        def __init__(self) -> None:
            super().__init__()
            self.arrays = torch.nn.ParameterDict(
                {n: torch.nn.Parameter(torch.tensor(w), requires_grad=trains(n)) for n, w in weights.items()}
            )

        def forward(self, dense: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
            w = self.arrays
            parts = [dense]
            if n := architecture.n_numbers:
                x = dense[:, :n, None]
                code = ((x - w["bins_start"]) * w["bins_slope"]).clamp(0, 1)
                numbers = torch.bmm(code.transpose(0, 1), w["numbers_kernel"]).transpose(0, 1)
                numbers = numbers + x * w["numbers_slope"] + w["numbers_bias"]
                parts = [numbers.flatten(1), dense[:, n:]]
            parts += [w[f"embedding{j}"][codes[:, j]] for j in range(len(architecture.embedded))]
            x = torch.cat(parts, dim=1)
            return self._perceptron(x) if architecture.members == 1 else self._members(x)

        def _perceptron(self, x: torch.Tensor) -> torch.Tensor:
            w = self.arrays
            for i in range(architecture.layers):
                x = torch.addmm(w[f"layer{i}_bias"], x, w[f"layer{i}_kernel"])
                x = functional.layer_norm(x, x.shape[1:], w[f"layer{i}_scale"], w[f"layer{i}_shift"], EPSILON)
                x = drop(activate(x))
            return torch.addmm(w["output_bias"], x, w["output_kernel"])

        def _members(self, x: torch.Tensor) -> torch.Tensor:
            """Return (n_members, n_rows, n_outputs)."""
            w = self.arrays
            shape_MN = architecture.members, len(x)
            x = x.expand(architecture.members, *x.shape)
            for i in range(architecture.layers):
                x = (x * w[f"layer{i}_in"][:, None]).flatten(0, 1) @ w[f"layer{i}_kernel"]
                x = x.view(*shape_MN, -1) * w[f"layer{i}_out"][:, None] + w[f"layer{i}_bias"][:, None]
                x = drop(activate(x))
            return torch.baddbmm(w["output_bias"][:, None], x, w["output_kernel"])

    return Perceptron()


def _optimizer(parameters: dict[str, torch.nn.Parameter], plan: Plan) -> torch.optim.Optimizer:
    """Return AdamW (Loshchilov and Hutter 2019), or SGD without momentum, where both kinds of decay are the same."""
    import torch

    kind = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[plan.optimizer]
    groups = [
        {
            "params": [p for name, p in parameters.items() if trains(name) and decays(name)],
            "weight_decay": plan.weight_decay,
        },
        {"params": [p for name, p in parameters.items() if trains(name) and not decays(name)], "weight_decay": 0.0},
    ]
    return kind(groups, lr=plan.lr, fused=True)


def _loss(task: Task, of_numbers: Loss) -> Any:
    """Return the function (outputs, y) → each row's loss (n_rows,); that of several members is their losses' mean."""
    from torch.nn import functional

    def errors(outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        missed = outputs[..., 0] - y
        each = missed.abs() if of_numbers == "absolute" else missed.square()
        return each if each.ndim == 1 else each.mean(dim=0)

    def entropy(outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if outputs.ndim == 2:
            return functional.cross_entropy(outputs, y, reduction="none")
        each = functional.cross_entropy(outputs.flatten(0, 1), y.repeat(len(outputs)), reduction="none")
        return each.view(len(outputs), -1).mean(dim=0)

    return errors if task is Task.REGRESSION else entropy


class TorchNetwork(NetworkFamily):
    """A tabular network trained with PyTorch."""

    name = "torch_network"
    framework = "torch"
    pool = "torch"
    base_memory_mb = 200.0

    def bets(self, task: Task) -> tuple[Parameters, ...]:  # noqa: ARG002 - the same for all tasks
        """Return a wide and a narrow network."""
        return (
            {**DEFAULTS},
            {**DEFAULTS, "activation": "elu", "layers": 2, "width": 64},
        )

    def learner(self, job: Job, *, group: Group) -> TorchLearner:
        """Return a fresh copy of the network."""
        return TorchLearner(job, group=group)


PLUGIN = TorchNetwork()
