"""A tabular network in PyTorch; several workers train as DistributedDataParallel over the process group they are in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from factory.families._epochs import Examples, Group, Job, Learner, Plan
from factory.families._mlp import EPSILON, Architecture, Arrays, decays
from factory.families._network import DEFAULTS, NetworkFamily
from factory.spec import Task

if TYPE_CHECKING:
    import torch


class TorchLearner(Learner):
    """The network as a PyTorch module, wrapped in DDP where there is more than one worker."""

    def __init__(self, job: Job, *, group: Group) -> None:
        import torch

        torch.set_num_threads(max(1, job.plan.threads))
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._world = group.world
        module = _module(job.architecture, job.initial_weights(), job.plan.dropout).to(self._device)
        self._parameters: dict[str, torch.nn.Parameter] = dict(module.arrays.named_parameters())
        self._forward = module if group.alone else torch.nn.parallel.DistributedDataParallel(module)
        self._optimizer = _optimizer(self._parameters, job.plan)
        self._loss = _loss(job.architecture.task)
        self._dense, self._codes, self._y = self._on_device(job.train)

    def _on_device(self, examples: Examples) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        import torch

        arrays = examples.inputs.dense, examples.inputs.codes.astype(np.int64), examples.y
        dense, codes, y = (torch.tensor(a, device=self._device) for a in arrays)
        return dense, codes, y

    def begin_epoch(self, *, lr: float, seed: int) -> None:
        import torch

        torch.manual_seed(seed)
        for group in self._optimizer.param_groups:
            group["lr"] = lr

    def step(self, rows: np.ndarray, *, n_batch: int) -> float:
        import torch

        index = torch.as_tensor(rows, device=self._device)
        outputs = self._forward(self._dense[index], self._codes[index])
        loss = self._loss(outputs, self._y[index])
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
            self._optimizer.state[parameter] = {slot: value.to(self._device) for slot, value in slots.items()}


def _module(architecture: Architecture, weights: Arrays, dropout: float) -> Any:
    """Return the network as a module whose parameters are the arrays by name.

    Its class is made here since PyTorch is imported only where a network is trained.
    """
    import torch
    from torch.nn import functional

    activate: Any = getattr(functional, architecture.activation)

    class Perceptron(torch.nn.Module):  # type: ignore[misc]  # PyTorch is not read by mypy
        def __init__(self) -> None:
            super().__init__()
            self.arrays = torch.nn.ParameterDict({name: torch.tensor(w) for name, w in weights.items()})

        def forward(self, dense: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
            w = self.arrays
            embeddings = [w[f"embedding{j}"][codes[:, j]] for j in range(len(architecture.embedded))]
            x = torch.cat([dense, *embeddings], dim=1)
            for i in range(architecture.layers):
                x = torch.addmm(w[f"layer{i}_bias"], x, w[f"layer{i}_kernel"])
                x = functional.layer_norm(x, x.shape[1:], w[f"layer{i}_scale"], w[f"layer{i}_shift"], EPSILON)
                x = functional.dropout(activate(x), dropout)
            return torch.addmm(w["output_bias"], x, w["output_kernel"])

    return Perceptron()


def _optimizer(parameters: dict[str, torch.nn.Parameter], plan: Plan) -> torch.optim.Optimizer:
    """Return AdamW (Loshchilov and Hutter 2019), or SGD without momentum, where both kinds of decay are the same."""
    import torch

    kind = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[plan.optimizer]
    groups = [
        {"params": [p for name, p in parameters.items() if decays(name)], "weight_decay": plan.weight_decay},
        {"params": [p for name, p in parameters.items() if not decays(name)], "weight_decay": 0.0},
    ]
    return kind(groups, lr=plan.lr, fused=True)


def _loss(task: Task) -> Any:
    """Return the function (outputs, y) → sum of the rows' losses."""
    from torch.nn import functional

    if task is Task.REGRESSION:
        return lambda outputs, y: functional.mse_loss(outputs[:, 0], y, reduction="sum")
    return lambda outputs, y: functional.cross_entropy(outputs, y, reduction="sum")


class TorchNetwork(NetworkFamily):
    """A tabular network trained with PyTorch."""

    name = "torch_network"
    framework = "torch"
    pool = "torch"
    base_memory_mb = 200.0

    bets = (
        {**DEFAULTS},
        {**DEFAULTS, "activation": "elu", "layers": 2, "width": 64, "dropout": 0.2},
    )

    def learner(self, job: Job, *, group: Group) -> TorchLearner:
        """Return a fresh copy of the network."""
        return TorchLearner(job, group=group)


PLUGIN = TorchNetwork()
