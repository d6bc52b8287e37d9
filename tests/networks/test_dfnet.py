"""DFNet and its losses: size, warps, similarity and roughness."""

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates
from torch import Tensor, nn

from bidsseg.networks.dfnet import DFNet, roughness, similarity_loss, warp, warp_whole_voxels
from bidsseg.networks.eneuronet import Block, ENeuroNet

SHAPE = (6, 8, 10)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def constant(*shift: float, number: int = 1) -> Tensor:
    """Return the same displacement at every voxel."""
    return torch.tensor(shift).view(1, 3, 1, 1, 1).expand(number, 3, *SHAPE).contiguous()


def smooth(matrix: Tensor) -> Tensor:
    """Return the displacement matrix · v at every voxel v of SHAPE."""
    positions = torch.stack(torch.meshgrid(*(torch.arange(float(n)) for n in SHAPE), indexing="ij"))
    return torch.einsum("ij,jdhw->idhw", matrix, positions)[None]


# -- the network -------------------------------------------------------------------------------------------------------


KINDS = {"batch": nn.BatchNorm3d, "pair": nn.InstanceNorm3d}


@pytest.mark.parametrize("norm", KINDS)
def test_number_of_parameters(norm: str) -> None:
    net = DFNet(norm)
    assert sum(p.numel() for p in net.parameters()) == 1_800_723
    norms = sum(p.numel() for m in net.modules() if isinstance(m, KINDS[norm]) for p in m.parameters())
    assert norms == 8_064
    assert 1_800_723 - norms == 1_792_659


@pytest.mark.parametrize("norm", KINDS)
def test_normalisations_follow_the_last_convolution_of_blocks_and_the_projections(norm: str) -> None:
    net = DFNet(norm)
    norms = {name: module for name, module in net.named_modules() if isinstance(module, KINDS[norm])}
    assert Counter(module.num_features for module in norms.values()) == {32: 4, 64: 9, 128: 12, 256: 7}
    assert all(module.eps == 1e-3 and module.affine for module in norms.values())
    blocks = {name: module for name, module in net.named_modules() if isinstance(module, Block)}
    expected = {f"{name}.last.1" for name in blocks}
    expected |= {f"{name}.shortcut.1" for name, block in blocks.items() if not isinstance(block.shortcut, nn.Identity)}
    assert set(norms) == expected
    assert len(blocks) == 26


def test_the_trunk_is_that_of_eneuronet() -> None:
    """Both trunks are equal except for the normalisations."""
    torch.manual_seed(0)
    net, segmenter = DFNet("pair").eval().requires_grad_(False), ENeuroNet({"a": 2}, images=2).requires_grad_(False)
    weights = {name.replace(".last.0.", ".last.").replace(".shortcut.0.", ".shortcut."): value
               for name, value in net.trunk.state_dict().items()}  # fmt: skip
    segmenter.trunk.load_state_dict({name: weights[name] for name in segmenter.trunk.state_dict()})
    for module in net.modules():
        if isinstance(module, nn.InstanceNorm3d):
            module.forward = lambda input: input  # type: ignore[method-assign]
    image = draw(1, 2, 16, 32, 16)
    assert torch.allclose(net.trunk(image), segmenter.trunk(image), atol=1e-5)


def test_a_displacement_has_the_grid_of_the_images() -> None:
    net = DFNet("pair").eval().requires_grad_(False)
    moving, fixed = draw(2, 1, 16, 32, 48), draw(2, 1, 16, 32, 48, seed=1)
    found = net(moving, fixed)
    assert found.shape == (2, 3, 16, 32, 48)
    assert torch.allclose(net(moving[1:], fixed[1:]), found[1:], atol=1e-4)
    assert not torch.allclose(net(fixed, moving), found, atol=1e-3)
    assert net.multiple == 16
    with pytest.raises(ValueError, match="divisible by 16"):
        net(draw(1, 1, 16, 16, 24), draw(1, 1, 16, 16, 24))


