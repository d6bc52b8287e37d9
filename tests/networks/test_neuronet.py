"""NeuroNet: its size, its decoders, and heads that share one encoder."""

import copy
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from neuronets import ALL, SMALL, TISSUE, network, scan, weight_of
from torch import Tensor, nn

from bidsseg.errors import DataError
from bidsseg.labels import Protocol, Region
from bidsseg.labels.relation import identity
from bidsseg.learning.annotation_files import positions
from bidsseg.learning.losses import Openness, marginal_cross_entropy
from bidsseg.networks.neuronet import NeuroNet, Tail, beside, joined, upsample

FIRST = (0, 10, 11, 12, 13, 16, 17, 18, 26, 49, 50, 51, 52, 53, 54, 58)
"""Values in the label maps of FSL FIRST."""
ENCODER = 2_431_952


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def read(features: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return the values of a linear map (R, F) at every voxel of features (N, F, D, H, W)."""
    found = torch.einsum("rf,nfdhw->nrdhw", weight, features)
    return found if bias is None else found + bias.view(1, -1, 1, 1, 1)


def transposed(x: Tensor) -> Tensor:
    """Upsample as published, with a transposed convolution of each channel."""
    taps = torch.tensor([0.25, 0.75, 0.75, 0.25], dtype=x.dtype)
    kernel = torch.einsum("i,j,k->ijk", taps, taps, taps).expand(x.shape[1], 1, 4, 4, 4)
    return F.conv_transpose3d(x, kernel, stride=2, padding=1, groups=x.shape[1])


# -- size --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "outputs, parameters",
    [
        (ALL, 2_493_171),
        (TISSUE, 2_435_464),
        ({"fsl_fast": 4}, 2_432_952),
        ({"fsl_first": 16}, 2_436_144),
        ({"spm_tissue": 4}, 2_432_952),
        ({"malp_em": 139}, 2_485_467),
        ({"malp_em_tissue": 6}, 2_433_464),
    ],
    ids=lambda given: "+".join(given) if isinstance(given, dict) else None,
)
def test_number_of_parameters_of_the_variants(outputs: dict[str, int], parameters: int) -> None:
    net = NeuroNet(outputs)
    assert count(net) == parameters
    assert all(p.requires_grad for p in net.parameters())


def test_number_of_parameters_of_the_encoder() -> None:
    net = NeuroNet(ALL)
    encoder = nn.ModuleList([net.stem, net.scales])
    kernels = sum(module.weight.numel() for module in encoder.modules() if isinstance(module, nn.Conv3d))
    norms = sum(count(module) for module in encoder.modules() if isinstance(module, nn.BatchNorm3d))
    assert (kernels, norms) == (2_430_384, 1_568)
    assert count(encoder) == ENCODER


@pytest.mark.parametrize("name, parameters", list(zip(ALL, (1_000, 4_192, 1_000, 53_515, 1_512), strict=True)))
def test_number_of_parameters_of_a_tail(name: str, parameters: int) -> None:
    net, regions = NeuroNet(ALL), ALL[name]
    assert count(net.tails[name]) + count(net.heads[name]) == parameters == regions**2 + 246 * regions


@pytest.mark.parametrize("widths", [(4, 6), (3, 6, 11), (8, 12, 16, 20, 24)])
@pytest.mark.parametrize("images", [1, 2])
def test_number_of_parameters_of_others(widths: tuple[int, ...], images: int) -> None:
    """The expected number is counted by hand: kernels, and two numbers for each normalised channel."""
    first = sum(64 * a * b + 27 * b * b + 2 * (a + b) for a, b in pairwise(widths))
    second = sum(2 * 27 * b * b + 4 * b for b in widths[1:])
    tails = sum(r * r + sum(widths) * r + 2 * r * (len(widths) - 1) for r in SMALL.values())
    assert count(NeuroNet(SMALL, images, widths)) == 27 * images * widths[0] + first + second + tails


def test_a_tail_as_wide_as_the_coarsest_scale_needs_no_conversion() -> None:
    levels = [scan(16, 8, 8, channels=4), scan(8, 4, 4, channels=6)]
    tail = Tail((4, 6), 6).eval()
    assert count(tail) == 4 * 6 + 2 * 6
    found = read(beside(levels[0], joined(levels[1:])), *tail([]))
    assert torch.allclose(found, transposed(levels[1]) + tail.skips[0](levels[0]), atol=1e-5)


# -- decoders ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 4, 5), (1, 1, 1), (2, 1, 6)])
def test_upsampling_is_the_published_transposed_convolution(shape: tuple[int, ...]) -> None:
    x = scan(*shape, channels=3, number=2)
    assert upsample(x).shape == (2, 3, *(2 * n for n in shape))
    assert torch.allclose(upsample(x), transposed(x), atol=1e-5)


def test_upsampling_a_constant_loses_a_quarter_at_each_face_of_the_border() -> None:
    found = upsample(torch.full((1, 2, 3, 4, 5), 8.0))
    expected = torch.full((1, 2, 6, 8, 10), 8.0)
    for axis in range(2, 5):
        for face in (0, -1):
            expected.select(axis, face).mul_(0.75)
    assert torch.allclose(found, expected)
    assert found[0, 0, 0, 0, 0].item() == pytest.approx(8 * 0.75**3)


def test_upsampling_is_linear_between_voxels() -> None:
    ramp = torch.arange(5.0).view(1, 1, 5, 1, 1).expand(1, 1, 5, 3, 3)
    assert torch.allclose(upsample(ramp)[0, 0, 1:-1, 2, 2], torch.arange(0.25, 4, 0.5))


@pytest.mark.parametrize("training", [False, True])
def test_a_tail_is_the_plain_formula(training: bool) -> None:
    net, image = network(), scan(8, 12, 16, number=2)
    net.train(training)
    norms = {
        name: [copy.deepcopy(list(skip.children())[1]) for skip in tail.skips]
        for name, tail in net.tails.items()
        if isinstance(tail, Tail)
    }
    levels = net.encode(image)
    found = net.logits(image)
    for name in SMALL:
        tail, last = net.tails[name], net.heads[name]
        assert isinstance(tail, Tail)
        scores = read(levels[2], weight_of(tail.coarsest).flatten(1))
        for s in (1, 0):
            conv, norm = tail.skips[s].children()
            scores = transposed(scores) + norms[name][s](read(levels[s], weight_of(conv).flatten(1)))
            for actual, expected in zip(norm.buffers(), norms[name][s].buffers(), strict=True):
                assert torch.allclose(actual, expected, atol=1e-6)
        assert torch.allclose(found[name], read(scores, weight_of(last).flatten(1)), atol=1e-4)


@pytest.mark.parametrize("factor", [2.5, -1.0])
def test_decoders_are_linear(factor: float) -> None:
    net = network(widths=(4, 6, 8, 10)).double().eval()
    levels = [level.detach() for level in net.encode(scan(16, 8, 8).double())]

    def decode(levels: list[Tensor]) -> dict[str, Tensor]:
        features = beside(levels[0], joined(levels[1:]))
        return {name: read(features, *net.head(name)) for name in net.heads}

    plain, nothing = decode(levels), decode([torch.zeros_like(level) for level in levels])
    for name, found in decode([factor * level for level in levels]).items():
        assert torch.allclose(found, factor * plain[name] + (1 - factor) * nothing[name], atol=1e-10)
        assert nothing[name].abs().max() > 0.1


def test_the_whole_network_is_not_linear() -> None:
    net, image = network().eval(), scan(8, 8, 8)
    plain, nothing = net(image), net(torch.zeros_like(image))
    assert not torch.allclose(net(-image), 2 * nothing - plain, atol=0.1)


# -- features and heads ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("widths, multiple", [((4, 6), 2), ((4, 6, 8), 4), ((2, 4, 6, 8), 8)])
def test_features_have_the_grid_of_the_image(widths: tuple[int, ...], multiple: int) -> None:
    net = network(widths=widths).eval()
    shape = (multiple, 2 * multiple, 3 * multiple)
    assert net.multiple == multiple
    assert net(scan(*shape)).shape == (1, sum(widths) + len(widths) - 2, *shape)


def test_a_grid_that_cannot_be_halved_is_refused() -> None:
    with pytest.raises(RuntimeError):
        network().eval()(scan(8, 8, 10))


def test_several_images_are_channels() -> None:
    net = network(images=3).eval()
    images = scan(8, 8, 8, channels=3, number=2)
    without = images.clone()
    without[:, 2] = 0
    assert net(images).shape == (2, 4 + 6 + 8 + 1, 8, 8, 8)
    assert not torch.allclose(net(without), net(images), atol=1e-2)


def test_logits_are_linear_maps_of_the_features() -> None:
    net, image = network(SMALL | {"last": 2}).eval(), scan(8, 8, 16, number=2)
    features, logits = net(image), net.logits(image)
    assert list(logits) == ["tissue", "parts", "last"]
    for name, regions in zip(logits, (3, 5, 2), strict=True):
        weight, bias = net.head(name)
        assert weight.shape == (regions, features.shape[1]) and bias.shape == (regions,)
        assert logits[name].shape == (2, regions, 8, 8, 16)
        assert torch.allclose(logits[name], read(features, weight, bias), atol=1e-4)


@pytest.mark.parametrize("training", [True, False])
def test_features_at_points_equal_features_of_the_whole_volume(training: bool) -> None:
    net, image = network(widths=(4, 6, 8, 10)).double().train(training), scan(8, 8, 16).double()
    points = torch.cartesian_prod(torch.arange(8), torch.arange(8), torch.arange(16))[::3]
    found: list[Tensor] = []
    gradients: list[list[Tensor]] = []
    for make in (lambda: net(image)[0].permute(1, 2, 3, 0)[tuple(points.T)], lambda: net.at(image, None, points)):
        features = make()
        heads = [F.linear(features, *net.head(name)) for name in SMALL]
        gradients.append(list(torch.autograd.grad(torch.cat(heads, 1).square().sum(), list(net.parameters()))))
        found.append(features)
    assert torch.allclose(found[0], found[1], atol=1e-10)
    for whole, at in zip(*gradients, strict=True):
        assert torch.allclose(whole, at, rtol=1e-6, atol=1e-6)


# -- learning ----------------------------------------------------------------------------------------------------------


def loss(logits: dict[str, Tensor], values: dict[str, Tensor]) -> Tensor:
    """Return the mean over heads of the mean cross-entropy of voxels."""
    return torch.stack([F.cross_entropy(logits[name], values[name]) for name in logits]).mean()


def draw_labels(regions: int, *shape: int) -> Tensor:
    return torch.randint(regions, (1, *shape), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("heads", [2, 3, 5])
def test_identical_heads_have_the_loss_and_gradients_of_one(heads: int) -> None:
    names = [f"head{i}" for i in range(heads)]
    one, many = network({"head0": 4}).double(), network(dict.fromkeys(names, 4)).double()
    state = {
        key: value
        for name in names
        for key, value in ((key.replace("head0", name), value) for key, value in one.state_dict().items())
    }
    many.load_state_dict(state)
    image, values = scan(8, 8, 16).double(), draw_labels(4, 8, 8, 16)
    single, joint = (loss(net.logits(image), dict.fromkeys(net.heads, values)) for net in (one, many))
    assert joint.item() == pytest.approx(single.item(), rel=1e-10)
    single.backward()
    joint.backward()
    for alone, together in ((one.stem, many.stem), (one.scales, many.scales)):
        for p, q in zip(alone.parameters(), together.parameters(), strict=True):
            assert p.grad is not None and q.grad is not None
            assert torch.allclose(p.grad, q.grad, atol=1e-10)
    for name in names:
        expected, found = weight_of(one.heads["head0"]).grad, weight_of(many.heads[name]).grad
        assert expected is not None and found is not None
        assert torch.allclose(found, expected / heads, atol=1e-10)


def test_the_marginal_loss_of_identity_relations_is_the_published_one() -> None:
    net, image = network(), scan(8, 8, 16)
    values = {name: draw_labels(regions, 8, 8, 16) for name, regions in SMALL.items()}
    logits = net.logits(image)
    rows = []
    for name, regions in SMALL.items():
        table = Protocol(name, tuple(Region(i, f"region {i}", f"r{i}", "#808080", None) for i in range(regions)))
        log_probability = torch.log_softmax(logits[name], 1)[0].flatten(1).T
        openness = Openness.of(identity(table, table))
        rows.append(marginal_cross_entropy(log_probability, values[name].flatten(), openness))
    assert torch.stack(rows).mean().item() == pytest.approx(loss(logits, values).item(), rel=1e-5)


@pytest.mark.parametrize("taught, other", [("tissue", "parts"), ("parts", "tissue")])
def test_a_head_teaches_the_encoder_and_its_own_tail_alone(taught: str, other: str) -> None:
    net, image = network(), scan(8, 8, 16)
    F.cross_entropy(net.logits(image)[taught], draw_labels(SMALL[taught], 8, 8, 16)).backward()
    trained = {name for name, p in net.named_parameters() if p.grad is not None and p.grad.any()}
    own = {name for name, _ in net.named_parameters() if not name.startswith((f"tails.{other}.", f"heads.{other}."))}
    assert trained == own


def test_the_gradient_reaches_every_parameter_through_the_linear_heads() -> None:
    net, points = network(), torch.randint(8, (300, 3), generator=torch.Generator().manual_seed(0))
    features = net.at(scan(8, 8, 8), None, points)
    sum(F.linear(features, *net.head(name)).square().sum() for name in SMALL).backward()  # type: ignore[union-attr]
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_two_heads_learn_two_protocols_of_one_image() -> None:
    torch.manual_seed(0)
    net = NeuroNet({"tissue": 3, "side": 2}, widths=(8, 8, 8))
    tissue = F.interpolate(draw_labels(3, 4, 4, 4)[None].float(), scale_factor=4)[0].long()
    values = {"tissue": tissue, "side": (tissue == 2).long()}
    image = (tissue - 1.0)[None] + 0.1 * scan(16, 16, 16)
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-2, eps=1e-5)
    for _ in range(40):
        optimiser.zero_grad()
        loss(net.logits(image), values).backward()
        optimiser.step()
    for name, found in net.logits(image).items():
        assert (found.argmax(1) == values[name]).float().mean() > 0.9, name


def test_values_of_first_come_back_as_they_were() -> None:
    table = Protocol("FIRST", tuple(Region(i, f"region {i}", f"r{i}", "#808080", None) for i in FIRST))
    assert len(table.indices) == ALL["fsl_first"]
    values = np.random.default_rng(0).permutation(np.tile(FIRST, 32)).reshape(8, 8, 8)
    targets = positions(values, table, "a label map")
    assert set(targets.flatten().tolist()) == set(range(16))
    answered = F.one_hot(targets.long(), 16).permute(3, 0, 1, 2)[None].float().argmax(1)[0]
    assert np.array_equal(np.array(table.indices)[answered.numpy()], values)
    with pytest.raises(DataError, match="14"):
        positions(np.array([[[0, 14]]]), table, "a label map")


def test_without_gradients_features_are_the_same() -> None:
    net = NeuroNet({"a": 3}).eval()
    image = torch.rand(1, 1, 16, 24, 16)
    learned = net(image)
    with torch.inference_mode():
        found = net(image)
    assert learned.requires_grad and torch.allclose(found, learned, atol=1e-6)
