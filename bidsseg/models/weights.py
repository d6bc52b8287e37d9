"""How numbers are kept in a file of weights: with 16 bits, or with 8."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

UNITS = ".units"
"""Ends the name of the tensor that holds what the whole numbers of another one are counted in."""


def packed(weights: Mapping[str, Tensor], bits: int) -> dict[str, Tensor]:
    """What is stored of weights: 16 bits of each number, or 8 of those that belong to a matrix or a kernel.

    A tensor with a number too large for 16 bits, as a running variance may be, keeps 32. Eight bits say how many 127ths
    of the largest number in its row a number is; the unit of each row is stored too.
    """
    found = {}
    for name, value in weights.items():
        value = value.detach()
        if bits == 8 and value.ndim > 1:
            rows = value.float().flatten(1)
            units = (rows.abs().amax(1, keepdim=True) / 127).clamp(min=1e-12)
            found[name] = (rows / units).round().to(torch.int8).view(value.shape).contiguous()
            found[name + UNITS] = units[:, 0].contiguous()
        else:
            half = value.half()
            found[name] = (half if torch.isfinite(half).all() else value.float()).contiguous()
    return found


def unpacked(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights, in single precision, from what is stored of them."""
    found = {}
    for name, value in stored.items():
        units = stored.get(name + UNITS)
        if units is not None:
            value = value.float() * units.view(-1, *(1,) * (value.ndim - 1))
        if not name.endswith(UNITS):
            found[name] = value.float()
    return found
