"""NeuroNet: layers equal plain formulas and TensorFlow's."""

import math

import pytest
import torch
import torch.nn.functional as F
from neuronets import ALL, SMALL, TISSUE, network, scan, shake, weight_of
from torch import Tensor, nn

from bidsseg.networks.neuronet import NeuroNet, ResidualUnit, batch_norm

ACTS = ["relu6", "lrelu0.1"]


def tf_same(x: Tensor, kernel: int, stride: int) -> Tensor:
    """Pad with zeros as TensorFlow's "same" does: half of the padding before, an odd voxel after."""
    pads: list[int] = []
    for size in reversed(x.shape[2:]):
        needed = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
        pads += [needed // 2, needed - needed // 2]
    return F.pad(x, pads)


def normed(norm: nn.Module, x: Tensor) -> Tensor:
    """Return the batch normalisation in prediction, written out."""
    assert isinstance(norm, nn.BatchNorm3d)
    assert norm.running_mean is not None and norm.running_var is not None
    mean, variance, scale, shift = (
        values.view(1, -1, 1, 1, 1) for values in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    return (x - mean) / (variance + 1e-3).sqrt() * scale + shift


def test_features_have_16_to_128_channels_at_four_scales() -> None:
    net = NeuroNet(TISSUE).eval()
    with torch.no_grad():
        levels = net.encode(scan(128, 16, 8))
    assert [tuple(level.shape[1:]) for level in levels] == [
        (16, 128, 16, 8), (32, 64, 8, 4), (64, 32, 4, 2), (128, 16, 2, 1),
    ]  # fmt: skip
    assert net.multiple == 8


def test_no_convolution_has_a_bias_and_the_second_of_two_units_keeps_the_size() -> None:
    net = NeuroNet(SMALL)
    assert all(module.bias is None for module in net.modules() if isinstance(module, nn.Conv3d))
    units = [module for module in net.modules() if isinstance(module, ResidualUnit)]
    kernels = [[(m.kernel_size[0], m.stride[0]) for m in unit.modules() if isinstance(m, nn.Conv3d)] for unit in units]
    assert kernels == [[(4, 2), (3, 1)], [(3, 1), (3, 1)]] * 3


def test_the_stem_is_a_convolution_alone() -> None:
    net, image = network(), scan(8, 8, 12)
    plain = F.conv3d(tf_same(image, 3, 1), net.stem.weight)
    assert torch.allclose(net.encode(image)[0], plain, atol=1e-5)
    assert (plain < -1).any()
    assert not torch.allclose(plain, F.relu6(plain))


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("inputs, outputs, stride", [(4, 8, 2), (6, 6, 1), (3, 6, 2)])
def test_a_unit_is_the_plain_formula(inputs: int, outputs: int, stride: int, act: str) -> None:
    torch.manual_seed(0)
    unit = ResidualUnit(inputs, outputs, stride, act=act).eval()
    shake(unit)
    x = 6 * scan(8, 6, 4, channels=inputs, number=2)

    def activation(x: Tensor) -> Tensor:
        return x.clamp(0, 6) if act == "relu6" else torch.where(x > 0, x, 0.1 * x)

    kernel = 4 if stride == 2 else 3
    first, second = unit.first, unit.second
    inner = F.conv3d(tf_same(activation(normed(first[0], x)), kernel, stride), weight_of(first[2]), stride=stride)
    added = F.conv3d(tf_same(activation(normed(second[0], inner)), 3, 1), weight_of(second[2]))
    passed = torch.zeros_like(added)
    before = (outputs - inputs) // 2
    passed[:, before : before + inputs] = F.max_pool3d(x, 2, 2) if stride == 2 else x
    assert normed(first[0], x).max() > 6
    assert torch.allclose(unit(x), passed + added, atol=1e-4)


@pytest.mark.parametrize("inputs, outputs", [(16, 32), (32, 64), (64, 128)])
def test_a_strided_unit_that_adds_nothing_passes_maxima_on_in_its_middle_channels(inputs: int, outputs: int) -> None:
    unit = ResidualUnit(inputs, outputs, 2, act="relu6")
    for module in unit.modules():
        if isinstance(module, nn.Conv3d):
            nn.init.zeros_(module.weight)
    x = scan(4, 6, 8, channels=inputs)
    found, middle = unit(x), slice(inputs // 2, inputs // 2 + inputs)
    blocks = x.reshape(1, inputs, 2, 2, 3, 2, 4, 2)
    assert torch.equal(found[:, middle], blocks.amax((3, 5, 7)))
    assert not found[:, : inputs // 2].any()
    assert not found[:, inputs // 2 + inputs :].any()


def test_a_strided_convolution_reads_one_voxel_before_and_one_after_each_pair() -> None:
    """With TensorFlow's "same" at even sizes, output j reads the voxels 2j - 1 to 2j + 2."""
    conv = ResidualUnit(1, 2, 2, act="relu6").first[2]
    nn.init.ones_(weight_of(conv))
    for axis in range(3):
        for voxel in range(8):
            impulse = torch.zeros(1, 1, 8, 8, 8)
            impulse.select(axis + 2, voxel)[:] = 1
            seen = conv(impulse)[0, 0].sum([other for other in range(3) if other != axis])
            assert [j for j in range(4) if seen[j] > 0] == [j for j in range(4) if 2 * j - 1 <= voxel <= 2 * j + 2]


@pytest.mark.parametrize("act, kind", list(zip(ACTS, (nn.ReLU6, nn.LeakyReLU), strict=True)))
def test_all_units_are_activated_alike_and_the_decoder_is_not(act: str, kind: type[nn.Module]) -> None:
    net = NeuroNet(SMALL, act=act)
    others = (nn.Conv3d, nn.BatchNorm3d, nn.Identity)
    leaves = [module for module in net.scales.modules() if not list(module.children())]
    assert [type(module) for module in leaves if not isinstance(module, others)] == [kind] * 12
    assert all(isinstance(m, others) for tail in net.tails.values() for m in tail.modules() if not list(m.children()))


def test_the_published_activation_is_the_default() -> None:
    net = NeuroNet(SMALL)
    assert sum(isinstance(module, nn.ReLU6) for module in net.modules()) == 12


def test_an_unknown_activation_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'gelu', not one of relu6, lrelu0\.1"):
        NeuroNet(SMALL, act="gelu")


def test_batches_are_normalised_as_in_tensorflow() -> None:
    norm, x = batch_norm(3), 0.05 * scan(6, 5, 4, channels=3, number=2) + 2
    mean, variance = x.mean((0, 2, 3, 4)), x.var((0, 2, 3, 4), correction=0)
    plain = (x - mean.view(1, 3, 1, 1, 1)) / (variance.view(1, 3, 1, 1, 1) + 1e-3).sqrt()
    assert torch.allclose(norm(x), plain, atol=1e-5)
    assert norm.running_mean is not None and norm.running_var is not None
    assert torch.allclose(norm.running_mean, 0.01 * mean)
    assert torch.allclose(norm.running_var, 0.99 + 0.01 * variance, atol=1e-5)
    assert all(module.eps == 1e-3 for module in NeuroNet(SMALL).modules() if isinstance(module, nn.BatchNorm3d))


def test_kernels_are_drawn_uniformly_as_wide_as_their_inputs_ask() -> None:
    torch.manual_seed(0)
    for name, module in NeuroNet(ALL).named_modules():
        if isinstance(module, nn.Conv3d):
            bound = math.sqrt(3 / (module.in_channels * math.prod(module.kernel_size)))
            drawn = module.weight.detach().abs()
            assert drawn.max() <= bound, name
            if drawn.numel() > 1000:
                assert drawn.max() > 0.98 * bound, name
                assert drawn.mean().item() == pytest.approx(bound / 2, rel=0.06), name
