"""The processes that train one network together, started by ``torchrun``; or a single process."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Processes:
    """All processes of a run, and the rank of this one."""

    rank: int = 0
    count: int = 1
    device: str = "cpu"

    @staticmethod
    def started() -> int:
        """Return the number of processes that torchrun has started for this run; 1 without torchrun."""
        return int(os.environ.get("WORLD_SIZE", "1"))

    @staticmethod
    def neighbours() -> int:
        """Return the number of processes that torchrun has started on this machine; 1 without torchrun."""
        return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))

    @staticmethod
    def join(device: str = "cpu") -> Processes:
        """Read the process group from torchrun's environment; one process without it.

        On GPUs, each process uses the GPU with its local rank.
        """
        count = Processes.started()
        if count == 1:
            return Processes(device=device)
        if device != "cpu":
            device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
            torch.cuda.set_device(device)
        if not dist.is_initialized():
            dist.init_process_group("gloo" if device == "cpu" else "nccl")
        return Processes(int(os.environ["RANK"]), count, device)

    @property
    def first(self) -> bool:
        """Whether this process reports and writes for all."""
        return self.rank == 0

    def add_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replace each gradient by its sum over all processes; one that no process has stays absent.

        A gradient of 0 would differ: the optimiser would continue along the steps before.
        """
        if self.count == 1:
            return
        parameters = list(parameters)
        known = torch.tensor([float(each.grad is not None) for each in parameters], device=self.device)
        dist.all_reduce(known)
        for parameter, count in zip(parameters, known.tolist(), strict=True):
            if count:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                dist.all_reduce(parameter.grad)

    def average(self, values: Iterable[Tensor]) -> None:
        """Replace each floating-point value by its mean over all processes."""
        if self.count > 1:
            for value in filter(torch.is_floating_point, values):
                dist.all_reduce(value)
                value /= self.count

    def agree(self, *values: float) -> list[float]:
        """Return the values of the first process."""
        if self.count == 1:
            return list(values)
        sent = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.broadcast(sent, 0)
        return sent.tolist()

    def wait(self) -> None:
        """Wait for the other processes."""
        if self.count > 1:
            dist.barrier()

    def leave(self) -> None:
        """Wait for the other processes and leave the group."""
        self.wait()
        if self.count > 1:
            dist.destroy_process_group()
