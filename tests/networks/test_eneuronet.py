"""E-NeuroNet: size, shapes, padding, dead channels, heads and loss."""

import math
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bidsseg.labels import Protocol, Region
from bidsseg.labels.relation import identity
from bidsseg.learning.losses import Openness, marginal_dice
from bidsseg.networks.eneuronet import (
    Activation,
    Block,
    ENeuroNet,
    HalvingConv,
    Trunk,
    decoder_stage,
    encoder_stage,
)
from bidsseg.networks.layers import DoublingConv

HEADS = {"a": 5, "b": 3, "c": 4}
DEAD = 140_384


def dice_loss(logits: Tensor, values: Tensor) -> Tensor:
    """Return the published loss of logits (N, R, D, H, W) and positions (N, D, H, W): minus the mean Dice overlap."""
    regions = tuple(Region(i, f"region {i}", f"r{i}", "#808080", None) for i in range(logits.shape[1]))
    head = Protocol("head", regions)
    voxels = logits.movedim(1, -1).flatten(0, -2).log_softmax(1)
    return marginal_dice(voxels, values.flatten(), Openness.of(identity(head, head)), squared=True) - 1


def network(outputs: dict[str, int] = HEADS, dropout: str = "as_run", faithful: bool = True) -> ENeuroNet:
    torch.manual_seed(0)
    made = ENeuroNet(outputs, dropout=dropout, faithful=faithful)
    for name, p in made.named_parameters():
        if name.endswith("bias"):  # zero at first
            nn.init.normal_(p, std=0.1)
    return made


def scan(*shape: int, images: int = 1, number: int = 1) -> Tensor:
    return torch.rand(number, images, *shape, generator=torch.Generator().manual_seed(1))


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


# -- size --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("regions, parameters", [(30, 1_805_216), (31, 1_806_143), (32, 1_807_072)])
def test_number_of_parameters(regions: int, parameters: int) -> None:
    assert count(network({"aseg": regions})) == parameters


def test_number_of_parameters_of_each_stage() -> None:
    net = network({"aseg": 31})
    trunk = net.trunk
    stages = [trunk.stem, *trunk.encoder, *trunk.decoder, trunk.enlarge, net.before["aseg"], net.heads["aseg"]]
    assert [count(stage) for stage in stages] == [
        14_304, 24_128, 126_080, 744_704, 695_424, 121_920, 24_096, 27_680, 26_815, 992,
    ]  # fmt: skip


def test_every_head_adds_its_own_last_convolutions() -> None:
    alone = 27 * 32 * 31 + 31 + 31 * 31 + 31
    more = 27 * 32 * 7 + 7 + 7 * 7 + 7
    assert count(network({"aseg": 31, "tissue": 7})) == 1_806_143 + more
    assert count(network({})) == 1_806_143 - alone


def test_more_images_widen_the_first_convolution_alone() -> None:
    assert count(ENeuroNet({"aseg": 31}, images=3)) == 1_806_143 + 2 * 27 * 16
    assert ENeuroNet({"a": 2}, images=2)(scan(32, 32, 32, images=2)).shape == (1, 2, 32, 32, 32)


def test_layers_of_the_main_path_and_projections() -> None:
    net = network({"aseg": 31})
    kinds = nn.Conv3d | nn.ConvTranspose3d | nn.Linear
    convs = [name for name, module in net.named_modules() if isinstance(module, kinds)]
    projections = [name for name in convs if "shortcut" in name]
    assert len(projections) == 6
    assert len(convs) - len(projections) == 83
    assert not any(isinstance(module, nn.BatchNorm3d) for module in net.modules())


# -- shapes ------------------------------------------------------------------------------------------------------------


def test_sizes_of_the_stages() -> None:
    """The paper gives the sizes for 160 x 192 x 224 voxels; a smaller volume is scaled."""
    net, seen = network({"aseg": 31}).requires_grad_(False), []
    trunk = net.trunk
    for stage in [trunk.stem, trunk.pool, *trunk.encoder, *trunk.decoder, trunk.enlarge, net.before["aseg"]]:
        stage.register_forward_hook(lambda module, given, found: seen.append(tuple(found.shape[1:])))
    logits = net.logits(scan(32, 48, 64))["aseg"]
    assert seen == [
        (32, 16, 24, 32), (32, 8, 12, 16), (64, 8, 12, 16), (128, 4, 6, 8), (256, 2, 3, 4),
        (128, 4, 6, 8), (64, 8, 12, 16), (32, 16, 24, 32), (32, 32, 48, 64), (31, 32, 48, 64),
    ]  # fmt: skip
    assert logits.shape == (1, 31, 32, 48, 64)


