"""SegNet: size, inputs, whole brains against separate patches, and stages."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bidsseg.errors import DataError
from bidsseg.networks.segnet import staged
from bidsseg.networks.segnet.network import WIDTH, SegNet
from bidsseg.networks.segnet.staged import painted, segment_in_stages, until_settled, voxel_logits
from bidsseg.networks.segnet.surroundings import (
    MARGIN,
    Surroundings,
    centroids_of,
    describe,
    distances,
    draw_voxels,
    mean_distance,
    surroundings,
)

ALL = ("fine", "compressed", "cube", "distances")
REGIONS = 4


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scan(shape: Sequence[int] = (13, 11, 12), seed: int = 0) -> Tensor:
    """Return a rough image with some structure, never negative."""
    noise = torch.rand(1, 1, *shape, generator=seeded(seed))
    return 100 * F.avg_pool3d(noise, 3, 1, 1)[0, 0]


def ellipsoid(shape: Sequence[int] = (13, 11, 12)) -> Tensor:
    """Return a mask that does not touch the border."""
    axes = [torch.linspace(-1.2, 1.2, n) for n in shape]
    return sum(a**2 for a in torch.meshgrid(*axes, indexing="ij")) < 1  # type: ignore[return-value]


def small(groups: Sequence[str] = ALL, planes: Sequence[int] = (0, 1, 2), **options: object) -> SegNet:
    """Return a network with complete pathways and few neurons after them."""
    torch.manual_seed(0)
    net = SegNet({"regions": REGIONS}, groups=groups, planes=planes, hidden=(16, 16), **options)  # type: ignore[arg-type]
    return net.eval()


def parts(mask: Tensor) -> Tensor:
    """Return labels 1 to 3 in thirds of the mask along its first axis."""
    third = (torch.arange(mask.shape[0]) * 3).div(mask.shape[0], rounding_mode="floor") + 1
    return mask * third[:, None, None]


# -- size and start ----------------------------------------------------------------------------------------------------


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def paper(**options: object) -> SegNet:
    """Return the network of the paper without memory for its weights."""
    with torch.device("meta"):
        return SegNet({"BrainCOLOR": 135}, **options)  # type: ignore[arg-type]


def test_number_of_parameters() -> None:
    net = paper()
    assert count(net) == 30_563_475
    assert [count(m) for m in net.first.values()] == [520, 520]
    assert [count(m) for m in net.second.values()] == [75_150, 75_150]
    assert count(net.cube) == 3_199_000
    assert [count(m) for m in net.joint if count(m)] == [17_805_000, 9_003_000, 405_135]


def test_number_of_parameters_as_published_counts_shared_ones_for_each_plane() -> None:
    net = paper()
    assert count(net) + sum((len(net.planes) - 1) * count(m) for m in net.first.values()) == 30_565_555


def test_number_of_parameters_without_distances() -> None:
    assert count(paper(groups=("fine", "compressed", "cube"))) == 30_161_475


TABLE_1 = {
    "2D patch": (("fine",), (1,), 800),
    "3D patch": (("cube",), (0, 1, 2), 1000),
    "3 2D patches": (("fine",), (0, 1, 2), 2400),
    "3 2D compressed patches": (("compressed",), (0, 1, 2), 2400),
    "coordinates": (("coordinates",), (0, 1, 2), 3),
    "distances to centroids": (("distances",), (0, 1, 2), REGIONS - 1),
    "3+3 2D patches": (("fine", "compressed"), (0, 1, 2), 4800),
    "SegNet": (ALL, (0, 1, 2), 5800 + REGIONS - 1),
}


@pytest.mark.parametrize("groups, planes, joined", TABLE_1.values(), ids=TABLE_1)
def test_networks_of_table_1(groups: tuple[str, ...], planes: tuple[int, ...], joined: int) -> None:
    net = small(groups, planes)
    assert net.joint[0].in_features == joined
    seen, labels = surroundings(scan(), ellipsoid()), parts(ellipsoid())
    points = draw_voxels(labels, 5, seeded())
    logits = net(describe(seen, points, net.groups, planes=planes, centroids=centroids_of(labels, REGIONS - 1)))
    assert logits.shape == (5, REGIONS)
    assert logits.std(0).min() > 0
    logits.sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("options", [{"groups": ()}, {"groups": ("texture",)}, {"scale": "mm"}])
def test_unknown_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="SegNet has"):
        small(**options)  # type: ignore[arg-type]


def test_the_order_of_groups_is_the_networks_own() -> None:
    assert small(("distances", "cube", "fine")).groups == ("fine", "cube", "distances")


def test_weights_begin_uniform_and_biases_at_a_tenth() -> None:
    net = small()
    bounds = {
        "first.fine.weight": 25 * (1 + 20 / 4),
        "second.compressed.2.weight": 25 * (20 + 50 / 4),
        "cube.0.weight": 2197 + 1000,
        "joint.0.weight": 5803 + 16,
    }
    for name, p in net.named_parameters():
        if name.endswith("bias"):
            assert torch.equal(p, torch.full_like(p, 0.1))
        if name in bounds:
            bound = math.sqrt(6 / bounds.pop(name))
            assert 0.97 * bound < p.abs().max() <= bound
            assert p.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)
    assert not bounds


def test_a_plane_is_two_convolutions_pooled_before_they_are_rectified() -> None:
    net = small()
    patch = torch.randn(1, WIDTH, WIDTH, generator=seeded())
    x = patch.double()
    for layer, kernels, size in [(net.first["fine"], 20, 12), (net.second["fine"][1], 50, 4)]:  # type: ignore[index]
        weight, bias = layer.weight.detach().double(), layer.bias.detach().double()
        made = torch.zeros(kernels, size, size, dtype=torch.float64)
        for i in range(size):
            for j in range(size):
                four = [
                    (weight * x[:, 2 * i + a : 2 * i + a + 5, 2 * j + b : 2 * j + b + 5]).sum((1, 2, 3))
                    for a in (0, 1)
                    for b in (0, 1)
                ]
                made[:, i, j] = (torch.stack(four).amax(0) + bias).clamp(min=0)
        x = made
    assert torch.allclose(net.plane("fine", 1, patch)[0].double(), x.flatten(), atol=1e-5)


def test_planes_share_the_first_convolution_and_not_the_second() -> None:
    net = small()
    patch = torch.randn(2, 1, WIDTH, WIDTH, generator=seeded()).expand(2, 3, WIDTH, WIDTH)
    one, two, three = net.pathway("fine", patch).split(800, 1)
    assert not torch.allclose(one, two)
    net.second["fine"][2].load_state_dict(net.second["fine"][0].state_dict())  # type: ignore[index]
    one, two, three = net.pathway("fine", patch).split(800, 1)
    assert torch.equal(one, three)


# -- inputs ------------------------------------------------------------------------------------------------------------


def test_layout_of_the_inputs() -> None:
    shape, point = (8, 9, 10), (3, 4, 5)
    noise = torch.randn([2 * MARGIN + n for n in shape], generator=seeded())
    seen = Surroundings(noise, torch.tensor([-MARGIN] * 3))
    image, (x, y, z) = noise.numpy(), (n + MARGIN for n in point)
    centroids = 8 * torch.rand(134, 3, generator=seeded(1))
    inputs = describe(seen, torch.tensor([[0, 0, 0], point, [n - 1 for n in shape]]), ALL, centroids=centroids)
    assert torch.cat([values.flatten(1) for values in inputs.values()], 1).shape == (3, 7377)
    assert tuple(inputs) == ALL
    fine, compressed = (inputs[name][1].numpy() for name in ("fine", "compressed"))
    assert np.array_equal(fine[0], image[x, y - 14 : y + 15, z - 14 : z + 15])
    assert np.array_equal(fine[1], image[x - 14 : x + 15, y, z - 14 : z + 15])
    assert np.array_equal(fine[2], image[x - 14 : x + 15, y - 14 : y + 15, z])
    planes = [
        image[x, y - 43 : y + 44, z - 43 : z + 44],
        image[x - 43 : x + 44, y, z - 43 : z + 44],
        image[x - 43 : x + 44, y - 43 : y + 44, z],
    ]
    for found, plane in zip(compressed, planes, strict=True):
        assert np.allclose(found, plane.reshape(29, 3, 29, 3).mean((1, 3)), atol=1e-5)
    assert np.array_equal(inputs["cube"][1].numpy(), image[x - 6 : x + 7, y - 6 : y + 7, z - 6 : z + 7])
    plain = (torch.tensor(point) - centroids).norm(dim=1) / mean_distance(centroids)
    assert torch.allclose(inputs["distances"][1], plain, atol=1e-5)


def test_the_voxel_is_in_the_middle_of_its_patches() -> None:
    image = torch.zeros(13, 11, 12)
    image[6, 5, 7] = 1
    seen = surroundings(image, torch.ones(13, 11, 12, dtype=torch.bool))
    seen = Surroundings((seen.image > 0).float(), seen.origin)
    inputs = describe(seen, torch.tensor([[6, 5, 7]]), ("fine", "compressed", "cube"))
    for name, centre, value in [("fine", (14, 14), 1), ("compressed", (14, 14), 1 / 9), ("cube", (6, 6, 6), 1)]:
        for patch in inputs[name].reshape(-1, *inputs[name].shape[-len(centre) :]):
            assert patch[centre].item() == pytest.approx(value)
            assert patch.sum().item() == pytest.approx(value)


def test_planes_may_be_fewer() -> None:
    seen, points = surroundings(scan(), ellipsoid()), torch.tensor([[6, 5, 6]])
    every = describe(seen, points, ("fine", "compressed"))
    some = describe(seen, points, ("fine", "compressed"), planes=(2, 0))
    for group, values in some.items():
        assert torch.equal(values, every[group][:, [2, 0]])


def test_brightness_is_scaled_by_the_brain_and_beyond_the_scan_it_is_dark() -> None:
    image, brain = scan(), ellipsoid()
    seen = surroundings(image, brain)
    first, last = torch.nonzero(brain).amin(0), torch.nonzero(brain).amax(0)
    assert seen.image.shape == tuple((last - first + 1 + 2 * MARGIN).tolist())
    inside = seen.image[tuple((torch.nonzero(brain) - seen.origin).unbind(1))]
    assert inside.mean().item() == pytest.approx(0, abs=1e-5)
    assert inside.std(correction=0).item() == pytest.approx(1, abs=1e-5)
    corner = seen.image[0, 0, 0].item()
    assert corner == pytest.approx((-image[brain].mean() / image[brain].std(correction=0)).item(), abs=1e-5)
    assert (seen.image == seen.image[0, 0, 0]).sum() == seen.image.numel() - image.numel()


def test_brightness_and_place_of_the_scan_do_not_matter() -> None:
    image, brain, points = scan(), ellipsoid(), torch.tensor([[6, 5, 6], [4, 5, 3]])
    plain = describe(surroundings(image, brain), points, ("fine", "compressed", "cube", "coordinates"))
    moved = F.pad(3 * image, (50, 60, 2, 3, 0, 70)), F.pad(brain, (50, 60, 2, 3, 0, 70))
    other = describe(surroundings(*moved), points + torch.tensor([0, 2, 50]), tuple(plain))
    for group, values in plain.items():
        assert torch.allclose(other[group], values, atol=1e-4)


def test_coordinates_reach_from_one_side_of_the_brain_to_the_other() -> None:
    brain = ellipsoid()
    found = describe(surroundings(scan(), brain), torch.nonzero(brain), ("coordinates",))["coordinates"]
    assert torch.allclose(found.amin(0), -torch.ones(3))
    assert torch.allclose(found.amax(0), torch.ones(3))


def test_there_must_be_a_brain_around_the_voxels() -> None:
    with pytest.raises(DataError, match="no voxels"):
        surroundings(scan(), torch.zeros(13, 11, 12, dtype=torch.bool))
    seen = surroundings(scan(), ellipsoid())
    with pytest.raises(ValueError, match="outside the box"):
        describe(seen, torch.tensor([[0, 0, 0]]), ("cube",))
    with pytest.raises(ValueError, match="no centroids"):
        describe(seen, torch.tensor([[6, 5, 6]]), ("distances",))


# -- centroids ---------------------------------------------------------------------------------------------------------


def test_centroids_are_centres_of_mass_and_missing_ones_their_mean() -> None:
    labels = torch.zeros(9, 8, 7, dtype=torch.int16)
    labels[1:4, 2:4, 5] = 1
    labels[8, 7, 6] = 4
    labels[7, 7, 6] = 4
    found = centroids_of(labels, 5)
    assert torch.allclose(found[0], torch.tensor([2, 2.5, 5]))
    assert torch.allclose(found[3], torch.tensor([7.5, 7, 6]))
    assert torch.allclose(found[[1, 2, 4]], torch.tensor([4.75, 4.75, 5.5]).expand(3, 3))
    with pytest.raises(DataError, match="no region"):
        centroids_of(torch.zeros(3, 3, 3), 2)


def test_mean_distance_is_over_the_pairs_of_which_n_are_of_a_centroid_with_itself() -> None:
    centroids = 50 * torch.rand(7, 3, generator=seeded())
    pairs = [(centroids[i] - centroids[j]).norm().item() for i in range(7) for j in range(i, 7)]
    assert len(pairs) == 7 * 8 / 2
    assert mean_distance(centroids).item() == pytest.approx(np.mean(pairs), rel=1e-5)


def test_scaled_distances_do_not_change_with_turning_moving_and_scaling() -> None:
    centroids, points = (100 * torch.rand(n, 3, generator=seeded(n)) for n in (20, 30))
    turn: Tensor = torch.linalg.qr(torch.randn(3, 3, generator=seeded()))[0]

    def moved(x: Tensor) -> Tensor:
        return 1.7 * x @ turn + torch.tensor([30.0, -20, 5])

    for scale in ("D", "both"):
        plain = distances(points, centroids, scale)
        assert torch.allclose(distances(moved(points), moved(centroids), scale), plain, atol=1e-4)
        assert torch.allclose(plain, distances(points, centroids, "zscore") / mean_distance(centroids))
    assert torch.allclose(
        distances(moved(points), moved(centroids), "zscore"), 1.7 * distances(points, centroids, "zscore"), atol=1e-3
    )


@pytest.mark.parametrize("scale", ["D", "zscore", "both"])
def test_the_network_scales_distances_by_its_training_sample(scale: str) -> None:
    net = small(("distances",), scale=scale)
    points, centroids = 100 * torch.rand(500, 3, generator=seeded(1)), 100 * torch.rand(3, 3, generator=seeded(2))
    sample = distances(points, centroids, scale)
    net.learn_distances(sample)
    found = net.pathway("distances", sample)
    if scale == "D":
        assert torch.equal(found, sample)
    else:
        assert torch.allclose(found.mean(0), torch.zeros(3), atol=1e-4)
        assert torch.allclose(found.std(0, correction=0), torch.ones(3), atol=1e-4)
    assert {"distance_mean", "distance_sd"} <= set(net.state_dict())


def test_distances_are_noisy_in_training_alone() -> None:
    net, sample = small(), torch.rand(5000, 3, generator=seeded())
    other = torch.randn(50, 3, WIDTH, WIDTH, generator=seeded())
    assert torch.equal(net.pathway("distances", sample), sample)
    net.train()
    noise = net.pathway("distances", sample) - sample
    assert noise.std().item() == pytest.approx(0.2, rel=0.05)
    assert noise.mean().item() == pytest.approx(0, abs=0.01)
    assert torch.equal(net.pathway("fine", other), net.pathway("fine", other))


# -- sampling ----------------------------------------------------------------------------------------------------------


def test_voxels_are_drawn_uniformly_over_the_labelled_brain() -> None:
    labels = parts(ellipsoid((40, 40, 40)))
    points = draw_voxels(labels, 6000, seeded())
    assert len(torch.unique(points, dim=0)) == len(points) == 6000
    drawn = torch.bincount(labels[tuple(points.unbind(1))].long(), minlength=4)
    there = torch.bincount(labels.flatten().long())
    assert drawn[0] == 0
    assert torch.allclose(drawn[1:] / 6000, there[1:] / there[1:].sum(), atol=0.02)
    assert torch.equal(draw_voxels(labels, 6000, seeded()), points)
    assert len(draw_voxels(labels, 10**6, seeded())) == there[1:].sum()


# -- whole brains ------------------------------------------------------------------------------------------------------


def both_ways(net: SegNet, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Return logits (P, N+1) from maps of whole slices, and from the patches of each voxel."""
    mask = ellipsoid()
    seen, points, centroids = surroundings(scan(), mask), torch.nonzero(mask), centroids_of(parts(mask), REGIONS - 1)
    with torch.inference_mode():
        alone = net(describe(seen, points, net.groups, planes=net.planes, centroids=centroids, scale=net.scale))
    return voxel_logits(net, seen, mask, centroids=centroids, dtype=dtype), alone


