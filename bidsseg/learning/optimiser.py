"""The optimiser: Muon updates the kernels of a network, AdamW everything else.

Muon equalises the singular values of the momentum of a matrix, so that rare directions are learned as fast as common
ones. A kernel (O, I, D, H, W) is the matrix (O, D·H·W·I).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from annotated_types import Gt
from torch import Tensor, nn

from bidsseg.learning.muon import Muon
from bidsseg.schema import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Share, ShareBelowOne

Schedule = Literal["cosine", "constant"]


@dataclass(frozen=True)
class Optimiser:
    """Settings of the optimiser. The cosine schedule is a linear warm-up, then a half-cosine descent to zero.

    Attributes:
        rate: largest learning rate of AdamW.
        kernel_rate: largest learning rate of Muon, which updates the kernels of the network; 0 leaves them to AdamW.
        weight_decay: weight decay of kernels and matrices; norms and biases have none.
        warm_up: share of the run in which the rate rises.
        schedule: "cosine", or "constant" for a constant rate.
        betas, eps: parameters of AdamW.
        clip: largest norm of the gradient.
        clip_each: whether the limit applies to the gradient of each tensor and not to all together.
        average: decay of the running mean of the weights, which is the final model; 0 uses the weights themselves.
    """

    rate: PositiveFloat = 2e-3
    kernel_rate: NonNegativeFloat = 2e-2
    weight_decay: NonNegativeFloat = 1e-2
    warm_up: ShareBelowOne = 0.04
    schedule: Schedule = "cosine"
    betas: tuple[ShareBelowOne, ShareBelowOne] = (0.9, 0.99)
    eps: PositiveFloat = 1e-8
    clip: PositiveFloat = 5.0
    clip_each: bool = False
    average: ShareBelowOne = 0.995

    def rate_factor(self, progress: float) -> float:
        """Return the share of the largest rates at a share (0..1) of the run."""
        return 1.0 if self.schedule == "constant" else rate_factor(progress, self.warm_up)


@dataclass(frozen=True)
class Readout:
    """The training of the last layers alone, before the other steps, if the initial model (``--init``) lacks a head.

    Attributes:
        samples: number of samples whose features are stored.
        steps: number of steps; 0 omits this training.
        points: number of voxels of a step.
        rate: largest learning rate of AdamW, which falls to 0 along half a cosine.
        share: largest share of the time budget.
    """

    samples: PositiveInt = 20
    steps: NonNegativeInt = 800
    points: PositiveInt = 16384
    rate: PositiveFloat = 1e-2
    share: Annotated[Share, Gt(0)] = 0.6


class Stepper:
    """Updates the weights of a network after each backward pass.

    The network must stay in its memory format (channels last): the matrices are views of its kernels.
    """

    def __init__(self, network: nn.Module, plan: Optimiser) -> None:
        self.network, self.plan = network, plan
        parameters = dict(network.named_parameters())
        kernels = [p for name, p in parameters.items() if plan.kernel_rate > 0 and p.ndim == 5]
        taken = {id(kernel) for kernel in kernels}
        rest = [p for p in parameters.values() if id(p) not in taken]
        self.matrices = [(kernel, nn.Parameter(as_matrix(kernel.data))) for kernel in kernels]
        assert all(matrix.data_ptr() == kernel.data_ptr() for kernel, matrix in self.matrices)  # steps reach kernels
        groups = [
            {"params": [p for p in rest if p.ndim > 1], "weight_decay": plan.weight_decay},
            {"params": [p for p in rest if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self.optimisers: list[tuple[float, torch.optim.Optimizer]] = [
            (plan.rate, torch.optim.AdamW(groups, plan.rate, plan.betas, plan.eps))
        ]
        if self.matrices:
            views = [matrix for _, matrix in self.matrices]
            muon = Muon(views, plan.kernel_rate, weight_decay=plan.weight_decay)
            self.optimisers.append((plan.kernel_rate, muon))

    def step(self, progress: float) -> None:
        """Update the weights, at a share (0..1) of the run; a gradient that is not finite changes nothing."""
        if torch.isfinite(self.clip()):
            for kernel, matrix in self.matrices:
                matrix.grad = None if kernel.grad is None else as_matrix(kernel.grad)
            factor = self.plan.rate_factor(progress)
            for rate, optimiser in self.optimisers:
                for group in optimiser.param_groups:
                    group["lr"] = rate * factor
                optimiser.step()
        self.network.zero_grad(set_to_none=True)

    def clip(self) -> Tensor:
        """Clip gradients that are too large; return the norm of all before."""
        parameters = [each for each in self.network.parameters() if each.grad is not None]
        if not self.plan.clip_each:
            return nn.utils.clip_grad_norm_(parameters, self.plan.clip)
        norm: Tensor = torch.stack([nn.utils.clip_grad_norm_(each, self.plan.clip) for each in parameters]).norm()
        return norm

    def state_dict(self) -> list[dict[str, Any]]:
        """Return the state for a checkpoint."""
        return [optimiser.state_dict() for _, optimiser in self.optimisers]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """Restore the state of a checkpoint."""
        for (_, optimiser), state in zip(self.optimisers, states, strict=True):
            optimiser.load_state_dict(state)


def as_matrix(kernel: Tensor) -> Tensor:
    """Return a kernel (O, I, D, H, W) as (O, D·H·W·I); a view if its channels are last in memory."""
    return kernel.permute(0, 2, 3, 4, 1).reshape(len(kernel), -1)


def rate_factor(progress: float, warm_up: float) -> float:
    """Return the share of the largest learning rate at a share (0..1) of the run."""
    if progress < warm_up:
        return 0.05 + 0.95 * progress / warm_up
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - warm_up) / (1 - warm_up))))
