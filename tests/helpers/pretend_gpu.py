"""A GPU that is pretended on the CPU, which finds arrays on the wrong device in machines without a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten

CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")
ANYWHERE = {"item", "tolist", "__bool__", "__int__", "__float__", "__index__", "__len__", "__format__", "__repr__"}
ANYWHERE |= {"copy_", "record_stream", "_has_compatible_shallow_copy_type", "__set__"}
"""Functions that read from any device, or move between devices."""


class PretendedGPU(TorchFunctionMode):
    """Computes on the CPU, remembers which arrays would be on the GPU, and refuses what a GPU refuses."""

    def __init__(self) -> None:
        self.there: dict[int, Any] = {}  # the memory is kept, so that no address is used twice
        self.generators: list[torch.Generator] = []

    def generator(self, device: str | torch.device = "cpu") -> torch.Generator:
        """Return a generator of random numbers, as ``torch.Generator`` does."""
        made = torch.Generator()
        if torch.device(device).type == "cuda":
            self.generators.append(made)
        return made

    def is_there(self, array: Tensor) -> bool:
        return array.untyped_storage()._cdata in self.there

    def put(self, found: Any, *, there: bool) -> Any:
        for array in tree_flatten(found)[0]:
            if isinstance(array, Tensor) and there:
                self.there[array.untyped_storage()._cdata] = array.untyped_storage()
        return found

    def __torch_function__(
        self, function: Callable[..., Any], types: Iterable[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs, name = dict(kwargs or {}), getattr(function, "__name__", "")
        arrays = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
        with torch._C.DisableTorchFunction():
            places = [self.is_there(array) for array in arrays]
            device = kwargs.get("device")
            generator = kwargs.get("generator")
            if generator is not None:
                gpu = any(generator is each for each in self.generators)
                wanted = any(places) or (device is not None and torch.device(device).type == "cuda")
                assert gpu == wanted, f"{name}: generator and array on two devices"
            if name == "__get__" and function == Tensor.device.__get__:
                return CUDA if places[0] else CPU
            if name in ("to", "cpu"):
                return self.moved([*args, "cpu"] if name == "cpu" else args, kwargs, there=places[0])
            if name in ANYWHERE:
                return function(*args, **kwargs)
            assert name != "numpy" or not places[0], "an array on the GPU has no NumPy array"
            if "device" in kwargs:
                kwargs["device"] = CPU
            on_gpu = bool(places) and any(
                place for array, place in zip(arrays, places, strict=True) if array.ndim or place
            )
            stray = [array for array, place in zip(arrays, places, strict=True) if array.ndim and not place]
            picks = name in ("__getitem__", "__setitem__")  # whose indices may be on the CPU
            assert not (on_gpu and stray and not (picks and places[0])), f"{name}: arrays on two devices"
            found = function(*args, **kwargs)
            there = on_gpu or (device is not None and torch.device(device).type == "cuda")
            return self.put(found, there=there)

    def moved(self, args: Sequence[Any], kwargs: dict[str, Any], *, there: bool) -> Tensor:
        """Move an array, or only change its type."""
        goals = [torch.device(goal) for goal in [*args[1:], *kwargs.values()] if isinstance(goal, (str, torch.device))]
        here = [CPU if isinstance(goal, (str, torch.device)) else goal for goal in args[1:]]
        named = {key: CPU if key == "device" else goal for key, goal in kwargs.items()}
        to_there = goals[0].type == "cuda" if goals else there
        array: Tensor = args[0].to(*here, **named)
        if to_there != there and array.untyped_storage()._cdata == args[0].untyped_storage()._cdata:
            array = array.clone()
        self.put(array, there=to_there)
        return array


@contextmanager
def pretended_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[PretendedGPU]:
    """Pretend a GPU within the context, in this thread."""
    with PretendedGPU() as gpu:
        monkeypatch.setattr("bidsseg.learning.state.Generator", gpu.generator)
        yield gpu