@pytest.mark.parametrize("groups, planes, _", TABLE_1.values(), ids=TABLE_1)
def test_slices_at_once_are_as_patch_by_patch(groups: tuple[str, ...], planes: tuple[int, ...], _: int) -> None:
    dense, alone = both_ways(small(groups, planes))
    assert alone.std(0).min() > 1e-3
    assert torch.allclose(dense, alone, atol=1e-4)


def test_half_precision_is_close_to_single() -> None:
    rough, exact = both_ways(small(), torch.bfloat16)
    assert rough.dtype == torch.float16
    assert 0 < (rough - exact).norm() < 0.03 * exact.norm()


def test_slabs_and_batches_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    net, mask = small(("fine", "compressed", "cube")), ellipsoid()
    mask[5] = False
    mask[6:9] = False
    seen = surroundings(scan(), mask)
    monkeypatch.setattr(staged, "SLAB", 100)
    whole = painted(mask, voxel_logits(net, seen, mask))
    for name, value in [("SLAB", 3), ("SLICES", 2), ("VOXELS", 50)]:
        monkeypatch.setattr(staged, name, value)
    assert torch.equal(painted(mask, voxel_logits(net, seen, mask)), whole)


def test_only_voxels_of_the_mask_are_labelled() -> None:
    net, brain = small(), ellipsoid()
    last = net.joint[-1]
    assert isinstance(last, nn.Linear)
    last.bias.data[0] -= 100
    mask = brain & (scan(seed=3) > 50)
    seen, centroids = surroundings(scan(), brain), centroids_of(parts(brain), REGIONS - 1)
    found = painted(mask, voxel_logits(net, seen, mask, centroids=centroids))
    assert found.shape == mask.shape
    assert torch.equal(found > 0, mask)
    points = torch.nonzero(mask)
    logits = net(describe(seen, points, net.groups, centroids=centroids))
    assert torch.equal(found[mask].long(), logits.argmax(1))


