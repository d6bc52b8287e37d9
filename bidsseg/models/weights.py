"""Storage of numbers in a file of weights: with 16 bits, or with 8."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

UNITS = ".units"
"""Suffix of the name of the tensor with the units of another tensor's integers."""


def packed(weights: Mapping[str, Tensor], bits: int) -> dict[str, Tensor]:
    """Return weights as stored: 16 bits for each number, or 8 for those of matrices and kernels.

    A tensor with a number too large for 16 bits, such as a running variance, is stored with 32. With eight bits, a
    number is stored as 127ths of the largest number in its row, and the unit of each row is stored too.
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
    """Return weights, in single precision, from their stored form."""
    found = {}
    for name, value in stored.items():
        units = stored.get(name + UNITS)
        if units is not None:
            value = value.float() * units.view(-1, *(1,) * (value.ndim - 1))
        if not name.endswith(UNITS):
            found[name] = value.float()
    return found
