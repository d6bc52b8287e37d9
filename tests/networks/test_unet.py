"""The plain U-Net: shapes, size, and heads that share one trunk."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bidsseg.networks.eneuronet import ENeuroNet
from bidsseg.networks.network import Network
from bidsseg.networks.neuronet import NeuroNet
from bidsseg.networks.subpixel_unet import SubpixelUNet
from bidsseg.networks.unet import DoubleConv, UNet

HEADS = {"full": 5, "partial": 3}


def network(outputs: dict[str, int] = HEADS, images: int = 1, widths: tuple[int, ...] = (4, 6, 8)) -> UNet:
    """Return a small network."""
    torch.manual_seed(0)
    return UNet(outputs, images=images, widths=widths)


def scan(*shape: int, images: int = 1, number: int = 1) -> Tensor:
    return torch.rand(number, images, *shape, generator=torch.Generator().manual_seed(1))


# -- shapes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("widths, multiple", [((4, 6), 2), ((4, 6, 8), 4), ((2, 4, 6, 8), 8)])
def test_features_have_the_grid_of_the_image(widths: tuple[int, ...], multiple: int) -> None:
    net = network(widths=widths)
    shape = (multiple, 2 * multiple, 3 * multiple)
    assert net.multiple == multiple
    assert net(scan(*shape)).shape == (1, widths[0], *shape)


def test_a_grid_that_cannot_be_halved_is_refused() -> None:
    with pytest.raises(RuntimeError):
        network()(scan(8, 8, 10))


def test_four_levels_of_32_to_256_channels() -> None:
    net = UNet({"joint": 4})
    seen: list[tuple[int, ...]] = []
    for module in net.modules():
        if isinstance(module, DoubleConv):
            module.register_forward_hook(lambda module, given, found: seen.append(tuple(found.shape[1:])))
    with torch.no_grad():
        net(scan(8, 16, 24))
    down = [(32, 8, 16, 24), (64, 4, 8, 12), (128, 2, 4, 6), (256, 1, 2, 3)]
    assert seen == down + down[-2::-1]
    assert net.multiple == 8


def test_detail_is_passed_on_at_each_level() -> None:
    """With zeros from below, a level uses only the encoder's features at its resolution."""
    net, image = network(widths=(4, 6)), scan(8, 8, 8)
    with torch.no_grad():
        for kernel in net.enlarge.parameters():
            kernel.zero_()
        passed = net.first(image)
        assert torch.allclose(net(image), net.up[0](torch.cat([passed, torch.zeros_like(passed)], 1)), atol=1e-5)
        assert (net(image).std(dim=(2, 3, 4)) > 0.1).all()


def test_several_images_are_channels() -> None:
    net = network(images=3)
    found = net(scan(8, 8, 8, images=3, number=2))
    assert found.shape == (2, 4, 8, 8, 8)
    without = scan(8, 8, 8, images=3, number=2)
    without[:, 2] = 0
    assert not torch.allclose(net(without), found, atol=1e-3)


def test_each_scan_of_a_batch_is_normalised_for_itself() -> None:
    net, images = network(), scan(8, 8, 8, number=3)
    together = net(images)
    for i in range(3):
        assert torch.allclose(net(images[i : i + 1]), together[i : i + 1], atol=1e-5)


def test_the_contrast_of_the_whole_image_does_not_matter() -> None:
    """No convolution has a bias, so the first normalisation removes a factor."""
    net, image = network().double(), scan(8, 8, 16).double()
    assert torch.allclose(net(7 * image), net(image), atol=1e-2)
    assert not torch.allclose(net(image**2), net(image), atol=1e-2)


def test_activations_leak_one_hundredth() -> None:
    slopes = {module.negative_slope for module in network().modules() if isinstance(module, nn.LeakyReLU)}
    assert slopes == {0.01}


# -- size --------------------------------------------------------------------------------------------------------------


