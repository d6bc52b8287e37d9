"""Memory: the need of a scan is known in advance, and the limit is kept."""

import json
import resource
import subprocess
import sys
from types import SimpleNamespace

import pytest

from bidsseg.errors import MemoryTooSmall, UsageError, lacks_memory
from bidsseg.execution import machine as this_machine
from bidsseg.execution.pipeline import process_mb
from bidsseg.models.card import Card
from bidsseg.models.library import Model
from bidsseg.networks.network import Network
from bidsseg.segmentation.memory_needed import HELD_MB, left_for_network, network_mb, require_memory

CHILD = """
import json, sys
import torch
from bidsseg.execution.machine import peak_memory_mb
from bidsseg.networks.subpixel_unet import SubpixelUNet
from bidsseg.segmentation.predict import Engine
from bidsseg.segmentation.windows import features_of

torch.set_num_threads(1)
network = SubpixelUNet({"brain": 2}, coordinates=0, widths=(32, 32, 32), features=8, last=64).eval()
image = torch.rand(1, 1, 256, 192, 192)
wanted = torch.zeros(256, 192, 192, dtype=torch.bool)
wanted[100:160, 70:130, 70:130] = True
features_of(network, image[:, :, :64, :64, :64], None, wanted=None, engine=Engine(), notes=[])
before, found = peak_memory_mb(), []
for memory_mb in (int(sys.argv[1]), None):
    notes = []
    for _ in range(2):
        features_of(network, image, None, wanted=wanted, engine=Engine(memory_mb=memory_mb), notes=notes)
    found.append([peak_memory_mb() - before, len(notes)])
print(json.dumps(found))
"""


def model(spacing_mm: float = 1.0, locator: Model | None = None, whole: bool = False, numbers: int = 32) -> Model:
    network = Network()
    network.whole, network.numbers_per_voxel = whole, numbers
    return Model(Card("ours", "", ("T1w",), {}, spacing_mm, ("brain",), ""), network, locator)


def test_the_network_keeps_the_memory_limit() -> None:
    """A process grows less with a limit, where the network works in windows, than without it.

    The allocator holds a part of what was freed, which differs between machines.
    """
    done = subprocess.run([sys.executable, "-c", CHILD, "250"], capture_output=True, text=True)
    (limited, in_windows), (free, whole) = json.loads(done.stdout)
    assert (in_windows, whole) == (2, 0)
    assert limited < 1.25 * 250
    assert limited + 100 < free < 1200  # by the rule of thumb


def test_what_a_network_needs_is_that_of_its_smallest_windows() -> None:
    assert network_mb(model(), 4) == 128**3 * 32 * 4 // 10**6
    assert network_mb(model(), 2) == 128**3 * 32 * 2 // 10**6
    assert network_mb(model(spacing_mm=2.0), 4) == 88 * 104 * 96 * 32 * 4 // 10**6
    assert network_mb(model(whole=True), 4) == 176 * 208 * 192 * 32 * 4 // 10**6
    assert network_mb(model(spacing_mm=4.0, locator=model()), 4) == network_mb(model(), 4)


def test_a_limit_that_is_too_low_says_what_is_needed() -> None:
    least = HELD_MB + network_mb(model(), 4)
    require_memory(model(), least, 4)
    with pytest.raises(UsageError, match=r"cannot be done in 1G: the model ours needs 1\.5G here"):
        require_memory(model(), 1000, 4)


def test_a_large_scan_leaves_less_for_the_network() -> None:
    usual, large = (
        left_for_network(model(), 4000, voxels, number_bytes=4, strict=True) for voxels in (10_000_000, 100_000_000)
    )
    assert usual == 4000 - HELD_MB
    assert large == usual - 80 * 24
    with pytest.raises(MemoryTooSmall, match=r"a scan of 100 million voxels needs 3\.4G"):
        left_for_network(model(), 3000, 100_000_000, number_bytes=4, strict=True)
    assert left_for_network(model(), 3000, 100_000_000, number_bytes=4, strict=False) == network_mb(model(), 4)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("could not create a memory object"),
        RuntimeError("can't start new thread"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB. See documentation for Memory Management"),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
        OSError(12, "Cannot allocate memory"),
    ],
)
def test_errors_that_mean_want_of_memory(error: Exception) -> None:
    assert lacks_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("expected 9 channels"),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("required rank 4 tensor to use channels_last: unsupported memory format"),
        KeyError("memory"),
        OSError(28, "No memory"),
    ],
)
def test_errors_that_mean_something_else(error: Exception) -> None:
    assert not lacks_memory(error)


def test_a_limit_of_addresses_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit of ``ulimit -v`` counts too."""
    held = SimpleNamespace(memory_info=lambda: SimpleNamespace(vms=300 * 10**6))
    monkeypatch.setattr("psutil.Process", lambda: held)
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=9000 * 10**6))
    monkeypatch.setattr(this_machine, "control_groups", list)
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (resource.RLIM_INFINITY,) * 2)
    assert this_machine.available_memory_mb() == 9000
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (1000 * 10**6,) * 2)
    assert this_machine.available_memory_mb() == 700


def test_a_process_has_the_memory_that_its_model_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    models = {"small": model(), "large": model(whole=True, numbers=300)}
    monkeypatch.setattr("bidsseg.models.library.load_model", models.get)
    for precision in ("bf16", "fp32"):
        machine = this_machine.Machine("cpu", precision, 2, 99_000)
        assert process_mb("small", machine) == this_machine.PROCESS_MB
        require_memory(models["large"], process_mb("large", machine), machine.number_bytes)
        with pytest.raises(UsageError):
            require_memory(models["large"], process_mb("large", machine) - 1, machine.number_bytes)
