"""Muon: steps whose matrices have nearly equal singular values (Jordan et al. 2024; Liu et al. 2025, arXiv 2502.16982).

It makes the same steps as ``torch.optim.Muon`` with ``match_rms_adamw``, up to rounding, with fewer products: a
polynomial of X Xᵀ commutes with X Xᵀ, so that all iterations are computed on this small square matrix, and the wide X
itself is multiplied only twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

COEFFICIENTS, ITERATIONS = (3.4445, -4.7750, 2.0315), 5
"""Quintic Newton-Schulz iteration, whose slope at 0 is large; it brings singular values to about .7 to 1.2."""
MOMENTUM = 0.95
RMS = 0.2
"""Root of the mean square of a step at rate 1, as AdamW has it, so that rates and decay are comparable."""


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised, for parameters that are matrices.

    Args:
        parameters: matrices; those of the same shape are updated together.
        rate: learning rate.
        weight_decay: share of a parameter, per unit of the rate, that is subtracted in each step.
    """

    def __init__(self, parameters: Iterable[Tensor], rate: float, *, weight_decay: float) -> None:
        super().__init__(parameters, {"lr": rate, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update all parameters that have a gradient."""
        del closure
        for group in self.param_groups:
            same_shape: dict[torch.Size, list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    same_shape.setdefault(parameter.shape, []).append(parameter)
            for (rows, columns), parameters in same_shape.items():
                steps = orthogonalised(torch.stack([self.momentum(parameter) for parameter in parameters]))
                size = group["lr"] * RMS * math.sqrt(max(rows, columns))
                for parameter, step in zip(parameters, steps, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"]).sub_(step, alpha=size)

    def momentum(self, parameter: Tensor) -> Tensor:
        """Return the Nesterov momentum of a parameter, after its gradient is added to the running mean."""
        assert parameter.grad is not None
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        mean: Tensor = state["momentum_buffer"].lerp_(parameter.grad, 1 - MOMENTUM)
        return parameter.grad.lerp(mean, MOMENTUM)


def orthogonalised(matrices: Tensor) -> Tensor:
    """Return matrices (B, M, N) with the same singular vectors, and singular values near 1."""
    if matrices.shape[1] > matrices.shape[2]:
        return orthogonalised(matrices.mT).mT
    a, b, c = COEFFICIENTS
    matrices = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    gram = matrices @ matrices.mT
    product = torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device).expand_as(gram)
    for _ in range(ITERATIONS):  # gram and product are multiplied by a + change
        change = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        product = torch.baddbmm(product, change, product, beta=a)
        left = torch.baddbmm(gram, change, gram, beta=a)
        gram = torch.baddbmm(left, left, change, beta=a)
    return product @ matrices
