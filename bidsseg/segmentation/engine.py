"""Device, precision and memory of a network."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Engine:
    """Device, precision and memory of a network.

    Attributes:
        memory_mb: memory limit of a prediction, None for no limit.
    """

    device: str = "cpu"
    precision: str = "fp32"
    memory_mb: int | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the activations."""
        return torch.bfloat16 if self.precision == "bf16" else torch.float32
