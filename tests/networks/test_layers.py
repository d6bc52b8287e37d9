"""Faster layers have the same values and gradients as PyTorch's layers."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from bidsseg.networks.layers import DoublingConv, InstanceNorm, TransposedConv


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def same(own: nn.Module, plain: nn.Module, image: Tensor, expected: Callable[[Tensor], Tensor]) -> None:
    """Assert that both functions have the same values and gradients, with the same parameters."""
    plain.double().load_state_dict(own.double().state_dict())
    found = []
    for module, then in ((own, lambda x: x), (plain, expected)):
        given = image.clone().requires_grad_()
        answer = then(module(given))
        (answer * random(*answer.shape)).sum().backward()
        found.append([answer, given.grad, *(parameter.grad for parameter in module.parameters())])
    assert len(found[0]) == 4
    for mine, theirs in zip(*found, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-10)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize(("inputs", "outputs", "groups"), [(3, 5, 1), (8, 12, 4), (6, 6, 6)])
def test_transposed_convolutions(inputs: int, outputs: int, groups: int, memory_format: torch.memory_format) -> None:
    image = random(2, inputs, 4, 3, 5).to(memory_format=memory_format)
    plain = nn.ConvTranspose3d(inputs, outputs, 3, padding=1, groups=groups)
    same(TransposedConv(inputs, outputs, groups), plain, image, lambda x: x)
    plain = nn.ConvTranspose3d(inputs, outputs, 3, 2, groups=groups)
    same(DoublingConv(inputs, outputs, groups), plain, image, lambda x: x[..., :-1, :-1, :-1])


@pytest.mark.parametrize("images", [1, 3])
def test_instance_normalisation(images: int) -> None:
    own = InstanceNorm(4, eps=1e-3)
    nn.init.normal_(own.weight)
    nn.init.normal_(own.bias)
    same(own, nn.InstanceNorm3d(4, 1e-3, affine=True), random(images, 4, 3, 4, 5), lambda x: x)


def test_the_memory_stays_as_it_is() -> None:
    image = torch.randn(1, 8, 4, 4, 4).to(memory_format=torch.channels_last_3d)
    for layer in (InstanceNorm(8), TransposedConv(8, 8, 2), DoublingConv(8, 8, 2)):
        assert layer(image).is_contiguous(memory_format=torch.channels_last_3d)