def test_the_gradient_reaches_every_parameter() -> None:
    net = DFNet("pair")
    net(draw(1, 1, 32, 32, 32), draw(1, 1, 32, 32, 32, seed=1)).square().sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_it_learns_to_move_one_ball_onto_another() -> None:
    torch.manual_seed(0)

    def ball(*centre: float) -> Tensor:
        axes = [(torch.arange(32.0) - c) ** 2 for c in centre]
        return torch.exp(-(axes[0][:, None, None] + axes[1][:, None] + axes[2]) / 50)[None, None]

    net, moving, fixed = DFNet("pair"), ball(13, 16, 18), ball(16, 16, 14)
    optimiser = torch.optim.Adam(net.parameters(), 1e-3)
    for _ in range(16):
        optimiser.zero_grad()
        displacement = net(moving, fixed)
        (similarity_loss(warp(moving, displacement), fixed) + 0.1 * roughness(displacement)).backward()
        optimiser.step()
    displacement = net(moving, fixed).detach()
    assert similarity_loss(warp(moving, displacement), fixed) < 0.5 * similarity_loss(moving, fixed)
    inside = displacement[0][:, fixed[0, 0] > 0.5].mean(1)
    assert inside[0] < -1  # what lies at 16 comes from 13
    assert inside[2] > 1


# -- warps -------------------------------------------------------------------------------------------------------------


def image_by_trilinear(image: Tensor, displacement: Tensor) -> Tensor:
    return warp(image, displacement)


def image_by_whole_voxels(image: Tensor, displacement: Tensor) -> Tensor:
    return warp_whole_voxels(image, torch.zeros(len(image), *SHAPE, dtype=torch.long), displacement)[0]


WARPS: list[Callable[[Tensor, Tensor], Tensor]] = [image_by_trilinear, image_by_whole_voxels]


@pytest.mark.parametrize("move", WARPS)
@pytest.mark.parametrize("shift", [(0, 0, 0), (2, 0, 0), (0, -3, 0), (0, 0, 4), (1, -2, 3), (-1, 1, -2)])
def test_an_integer_shift_is_a_roll_inside(
    move: Callable[[Tensor, Tensor], Tensor], shift: tuple[int, int, int]
) -> None:
    image = draw(2, 3, *SHAPE)
    found = move(image, constant(*shift, number=2))
    rolled = image.roll([-s for s in shift], (2, 3, 4))
    inside = tuple(slice(max(0, -s), n - max(0, s)) for s, n in zip(shift, SHAPE, strict=True))
    assert torch.allclose(found[:, :, *inside], rolled[:, :, *inside], atol=1e-5)


@pytest.mark.parametrize("move", WARPS)
def test_outside_the_volume_border_values_are_repeated(move: Callable[[Tensor, Tensor], Tensor]) -> None:
    image = draw(1, 1, *SHAPE)
    assert torch.allclose(move(image, constant(100, 0, 0)), image[:, :, -1:].expand_as(image), atol=1e-5)
    assert torch.allclose(move(image, constant(0, -100, 0)), image[:, :, :, :1].expand_as(image), atol=1e-5)
    shifted = torch.cat([image[..., 3:], image[..., -1:].expand(1, 1, *SHAPE[:2], 3)], -1)
    assert torch.allclose(move(image, constant(0, 0, 3)), shifted, atol=1e-5)


def test_warp_is_trilinear() -> None:
    image, displacement = draw(2, 2, *SHAPE), 8 * draw(2, 3, *SHAPE, seed=1) - 4
    found = warp(image, displacement)
    positions = np.indices(SHAPE) + displacement.numpy()
    for n in range(2):
        for c in range(2):
            expected = map_coordinates(image[n, c].numpy(), positions[n], order=1, mode="nearest")
            assert np.allclose(found[n, c], expected, atol=1e-5)


def test_the_gradient_of_the_warp_is_that_of_its_value() -> None:
    image = draw(1, 1, 3, 4, 5).double().requires_grad_()
    displacement = (0.2 + 0.6 * draw(1, 3, 3, 4, 5, seed=1)).double().requires_grad_()
    assert torch.autograd.gradcheck(warp, (image, displacement))