@pytest.mark.parametrize("shape", [(16, 32, 24), (16, 20, 16), (17, 16, 32), (8, 32, 32)])
def test_a_grid_that_sixteen_does_not_divide_is_refused(shape: tuple[int, ...]) -> None:
    net = network().requires_grad_(False)
    assert net.multiple == 16
    assert net(scan(16, 32, 16)).shape == (1, 12, 16, 32, 16)
    with pytest.raises(ValueError, match="divisible by 16"):
        net(scan(*shape))


# -- padding -----------------------------------------------------------------------------------------------------------


def impulse(*at: int) -> Tensor:
    x = torch.zeros(1, 1, 4, 4, 4)
    x[0, 0, at[0], at[1], at[2]] = 1
    return x


def kernel_into(conv: nn.Conv3d | nn.ConvTranspose3d) -> Tensor:
    """Give a convolution of one channel a kernel of 27 different numbers and no bias; return the kernel."""
    kernel = torch.arange(1.0, 28).view(3, 3, 3)
    with torch.no_grad():
        conv.weight.copy_(kernel)
        assert conv.bias is not None
        conv.bias.zero_()
    return kernel


@pytest.mark.parametrize(
    "at, taps",
    [
        # Along an axis: output 0 sees the inputs 0, 1, 2 with taps 0, 1, 2; output 1 sees 2, 3 with taps 0, 1.
        ((0, 1, 3), [{0: 0}, {0: 1}, {1: 1}]),
        ((2, 2, 2), [{0: 2, 1: 0}, {0: 2, 1: 0}, {0: 2, 1: 0}]),
        ((3, 2, 0), [{1: 1}, {0: 2, 1: 0}, {0: 0}]),
    ],
)
def test_halving_pads_after_the_volume(at: tuple[int, ...], taps: list[dict[int, int]]) -> None:
    conv = HalvingConv(1, 1)
    kernel = kernel_into(conv)
    expected = torch.zeros(2, 2, 2)
    for i, a in taps[0].items():
        for j, b in taps[1].items():
            for k, c in taps[2].items():
                expected[i, j, k] = kernel[a, b, c]
    assert torch.equal(conv(impulse(*at))[0, 0], expected)


@pytest.mark.parametrize(
    "at, first, last",
    [
        # Along an axis: input i spreads to the outputs 2i, 2i + 1, 2i + 2, of which the ninth is cut off.
        ((0, 0, 0), (0, 0, 0), (3, 3, 3)),
        ((1, 0, 2), (2, 0, 4), (5, 3, 7)),
        ((3, 1, 3), (6, 2, 6), (8, 5, 8)),
    ],
)
def test_doubling_cuts_off_the_last_plane(at: tuple[int, ...], first: Sequence[int], last: Sequence[int]) -> None:
    conv = DoublingConv(1, 1)
    kernel = kernel_into(conv)
    expected = torch.zeros(8, 8, 8)
    where = tuple(slice(a, b) for a, b in zip(first, last, strict=True))
    kept = tuple(slice(0, b - a) for a, b in zip(first, last, strict=True))
    expected[where] = kernel[kept]
    assert torch.equal(conv(impulse(*at))[0, 0], expected)


def test_pooling_looks_ahead_and_ignores_padding() -> None:
    pool = Trunk(1).pool
    line = torch.tensor([-9.0, -8, -3, -4, -7, -6, -5, -2])
    expected = torch.tensor([-3.0, -3, -5, -2])
    for axis in (2, 3, 4):
        size = [1, 1, 4, 4, 4]
        size[axis] = 8
        view = [1] * 5
        view[axis] = -1
        found = pool(line.view(view).expand(size))
        size = [1, 1, 2, 2, 2]
        size[axis] = 4
        assert torch.equal(found, expected.view(view).expand(size))


def test_projections_take_the_even_voxels() -> None:
    x = torch.rand(1, 32, 4, 4, 4)
    conv = encoder_stage(1, 2, 32, inner=16, outputs=8, dropout=0, norm=None)[0].shortcut
    assert isinstance(conv, nn.Conv3d)
    assert torch.allclose(conv(x), F.conv3d(x[..., ::2, ::2, ::2], conv.weight, conv.bias), atol=1e-6)
    deconv = decoder_stage(1, 32, 16, outputs=8, read=8, dropout=0, norm=None)[0].shortcut
    assert isinstance(deconv, nn.ConvTranspose3d)
    assert deconv.bias is not None
    found = deconv(x)
    expected = deconv.bias.view(1, -1, 1, 1, 1).expand(1, 8, 8, 8, 8).clone()
    expected[..., ::2, ::2, ::2] += torch.einsum("io,nidhw->nodhw", deconv.weight[:, :, 0, 0, 0], x)
    assert torch.allclose(found, expected, atol=1e-6)


