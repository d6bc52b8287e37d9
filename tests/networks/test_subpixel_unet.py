"""The network: shapes, windows, precision and size."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from bidsseg.learning.recipe import load_recipe, shipped_recipes
from bidsseg.models.card import Card
from bidsseg.models.library import build
from bidsseg.networks.subpixel_unet import ChannelNorm, SubpixelUNet, fold, unfold
from bidsseg.segmentation import windows
from bidsseg.segmentation.engine import Engine
from bidsseg.segmentation.features import Features
from bidsseg.segmentation.windows import HALO, features_of, in_windows, steps, window_sizes

SHAPE = (32, 48, 16)
OURS = "subpixel-unet"


def network(widths: tuple[int, ...] = (8, 16), coordinates: Literal[0, 3] = 3, **options: int) -> SubpixelUNet:
    """Return a small network in which every residual branch is active."""
    torch.manual_seed(0)
    made = SubpixelUNet({"brain": 2}, coordinates=coordinates, widths=widths, features=4, last=8, **options)
    for module in made.modules():
        if isinstance(module, ChannelNorm):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.2)
    return made.eval().requires_grad_(False)


def scan(shape: tuple[int, ...] = SHAPE, channels: int = 1) -> tuple[Tensor, Tensor]:
    """Return an image and coordinates."""
    generator = torch.Generator().manual_seed(1)
    image = torch.rand(1, channels, *shape, generator=generator)
    return image, torch.rand(1, 3, *(n // 2 for n in shape), generator=generator)


# -- the folded grid ---------------------------------------------------------------------------------------------------


def test_unfold_is_the_inverse_of_fold() -> None:
    x = torch.arange(2 * 3 * 4 * 6 * 8.0).reshape(2, 3, 4, 6, 8)
    assert fold(x).shape == (2, 24, 2, 3, 4)
    assert torch.equal(unfold(fold(x)), x)
    y = torch.arange(2 * 16 * 2 * 3 * 4.0).reshape(2, 16, 2, 3, 4)
    assert torch.equal(fold(unfold(y)), y)


def test_folding_takes_each_block_of_voxels_into_channels() -> None:
    x = torch.arange(4 * 4 * 6.0).reshape(1, 1, 4, 4, 6)
    assert torch.equal(fold(x)[0, :, 1, 0, 2], x[0, 0, 2:4, 0:2, 4:6].flatten())


def test_folding_does_not_ask_for_contiguous_memory() -> None:
    x = torch.rand(1, 2, 4, 4, 4)
    last = x.contiguous(memory_format=torch.channels_last_3d)
    assert torch.equal(fold(last), fold(x))
    assert torch.equal(unfold(fold(last).contiguous(memory_format=torch.channels_last_3d)), x)
    assert torch.equal(fold(x[:, :, :2, 2:]), fold(x[:, :, :2, 2:].contiguous()))


# -- the network -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("widths, multiple", [((8, 16), 4), ((8, 16, 16), 8), ((4, 4, 4, 4), 16)])
def test_features_have_the_grid_of_the_image(widths: tuple[int, ...], multiple: int) -> None:
    net = network(widths)
    shape = (multiple, 2 * multiple, 3 * multiple)
    image, position = scan(shape)
    assert net.multiple == multiple
    assert net.coarse(image, position).shape == (1, 8 + 8, *(n // 2 for n in shape))
    assert net(image, position).shape == (1, 4, *shape)


def test_several_images_and_no_coordinates() -> None:
    net = network(coordinates=0, images=2)
    image, _ = scan(channels=2)
    assert net(image).shape == (1, 4, *SHAPE)
    assert net(image.expand(3, -1, -1, -1, -1)).shape == (3, 4, *SHAPE)


def test_features_at_points_equal_features_of_the_whole_volume() -> None:
    net = network((8, 16, 16))
    image, position = scan()
    dense = net(image, position)[0].permute(1, 2, 3, 0)
    points = torch.from_numpy(np.stack(np.unravel_index(np.arange(dense[..., 0].numel()), SHAPE), 1))
    found = net.at(image, position, points)
    assert torch.allclose(found.reshape(dense.shape), dense, atol=1e-5)
    assert torch.allclose(net.at(image, position, points[[5, 5, 9]]), found[[5, 5, 9]])


def test_the_gradient_reaches_every_parameter() -> None:
    net = network((8, 16, 16)).train().requires_grad_()
    image, position = scan()
    points = torch.randint(16, (500, 3), generator=torch.Generator().manual_seed(0))
    net.heads["brain"](net.at(image, position, points)).square().sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_brightness_decides() -> None:
    """The network also works on uniform and on dark images."""
    net = network(coordinates=0)
    bright, dark = (net(torch.full((1, 1, 32, 32, 32), value))[..., 16, 16, 16] for value in (0.8, 0.4))
    assert (bright - dark).norm() > 0.05 * dark.norm()


def test_an_untrained_residual_passes_its_input_on() -> None:
    net = SubpixelUNet({"brain": 2}, widths=(8, 16))
    x = torch.rand(1, 16, 4, 4, 4)
    assert torch.equal(net.bottom(x), x)


def test_each_voxel_is_normalised_for_itself() -> None:
    norm = ChannelNorm(6)
    x = 100 * torch.rand(2, 6, 3, 4, 5)
    found = norm(x)
    assert torch.allclose(found.mean(1), torch.zeros(2, 3, 4, 5), atol=1e-5)
    assert torch.allclose(found.std(1, correction=0), torch.ones(2, 3, 4, 5), atol=1e-2)
    assert torch.allclose(norm(x[..., 2:3]), found[..., 2:3])


def test_the_same_again_is_bit_by_bit_the_same() -> None:
    net = network()
    assert torch.equal(net(*scan()), net(*scan()))


def test_half_precision_is_close_to_single() -> None:
    net = network((8, 16, 16))
    image, position = scan()
    exact = net(image, position)
    with torch.autocast("cpu", torch.bfloat16):
        rough = net(image, position).float()
    assert (rough - exact).norm() < 0.02 * exact.norm()


# -- recipes -----------------------------------------------------------------------------------------------------------


def expected_parameters(
    regions: int, images: int, coordinates: int, widths: list[int], features: int, last: int
) -> int:
    """Return the number of parameters counted by hand: kernels, and two numbers for each normalised channel."""

    def conv(a: int, b: int, kernel: int = 3) -> int:
        return a * b * kernel**3 + 2 * b

    pairs = list(pairwise(widths))
    down = sum(conv(a, b, 2) + 2 * conv(b, b) for a, b in pairs)
    up = sum(a * b for a, b in pairs) + sum(2 * conv(a, a) for a in widths[1:-1])
    first = conv(8 * images + coordinates, widths[0]) + widths[0]
    ends = first + 2 * conv(widths[-1], widths[-1]) + conv(widths[0], last)
    return down + up + ends + (last + 8 * images + 1) * 8 * features + (features + 1) * regions


@pytest.mark.parametrize("name", [name for name in shipped_recipes() if load_recipe(name).network["name"] == OURS])
def test_size_of_the_networks_of_the_recipes(name: str) -> None:
    recipe = load_recipe(name)
    card = Card(
        recipe.name, recipe.title, tuple(recipe.inputs), recipe.network, recipe.spacing_mm, tuple(recipe.heads), ""
    )
    made = build(card)
    options = {key: value for key, value in recipe.network.items() if key != "name"}
    regions = sum(head.out_features for head in made.heads.values())  # type: ignore[misc]
    count = sum(p.numel() for p in made.parameters())
    assert count == expected_parameters(regions, **options)
    assert 2 * count < 16e6
    assert all(n % made.multiple == 0 for n in recipe.sampling.shape)


def test_the_first_model_has_four_heads_of_these_sizes() -> None:
    recipe = load_recipe("wholebrain")
    card = Card(recipe.name, recipe.title, ("T1w",), recipe.network, recipe.spacing_mm, tuple(recipe.heads), "")
    state = build(card).state_dict()
    assert {name: state[f"heads.{name}.bias"].shape[0] for name in recipe.heads} == {
        "BrainCOLOR": 135, "FAST": 4, "FreeSurfer": 36, "brain": 2,
    }  # fmt: skip


# -- cells -------------------------------------------------------------------------------------------------------------


def test_weights_for_one_image_predict_the_same_beside_a_second_one() -> None:
    one = network(images=1)
    two = network(images=2)
    two.load_state_dict(two.with_images(one.state_dict(), 1))
    image, position = scan(channels=2)
    found, expected = two(image, position), one(image[:, :1], position)
    assert torch.allclose(found, expected, atol=1e-5)
    swapped = two(image.flip(1), position)
    assert not torch.allclose(swapped, expected, atol=1e-2)


def dense(net: SubpixelUNet, image: Tensor, position: Tensor | None, window: Sequence[int]) -> Tensor:
    """Return features (D, H, W, F) of the whole volume, computed in windows."""
    cells = torch.ones([n // net.cell for n in image.shape[2:]], dtype=torch.bool)
    rows = in_windows(net, image, position, cells=cells, window=window, device="cpu", dtype=torch.float32)
    features = Features.of_cells(net, rows, cells)
    count = image[0, 0].numel()
    found = features.interpolated(torch.arange(count)[:, None], torch.ones(count, 1))
    return found.view(*image.shape[2:], -1)


def test_features_of_all_cells_equal_the_output_of_the_network() -> None:
    net = network((4, 8))
    image, position = scan((24, 20, 12))
    assert torch.allclose(dense(net, image, position, (24, 20, 12)), net(image, position)[0].movedim(0, -1), atol=1e-5)


@pytest.mark.parametrize("corner", [(0, 0, 0), (3, 5, 2), (15, 11, 7)])
def test_features_of_some_cells_equal_the_output_of_the_network(corner: tuple[int, int, int]) -> None:
    """Slabs of the last convolution see their surroundings, and zeros outside the volume."""
    net = network((4, 8))
    image, position = scan((48, 24, 16))
    wanted = torch.zeros(48, 24, 16, dtype=torch.bool)
    wanted[corner[0] :, corner[1] : corner[1] + 9, corner[2] : corner[2] + 6] = True
    wanted[-1, -1, -1] = True
    features = features_of(net, image, position, wanted=wanted, engine=Engine(), notes=[])
    assert (features.known() >= wanted).all()
    assert features.known().sum() < 2 * wanted.sum()
    voxels = wanted.view(-1).nonzero()
    found = features.interpolated(voxels, torch.ones(len(voxels), 1))
    assert torch.allclose(found, net(image, position)[0].movedim(0, -1)[wanted], atol=1e-5)


def test_features_are_interpolated_and_mirrored() -> None:
    net = network((4, 8))
    image, position = scan((16, 12, 8))
    exact = net(image, position)[0].movedim(0, -1)
    features = features_of(net, image, position, wanted=None, engine=Engine(), notes=[])
    voxels, share = torch.randint(exact[..., 0].numel(), (50, 8)), torch.rand(50, 8)
    moved = net.expand(torch.zeros(1, features.table.shape[1]))[0, 0].expand(exact.shape).clone()
    moved[3:, 3:, 3:] = exact.flip(0)[:-3, :-3, :-3]
    for one, truth in ((features, exact), (features.mirrored(0), exact.flip(0)), (features.mirrored(3), moved)):
        expected = (truth.reshape(-1, exact.shape[-1])[voxels] * share[..., None]).sum(1)
        assert torch.allclose(one.interpolated(voxels, share), expected, atol=1e-5)
    assert not features.mirrored(3).known()[:3].any()
    assert features.mirrored(3).known()[3:, 3:, 3:].all()


def test_a_linear_map_of_features_has_a_constant_elsewhere() -> None:
    net = network((4, 8))
    image, position = scan((16, 12, 8))
    wanted = torch.zeros(16, 12, 8, dtype=torch.bool)
    wanted[4:8] = True
    weight = torch.randn(net.features)
    found = features_of(net, image, position, wanted=wanted, engine=Engine(), notes=[]).linear(weight, -3.0)
    exact = net(image, position)[0].movedim(0, -1) @ weight
    assert torch.allclose(found[wanted], exact[wanted], atol=1e-5)
    assert (found[~wanted] == -3).all()


# -- windows -----------------------------------------------------------------------------------------------------------


def test_steps_cover_an_axis_once() -> None:
    for size, window, multiple in [
        (160, 160, 16),
        (160, 96, 16),
        (192, 80, 16),
        (64, 64, 4),
        (100, 72, 4),
        (96, 64, 32),
    ]:
        cores = steps(size, window, HALO, multiple=multiple)
        assert [i for start, end in cores for i in range(start, end)] == list(range(size))
        assert all(start % multiple == 0 for start, _ in cores)


@pytest.mark.parametrize("memory_mb", [None, 10_000, 1000, 500, 100, 1])
@pytest.mark.parametrize("multiple", [4, 16, 64, 128])
def test_windows_fit_the_memory_as_far_as_they_may(memory_mb: int | None, multiple: int) -> None:
    shape = (256, 384, 256)
    engine = Engine(memory_mb=memory_mb)
    net = network()
    net.multiple = multiple
    sizes = window_sizes(shape, net, engine)
    smallest = max(windows.SMALLEST_WINDOW, multiple)
    voxels = np.inf if memory_mb is None else memory_mb * 1e6 / (4 * net.numbers_per_voxel)
    assert all(smallest <= size <= whole for size, whole in zip(sizes, shape, strict=True))
    assert np.prod(sizes) <= voxels or max(sizes) == smallest
    if memory_mb is None:
        assert sizes == list(shape)


@pytest.mark.parametrize("shape", [(112, 8, 12), (12, 112, 8), (8, 12, 112), (100, 104, 4)])
def test_windows_with_a_halo_beyond_the_receptive_field_are_exact(shape: tuple[int, ...]) -> None:
    """With two levels, a voxel sees 28 voxels to each side, fewer than the halo."""
    net = network((4, 8))
    image, position = scan(shape)
    whole = dense(net, image, position, shape)
    parts = dense(net, image, position, (96, 96, 96))
    assert whole.shape == (*shape, 4)
    assert torch.allclose(parts, whole, atol=1e-5)


def test_windows_of_a_deep_network_differ_near_their_seams_alone() -> None:
    """Four levels see further than the halo, but voxels beyond the halo hardly count."""
    net = network((4, 8, 8, 8))
    shape = (256, 32, 32)
    image, position = scan(shape)
    whole = dense(net, image, position, shape)
    parts = dense(net, image, position, (192, 32, 32))
    difference = (parts - whole).norm(dim=-1).mean((1, 2)) / whole.norm(dim=-1).mean()
    seam = 192 - 2 * HALO
    assert difference.max() < 0.05
    assert difference[: seam - 96].max() < 1e-5
    assert difference.argmax() in range(seam - 32, seam + 32)


def test_windows_of_a_network_deeper_than_the_halo_lie_on_its_grid() -> None:
    net = network((2,) * 6)
    assert net.multiple == 64
    shape = (192, 64, 64)
    image, position = scan(shape)
    found = dense(net, image, position, (128, 64, 64))
    whole = dense(net, image, position, shape)
    assert (found - whole).norm() < 0.1 * whole.norm()


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_out_of_memory_falls_back_to_windows_with_a_note(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    net = network()
    notes: list[str] = []
    image, position = scan((128, 64, 16))
    tried = []

    def attempt(*given: Any, **named: Any) -> Tensor:
        tried.append(named["window"])
        if len(tried) == 1:
            raise error
        return in_windows(*given, **named)

    monkeypatch.setattr(windows, "HALO", 8)
    monkeypatch.setattr(windows, "in_windows", attempt)
    found = features_of(net, image, position, wanted=None, engine=Engine(), notes=notes)
    assert found.lookup.shape == (128, 64, 16)
    assert found.known().all()
    assert tried == [[128, 64, 16], [64, 64, 16]]
    assert notes == ["out of memory on cpu", "predicted in windows of 64x64x16 voxels on cpu to save memory"]


def test_without_memory_on_a_gpu_the_processor_computes_with_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may only emulate the bfloat16 of the GPU."""
    notes, tried = list[str](), []

    def attempt(*given: Any, **named: Any) -> Tensor:
        tried.append((named["device"], named["dtype"]))
        if named["device"] != "cpu":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return in_windows(*given, **named)

    monkeypatch.setattr(windows, "in_windows", attempt)
    image, position = scan()
    features_of(network(), image, position, wanted=None, engine=Engine("cuda:0", "bf16"), notes=notes)
    assert tried == [*[("cuda:0", torch.bfloat16)] * 2, ("cpu", torch.float32)]
    assert notes == ["out of memory on cuda:0"] * 2


def test_other_errors_are_not_taken_for_lack_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def attempt(*_: object, **__: object) -> Tensor:
        raise RuntimeError("expected 9 channels")

    monkeypatch.setattr(windows, "in_windows", attempt)
    with pytest.raises(RuntimeError, match="9 channels"):
        image, position = scan()
        features_of(network(), image, position, wanted=None, engine=Engine(), notes=[])