def test_positions_are_exact_in_half_precision() -> None:
    image = draw(1, 1, 300, 2, 2)
    still = torch.zeros(1, 3, 300, 2, 2, dtype=torch.bfloat16)
    assert torch.allclose(warp(image, still), image, atol=1e-4)
    labels = torch.arange(1200).view(1, 300, 2, 2)
    assert torch.equal(warp_whole_voxels(image, labels, still)[1], labels)


def test_warping_creates_no_new_labels() -> None:
    labels = torch.tensor([0, 2, 17, 1035])[torch.randint(4, (2, *SHAPE), generator=torch.Generator().manual_seed(0))]
    displacement = 6 * draw(2, 3, *SHAPE, seed=1) - 3
    _, found = warp_whole_voxels(draw(2, 1, *SHAPE), labels, displacement)
    assert found.dtype == labels.dtype
    assert set(found.unique().tolist()) <= {0, 2, 17, 1035}
    assert not torch.equal(found, labels)


def test_image_and_labels_move_together() -> None:
    """Each voxel gets the nearest voxel to which the displacement points, within the volume."""
    labels = torch.arange(2 * 480).view(2, *SHAPE)
    image = torch.stack([labels, -labels], 1).float()
    displacement = 6 * draw(2, 3, *SHAPE, seed=1) - 3
    moved, found = warp_whole_voxels(image, labels, displacement)
    assert torch.equal(moved, torch.stack([found, -found], 1).float())
    for n, i, j, k in [(0, 0, 0, 0), (1, 3, 4, 5), (0, 5, 7, 9), (1, 2, 0, 9)]:
        u = displacement[n, :, i, j, k].tolist()
        source = [min(max(v + round(d), 0), s - 1) for v, d, s in zip((i, j, k), u, SHAPE, strict=True)]
        assert found[n, i, j, k] == labels[n, source[0], source[1], source[2]]


# -- losses ------------------------------------------------------------------------------------------------------------


def test_similarity_is_one_minus_the_squared_correlation_of_each_pair() -> None:
    a, b = draw(3, 1, *SHAPE), draw(3, 1, *SHAPE, seed=1)
    b = b + torch.tensor([0.3, 1, 4]).view(3, 1, 1, 1, 1) * a
    expected = np.mean([1 - np.corrcoef(x.flatten(), y.flatten())[0, 1] ** 2 for x, y in zip(a, b, strict=True)])
    assert similarity_loss(a, b).item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("slope, offset", [(1, 0), (3, -2), (0.1, 5), (-2, 1)])
def test_similarity_asks_for_a_linear_relation_of_any_sign(slope: float, offset: float) -> None:
    image = draw(1, 1, *SHAPE)
    assert similarity_loss(image, slope * image + offset).item() == pytest.approx(0, abs=1e-5)


def test_similarity_with_an_empty_image_is_none_and_finite() -> None:
    for other in (draw(1, 1, *SHAPE), torch.ones(1, 1, *SHAPE)):
        empty = torch.zeros(1, 1, *SHAPE, requires_grad=True)
        loss = similarity_loss(empty, other)
        loss.backward()
        assert loss.item() == pytest.approx(1)
        assert empty.grad is not None
        assert torch.isfinite(empty.grad).all()


def test_roughness_of_a_linear_displacement_is_the_sum_of_its_squared_slopes() -> None:
    matrix = torch.tensor([[0.1, -0.2, 0.3], [0.0, 0.5, -0.1], [0.4, 0.2, 0.7]])
    assert roughness(smooth(matrix)).item() == pytest.approx(matrix.square().sum().item(), abs=1e-4)
    assert roughness(constant(3.0, -2.0, 1.0)).item() == 0


def test_roughness_is_the_plain_formula() -> None:
    u = draw(2, 3, *SHAPE).double()
    expected = sum((np.diff(u.numpy(), axis=axis) ** 2).sum(1).mean() for axis in (2, 3, 4))
    assert roughness(u).item() == pytest.approx(expected)