# -- blocks ------------------------------------------------------------------------------------------------------------


def leaky(x: Tensor) -> Tensor:
    return torch.where(x < 0, 0.3 * x, x)


def test_an_encoder_block_is_eight_convolutions_side_by_side() -> None:
    torch.manual_seed(0)
    block = encoder_stage(2, 1, 24, inner=16, outputs=24, dropout=0, norm=None)[1]
    assert isinstance(block, Block)
    x = torch.randn(1, 24, 4, 5, 6)
    last = block.last
    assert isinstance(last, nn.Conv3d)
    assert block.grouped.bias is not None
    y = leaky(F.conv3d(x, block.first.weight, block.first.bias))
    paths = []
    for j in range(8):
        own = slice(2 * j, 2 * j + 2)
        paths.append(F.conv3d(F.pad(y[:, own], (1,) * 6), block.grouped.weight[own], block.grouped.bias[own]))
    y = F.conv3d(leaky(torch.cat(paths, 1)), last.weight, last.bias)
    assert torch.allclose(block(x), leaky(x + y), atol=1e-5)


@pytest.mark.parametrize("faithful", [True, False])
def test_a_decoder_block_cuts_the_published_slices(faithful: bool) -> None:
    """Groups as wide as those of the output leave half of the input unread."""
    torch.manual_seed(0)
    outputs, inner = 16, 32
    wide = (outputs if faithful else inner) // 8
    block = decoder_stage(1, 24, inner, outputs=outputs, read=8 * wide, dropout=0, norm=None)[0]
    assert isinstance(block, Block)
    x = torch.randn(1, 24, 2, 3, 4)
    last, shortcut = block.last, block.shortcut
    assert isinstance(last, nn.Conv3d)
    assert block.grouped.bias is not None
    y = leaky(F.conv3d(x, block.first.weight, block.first.bias))
    paths = []
    for j in range(8):
        read, own = slice(wide * j, wide * (j + 1)), slice(2 * j, 2 * j + 2)
        wider = F.conv_transpose3d(y[:, read], block.grouped.weight[read], block.grouped.bias[own], 2)
        paths.append(wider[..., :-1, :-1, :-1])
    y = F.conv3d(leaky(torch.cat(paths, 1)), last.weight, last.bias)
    assert torch.allclose(block(x), leaky(shortcut(x) + y), atol=1e-5)


def test_skips_are_sums() -> None:
    """The sum is over the deepest level and the output of each stage of the encoder."""
    trunk, kept = Trunk(1).requires_grad_(False), {}

    def keep(name: str) -> None:
        trunk.get_submodule(name).register_forward_hook(
            lambda module, given, found: kept.update({name: (given[0].clone(), found.clone())})
        )

    for name in ("stem", "encoder.0", "encoder.1", "encoder.2", "decoder.0", "decoder.1", "decoder.2", "enlarge"):
        keep(name)
    trunk(scan(32, 32, 32))
    assert torch.equal(kept["decoder.0"][0], kept["encoder.2"][1])
    for after, below, beside in [
        ("decoder.1", "decoder.0", "encoder.1"),
        ("decoder.2", "decoder.1", "encoder.0"),
        ("enlarge", "decoder.2", "stem"),
    ]:
        assert torch.equal(kept[after][0], kept[below][1] + kept[beside][1])


# -- dead channels -----------------------------------------------------------------------------------------------------


def gradients(net: ENeuroNet) -> dict[str, Tensor]:
    """Return the gradients of all parameters, in double precision, on the smallest grid that uses all kernels."""
    net = net.double()
    logits = net.logits(scan(32, 32, 32).double())
    torch.stack([x.square().mean() for x in logits.values()]).sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    return {name: p.grad for name, p in net.named_parameters() if p.grad is not None}