def test_a_network_initialised_from_one_without_distances_predicts_the_same() -> None:
    first, second = small(("fine", "cube")), small(("fine", "cube", "distances"))
    second.start_from(first)
    mask = ellipsoid()
    points = torch.nonzero(mask)
    inputs = describe(
        surroundings(scan(), mask), points, second.groups, centroids=centroids_of(parts(mask), REGIONS - 1)
    )
    with torch.inference_mode():
        assert torch.allclose(second.eval()(inputs), first.eval()(inputs), atol=1e-5)


# -- stages ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answers, stages, settled",
    [("a", 1, True), ("bb", 2, True), ("bcc", 3, True), ("bcbcb", 5, False), ("bcdee", 5, True), ("bcdefg", 5, False)],
)
def test_stages_end_when_two_in_succession_are_equal(answers: str, stages: int, settled: bool) -> None:
    given: list[str] = []

    def refine(labels: Tensor) -> Tensor:
        given.append(chr(int(labels)))
        return torch.tensor(ord(answers[len(given) - 1]))

    result = until_settled(torch.tensor(ord("a")), refine)
    assert (result.stages, result.settled) == (stages, settled)
    assert given == ["a", *answers[: stages - 1]]
    assert chr(int(result.labels)) == answers[stages - 1]


def test_each_stage_is_given_the_centroids_of_the_one_before() -> None:
    first, second = small(("fine", "compressed", "cube")), small(("cube", "distances"))
    image, mask = scan(), ellipsoid()
    seen = surroundings(image, mask)
    labels = painted(mask, voxel_logits(first, seen, mask))
    for stage in range(1, 4):
        before, labels = (
            labels,
            painted(mask, voxel_logits(second, seen, mask, centroids=centroids_of(labels, REGIONS - 1))),
        )
        result, _ = segment_in_stages(first, second, image, mask=mask, most=stage)
        assert torch.equal(result.labels, labels)
        assert result.settled == torch.equal(before, labels)
        if result.settled:
            break


# -- learning ----------------------------------------------------------------------------------------------------------


def test_the_network_learns_three_regions() -> None:
    mask = ellipsoid()
    labels = parts(mask)
    net = small(("fine", "distances")).train()
    seen, centroids = surroundings(0.1 * scan() + 50 * (labels - 1).clamp(min=0), mask), centroids_of(labels, 3)
    points = draw_voxels(labels, 60, seeded())
    inputs = describe(seen, points, net.groups, centroids=centroids, scale=net.scale)
    net.learn_distances(inputs["distances"])
    truth = labels[tuple(points.unbind(1))].long()
    optimiser = torch.optim.SGD(net.parameters(), 0.05, momentum=0.5)
    for _ in range(25):
        optimiser.zero_grad()
        F.cross_entropy(net(inputs), truth).backward()
        optimiser.step()
    found = painted(mask, voxel_logits(net, seen, mask, centroids=centroids))
    assert (found == labels)[mask].float().mean() > 0.9
