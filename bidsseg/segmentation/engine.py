"""Where and how networks run."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Engine:
    """Where and how networks run.

    Attributes:
        memory_mb: what a prediction may take, None for no limit.
    """

    device: str = "cpu"
    precision: str = "fp32"
    memory_mb: int | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Type of the activations."""
        return torch.bfloat16 if self.precision == "bf16" else torch.float32