def test_the_gradient_of_dead_channels_is_zero_and_no_other_is() -> None:
    found = gradients(network({"aseg": 31}))
    dead = 0
    for name, gradient in found.items():
        if name.startswith("trunk.decoder") and ".first." in name:
            live, rest = gradient.chunk(2)
            assert not rest.any(), name
            assert live.all(), name
            dead += rest.numel()
        else:
            assert gradient.all(), name
    assert dead == DEAD
    assert sum(g.numel() for g in found.values()) - dead == 1_665_759


def test_dead_channels_change_nothing() -> None:
    net, image = network().requires_grad_(False), scan(32, 32, 32)
    before = net(image)
    for name, p in net.named_parameters():
        if name.startswith("trunk.decoder") and ".first." in name:
            p[len(p) // 2 :] = 7
    assert torch.equal(net(image), before)


def test_unfaithful_networks_have_no_dead_channels() -> None:
    net = network({"aseg": 31}, faithful=False)
    more = sum(blocks * 27 * (inner - outputs) // 8 * outputs for blocks, inner, outputs in
               [(6, 256, 128), (4, 128, 64), (3, 64, 32)])  # fmt: skip
    assert count(net) == 1_806_143 + more
    assert [name for name, gradient in gradients(net).items() if not gradient.all()] == []


# -- dropout -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dropout, share", [("as_run", 0.0), ("as_stated", 0.8), ("keep_0.8", 0.2)])
def test_dropout_follows_every_activation_except_after_sums(dropout: str, share: float) -> None:
    net = network({"aseg": 31}, dropout)
    zeros: list[float] = []
    for module in net.modules():
        if isinstance(module, Activation):
            module.register_forward_hook(lambda module, given, found: zeros.append((found == 0).double().mean().item()))
    net.logits(scan(32, 32, 32))
    assert len(zeros) == 1 + 2 * 26 + 1
    assert zeros == pytest.approx([share] * len(zeros), abs=0.06)  # the smallest have 1024 numbers
    assert not (net.trunk.encoder[0](torch.randn(1, 32, 4, 4, 4)) == 0).any()


def test_dropout_is_of_training_alone() -> None:
    image = scan(16, 16, 16)
    for dropout in ("as_stated", "keep_0.8"):
        net = network(dropout=dropout)
        assert not torch.equal(net(image), net(image))
        assert torch.equal(net.eval()(image), network()(image))
    with pytest.raises(KeyError):
        network(dropout="0.8")


def test_activations_leak_three_tenths() -> None:
    x = torch.tensor([-1.0, 0, 2])
    assert torch.allclose(Activation(0)(x), torch.tensor([-0.3, 0, 2]))


# -- heads -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outputs", [{"aseg": 31}, HEADS])
def test_logits_are_linear_maps_of_the_features(outputs: dict[str, int]) -> None:
    net, image = network(outputs), scan(16, 16, 32, number=2)
    features, logits = net(image), net.logits(image)
    assert features.shape == (2, sum(outputs.values()), 16, 16, 32)
    assert list(logits) == list(outputs)
    for name, regions in outputs.items():
        weight, bias = net.head(name)
        assert weight.shape == (regions, features.shape[1])
        assert bias.shape == (regions,)
        plain = torch.einsum("rf,nfdhw->nrdhw", weight, features) + bias.view(1, -1, 1, 1, 1)
        assert torch.allclose(logits[name], plain, atol=1e-5)


def test_logits_equal_the_published_head() -> None:
    """Each head is a 3³ convolution, leaky ReLU and a 1³ convolution."""
    net, image = network().requires_grad_(False), scan(16, 32, 16)
    trunk, logits = net.trunk(image), net.logits(image)
    for name in HEADS:
        conv, head = net.get_submodule(f"before.{name}.0"), net.get_submodule(f"heads.{name}")
        assert isinstance(conv, nn.Conv3d)
        assert isinstance(head, nn.Linear)
        before = leaky(F.conv3d(F.pad(trunk, (1,) * 6), conv.weight, conv.bias))
        expected = F.conv3d(before, head.weight[:, :, None, None, None], head.bias)
        assert torch.allclose(logits[name], expected, atol=1e-5)


def test_heads_read_their_own_features_alone() -> None:
    net, start = network(), 0
    for name, regions in HEADS.items():
        weight, _ = net.head(name)
        own = weight[:, start : start + regions]
        assert torch.equal(own, net.get_parameter(f"heads.{name}.weight"))
        assert weight.count_nonzero() == own.count_nonzero() == regions**2
        start += regions


def test_several_heads_predict_as_each_would_alone() -> None:
    net, image = network(), scan(16, 32, 16)
    for name, regions in HEADS.items():
        alone = ENeuroNet({name: regions})
        alone.load_state_dict({k: v for k, v in net.state_dict().items() if k in alone.state_dict()})
        assert torch.allclose(alone.logits(image)[name], net.logits(image)[name], atol=1e-5)


def test_an_annotation_of_one_head_teaches_the_trunk_and_not_the_others() -> None:
    net = network()
    net.logits(scan(32, 32, 32))["b"].square().mean().backward()
    taught = {name for name, p in net.named_parameters() if p.grad is not None and p.grad.any()}
    own = ("trunk.", "before.b.", "heads.b.")
    assert taught == {name for name, _ in net.named_parameters() if name.startswith(own)}


# -- initialisation ----------------------------------------------------------------------------------------------------


def test_each_path_is_initialised_as_a_convolution_of_its_own() -> None:
    net = ENeuroNet({"aseg": 31})
    for name, inputs, outputs, taps in [
        ("trunk.encoder.2.3.grouped", 16, 16, 27),
        ("trunk.decoder.0.2.grouped", 16, 16, 27),
        ("trunk.decoder.0.2.first", 128, 256, 1),
        ("trunk.enlarge", 32, 32, 27),
        ("before.aseg.0", 32, 31, 27),
        ("heads.aseg", 31, 31, 1),
    ]:
        conv = net.get_submodule(name)
        assert isinstance(conv, nn.Conv3d | nn.ConvTranspose3d | nn.Linear)
        bound = math.sqrt(6 / (taps * (inputs + outputs)))
        assert 0.98 * bound < conv.weight.abs().max().item() <= bound
        assert conv.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
        assert conv.bias is not None
        assert not conv.bias.any()


# -- loss --------------------------------------------------------------------------------------------------------------


def perfect(values: Tensor, regions: int) -> Tensor:
    return 1000 * F.one_hot(values, regions).movedim(-1, 1).double()


def test_a_perfect_prediction_has_a_loss_of_minus_one() -> None:
    values = torch.randint(4, (2, 4, 5, 6), generator=torch.Generator().manual_seed(0))
    assert dice_loss(perfect(values, 4), values).item() == pytest.approx(-1, abs=1e-9)


def test_an_absent_region_counts_as_found_if_it_is_not_predicted() -> None:
    values = torch.randint(3, (1, 4, 4, 4), generator=torch.Generator().manual_seed(0))
    assert dice_loss(perfect(values, 5), values).item() == pytest.approx(-1, abs=1e-9)
    wrong = perfect(torch.full_like(values, 4), 5)
    found = dice_loss(wrong, values).item()
    assert found == pytest.approx(-1 / 5, abs=1e-6)  # of five, only region 3 is neither present nor predicted


def test_dice_loss_is_the_plain_formula_over_the_whole_batch() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, 5, 6, generator=generator, dtype=torch.float64)
    values = torch.randint(3, (2, 4, 5, 6), generator=generator)
    p = logits.exp() / logits.exp().sum(1, keepdim=True)
    overlaps = []
    for region in range(3):
        q, g = p[:, region].flatten(), (values == region).double().flatten()
        overlaps.append((2 * q @ g + 1e-7) / (q @ q + g @ g + 1e-7))
    assert dice_loss(logits, values).item() == pytest.approx(-sum(overlaps).item() / 3, abs=1e-12)  # type: ignore[union-attr]


def test_the_gradient_of_the_dice_loss_is_that_of_its_value() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 3, 2, 2, 3, generator=generator, dtype=torch.float64).requires_grad_()
    values = torch.randint(3, (1, 2, 2, 3), generator=generator)
    assert torch.autograd.gradcheck(lambda z: dice_loss(z, values), (logits,))


def test_it_learns() -> None:
    """The network learns to segment a bright ball from one image."""
    torch.manual_seed(0)
    net = ENeuroNet({"ball": 2})
    axis = torch.arange(32.0) - 13
    values = ((axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2) < 81).long()[None]
    image = 0.2 + 0.4 * values[:, None].float() + 0.02 * torch.randn(1, 1, 32, 32, 32)
    optimiser = torch.optim.Adam(net.parameters(), 1e-3)
    for _ in range(15):
        optimiser.zero_grad()
        loss = dice_loss(net.logits(image)["ball"], values)
        loss.backward()
        for p in net.parameters():
            nn.utils.clip_grad_norm_(p, 1)
        optimiser.step()
    assert dice_loss(net.logits(image)["ball"], values).item() < -0.8
