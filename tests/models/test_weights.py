"""Stored weights are restored as exactly as their bits allow."""

import pytest
import torch
from torch import Tensor

from bidsseg.models.weights import packed, unpacked


def weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    rows = torch.logspace(-6, 3, 10)[:, None]
    return {
        "matrix.weight": rows * torch.randn(10, 300, generator=generator),
        "kernel.weight": torch.randn(4, 2, 3, 3, 3, generator=generator).to(memory_format=torch.channels_last_3d),
        "empty.weight": torch.zeros(3, 5),
        "matrix.bias": torch.randn(10, generator=generator),
        "norm.num_batches_tracked": torch.tensor(7),
    }


@pytest.mark.parametrize("bits, size", [(16, 2.0), (8, 1.15)])
def test_weights_come_back(bits: int, size: float) -> None:
    stored = packed(weights(), bits)
    found = unpacked(stored)
    assert list(found) == list(weights())
    assert sum(v.numel() * v.element_size() for v in stored.values()) < size * 1.01 * sum(
        v.numel() for v in weights().values()
    )
    for name, value in weights().items():
        assert found[name].shape == value.shape and found[name].dtype == torch.float32
        if value.ndim > 1 and bits == 8:
            rows, back = value.flatten(1), found[name].flatten(1)
            largest = rows.abs().amax(1, keepdim=True)
            assert ((rows - back).abs() <= largest / 254 * 1.001).all()
        else:
            assert torch.allclose(found[name], value.float(), rtol=1e-3, atol=1e-6)


def test_eight_bits_are_stored_as_such() -> None:
    stored = packed(weights(), 8)
    assert stored["matrix.weight"].dtype == torch.int8 and stored["matrix.bias"].dtype == torch.float16
    assert stored["matrix.weight"].abs().amax(1).tolist() == [127] * 10


def test_numbers_too_large_for_half_precision_are_kept() -> None:
    variance = torch.tensor([1e-3, 7.0, 183_987.0])
    assert torch.equal(unpacked(packed({"norm.running_var": variance}, 16))["norm.running_var"], variance)