def expected_parameters(regions: list[int], images: int, widths: tuple[int, ...]) -> int:
    """Return the number of parameters counted by hand: kernels, two for each normalised channel, head biases."""

    def double(a: int, b: int) -> int:
        return 27 * (a * b + b * b) + 4 * b

    pairs = list(pairwise(widths))
    encoder = double(images, widths[0]) + sum(double(a, b) for a, b in pairs)
    decoder = sum(8 * a * b + double(2 * a, a) for a, b in pairs)
    return encoder + decoder + sum((widths[0] + 1) * r for r in regions)


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize("regions", [[4], [5, 3], [16, 2, 2]])
@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("widths", [(4, 6), (4, 6, 10), (32, 64, 128, 256)])
def test_number_of_parameters(regions: list[int], images: int, widths: tuple[int, ...]) -> None:
    net = UNet({f"head{i}": r for i, r in enumerate(regions)}, images=images, widths=widths)
    assert count(net) == expected_parameters(regions, images, widths)


def test_number_of_parameters_of_the_defaults() -> None:
    assert count(UNet({})) == 5_600_864
    assert count(UNet({"joint": 4})) == 5_600_864 + 4 * 33
    assert count(UNet({"full": 84, "partial": 16}, images=2)) == 5_600_864 + 27 * 32 + 100 * 33


# -- heads -------------------------------------------------------------------------------------------------------------


def test_logits_are_linear_maps_of_the_features() -> None:
    net, image = network(), scan(8, 8, 16, number=2)
    features, logits = net(image), net.logits(image)
    assert list(logits) == list(HEADS)
    for name, regions in HEADS.items():
        weight, bias = net.head(name)
        assert weight.shape == (regions, 4)
        assert bias.shape == (regions,)
        assert logits[name].shape == (2, regions, 8, 8, 16)
        plain = torch.einsum("rf,nfdhw->nrdhw", weight, features) + bias.view(1, -1, 1, 1, 1)
        assert torch.allclose(logits[name], plain, atol=1e-5)


@pytest.mark.parametrize("taught, other", [("partial", "full"), ("full", "partial")])
def test_an_annotation_of_one_head_teaches_the_trunk_and_not_the_other_head(taught: str, other: str) -> None:
    net, image = network(), scan(8, 8, 16)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-2)
    values = torch.randint(HEADS[taught], (1, 8, 8, 16), generator=torch.Generator().manual_seed(2))
    F.cross_entropy(net.logits(image)[taught], values).backward()
    optimiser.step()
    assert all(p.grad is None or not p.grad.any() for p in net.heads[other].parameters())
    changed = {name for name, p in net.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {name for name in before if not name.startswith(f"heads.{other}.")}


def test_heads_share_the_trunk() -> None:
    """Training one head changes the prediction of the other, only through the features."""
    net, image = network(), scan(8, 8, 16)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
    untaught = net.logits(image)["full"].detach()
    F.cross_entropy(net.logits(image)["partial"], torch.ones(1, 8, 8, 16, dtype=torch.long)).backward()
    optimiser.step()
    assert not torch.allclose(net.logits(image)["full"], untaught, atol=1e-3)


def test_both_heads_together_add_their_gradients() -> None:
    net, image = network(), scan(8, 8, 16)
    values = torch.ones(1, 8, 8, 16, dtype=torch.long)
    trunk = [p for name, p in net.named_parameters() if not name.startswith("heads.")]

    def gradients(*names: str) -> list[Tensor]:
        loss = torch.stack([F.cross_entropy(net.logits(image)[name], values) for name in names]).sum()
        return list(torch.autograd.grad(loss, trunk))

    for both, full, partial in zip(gradients(*HEADS), gradients("full"), gradients("partial"), strict=True):
        assert torch.allclose(both, full + partial, atol=1e-5)


@pytest.mark.parametrize("kind", [UNet, SubpixelUNet, NeuroNet, ENeuroNet])
def test_a_head_may_have_the_name_of_an_attribute_of_modules(kind: type[Network]) -> None:
    net = kind({"train": 3, "values": 2}).eval()
    assert list(net.heads) == ["train", "values"] and not net.training
    kind({"train": 3, "values": 2}).load_state_dict(net.state_dict())
