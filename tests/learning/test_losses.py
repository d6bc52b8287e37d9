"""The marginal losses against closed forms, plain formulas and MONAI."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bidsseg.labels import Protocol, Region, Relation, load_protocol, load_relation
from bidsseg.labels.relation import identity, open_background
from bidsseg.learning.losses import Openness, marginal_cross_entropy, marginal_dice

Loss = Callable[[Tensor, Tensor, Openness], Tensor]
LOSSES: list[Loss] = [marginal_cross_entropy, marginal_dice]
REGIONS = 5


def protocol(name: str, *indices: int) -> Protocol:
    """Return a protocol with the background and regions with these indices."""
    return Protocol(name, tuple(Region(i, f"region {i}", f"r{i}", "#808080", None) for i in indices))


def relation(*rows: list[int]) -> Openness:
    """Return the relation of annotation values from 0 to the regions marked with 1."""
    allowed = np.array(rows, bool)
    tables = protocol("annotation", *range(allowed.shape[0])), protocol("head", *range(allowed.shape[1]))
    return Openness.of(Relation(*tables, allowed))


def exact(regions: int) -> Openness:
    table = protocol("head", *range(regions))
    return Openness.of(identity(table, table))


def draw(voxels: int = 400, regions: int = REGIONS, seed: int = 0, values: int | None = None) -> tuple[Tensor, Tensor]:
    """Return log-probabilities (P, C) and annotated values (P,), in which every value occurs."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(voxels, regions, generator=generator, dtype=torch.float64)
    return torch.log_softmax(logits, 1), torch.randperm(voxels, generator=generator) % (values or regions)


def dice(probability: Tensor, target: Tensor) -> Tensor:
    """Return the soft Dice of one set, both arrays of shape (P,)."""
    return 2 * (probability * target).sum() / (probability.sum() + target.sum())


# -- cross-entropy -----------------------------------------------------------------------------------------------------


def test_cross_entropy_of_the_identity_is_the_ordinary_one() -> None:
    log_probability, values = draw()
    loss = marginal_cross_entropy(log_probability, values, exact(REGIONS))
    assert loss.item() == pytest.approx(F.cross_entropy(log_probability, values).item(), abs=1e-6)


@pytest.mark.parametrize("regions, lesions", [(4, 1), (7, 1), (7, 3)])
def test_cross_entropy_of_a_lesion_background_under_uniform_logits(regions: int, lesions: int) -> None:
    head = protocol("head", *range(regions))
    openness = Openness.of(open_background(protocol("lesion", 0, *range(regions - lesions, regions)), head))
    uniform = torch.log_softmax(torch.zeros(10, regions), 1)
    background = marginal_cross_entropy(uniform, torch.zeros(10, dtype=torch.long), openness)
    lesion = marginal_cross_entropy(uniform, torch.ones(10, dtype=torch.long), openness)
    assert background.item() == pytest.approx(-math.log((regions - lesions) / regions), abs=1e-6)
    assert lesion.item() == pytest.approx(math.log(regions), abs=1e-6)


def test_gradient_at_a_lesion_background() -> None:
    logits = torch.tensor([[0.3, -1.0, 2.0, 0.7]], dtype=torch.float64, requires_grad=True)
    openness = Openness.of(open_background(protocol("lesion", 0, 3), protocol("head", 0, 1, 2, 3)))
    marginal_cross_entropy(torch.log_softmax(logits, 1), torch.tensor([0]), openness).backward()
    assert logits.grad is not None
    p = torch.softmax(logits.detach(), 1)[0]
    healthy = p[:3].sum()
    expected = torch.cat([p[:3] * (1 - 1 / healthy), p[3:]])
    assert torch.allclose(logits.grad[0], expected)
    assert logits.grad.sum().item() == pytest.approx(0, abs=1e-12)


def test_cross_entropy_with_two_regions_is_the_binary_one() -> None:
    logits = torch.randn(50, 2, generator=torch.Generator().manual_seed(1))
    values = torch.arange(50) % 2
    openness = Openness.of(open_background(protocol("lesion", 0, 1), protocol("head", 0, 1)))
    loss = marginal_cross_entropy(torch.log_softmax(logits, 1), values, openness)
    binary = F.binary_cross_entropy_with_logits(logits[:, 1] - logits[:, 0], values.float())
    assert loss.item() == pytest.approx(binary.item(), abs=1e-6)


def test_cross_entropy_is_the_mean_over_voxels_that_teach_something() -> None:
    openness = relation([1, 1, 0, 0], [0, 0, 1, 0], [1, 1, 1, 1])
    log_probability, values = draw(300, 4, values=3)
    p = log_probability.exp()
    by_hand = [
        -math.log(p[i, :2].sum() if value == 0 else p[i, 2]) for i, value in enumerate(values.tolist()) if value != 2
    ]
    assert marginal_cross_entropy(log_probability, values, openness).item() == pytest.approx(np.mean(by_hand))


# -- Dice --------------------------------------------------------------------------------------------------------------


def test_dice_of_the_identity_is_the_plain_formula() -> None:
    log_probability, values = draw()
    truth = F.one_hot(values, REGIONS).double()
    plain = 1 - torch.stack([dice(log_probability.exp()[:, c], truth[:, c]) for c in range(REGIONS)]).mean()
    assert marginal_dice(log_probability, values, exact(REGIONS)).item() == pytest.approx(plain.item(), abs=1e-6)


def test_dice_of_the_identity_is_that_of_monai() -> None:
    from monai.losses import DiceLoss

    log_probability, values = draw(12**3)
    volume = (1, REGIONS, 12, 12, 12)
    probability = log_probability.exp().T.reshape(volume)
    truth = F.one_hot(values, REGIONS).T.reshape(volume)
    theirs = DiceLoss(include_background=True, squared_pred=False, smooth_nr=0, smooth_dr=0)(probability, truth)
    assert marginal_dice(log_probability, values, exact(REGIONS)).item() == pytest.approx(theirs.item(), abs=1e-6)


def test_dice_is_over_the_regions_that_are_present() -> None:
    log_probability, values = draw()
    values[values == 3] = 1
    present = [0, 1, 2, 4]
    truth = F.one_hot(values, REGIONS).double()
    plain = 1 - torch.stack([dice(log_probability.exp()[:, c], truth[:, c]) for c in present]).mean()
    assert marginal_dice(log_probability, values, exact(REGIONS)).item() == pytest.approx(plain.item(), abs=1e-6)


def test_squared_dice_is_the_plain_formula_and_counts_absent_regions() -> None:
    log_probability, values = draw()
    values[values == 3] = 1
    p, truth = log_probability.exp(), F.one_hot(values, REGIONS).double()
    plain = [2 * (p * truth)[:, c].sum() / (p[:, c].square().sum() + truth[:, c].sum()) for c in range(REGIONS)]
    loss = marginal_dice(log_probability, values, exact(REGIONS), squared=True)
    assert loss.item() == pytest.approx(1 - torch.stack(plain).mean().item(), abs=1e-6)
    sure = torch.log_softmax(100.0 * truth, 1)
    assert marginal_dice(sure, values, exact(REGIONS), squared=True).item() == pytest.approx(0, abs=1e-6)


def test_dice_of_an_open_background_is_over_two_sets() -> None:
    openness = Openness.of(open_background(protocol("lesion", 0, 4), protocol("head", *range(REGIONS))))
    log_probability, values = draw(values=2)
    p, lesion = log_probability.exp(), (values == 1).double()
    plain = 1 - (dice(p[:, 4], lesion) + dice(p[:, :4].sum(1), 1 - lesion)) / 2
    assert marginal_dice(log_probability, values, openness).item() == pytest.approx(plain.item(), abs=1e-6)


def test_dice_compares_a_set_where_membership_is_sure() -> None:
    """Value 2 may be region 1 or 2, so it counts for the set of both but not for region 1."""
    openness = relation([1, 0, 0], [0, 1, 0], [0, 1, 1])
    log_probability, values = draw(60, 3, values=3)
    p, zero, one = log_probability.exp(), values == 0, values == 1
    plain = [
        dice(p[:, 0], zero.double()),
        dice(p[zero | one, 1], one[zero | one].double()),
        dice(p[:, 1:].sum(1), 1 - zero.double()),
    ]
    loss = marginal_dice(log_probability, values, openness)
    assert loss.item() == pytest.approx(1 - torch.stack(plain).mean().item(), abs=1e-6)


def test_a_perfect_answer_costs_nothing() -> None:
    openness = relation([1, 0, 0], [0, 1, 1])
    values = torch.tensor([0, 1, 1])
    log_probability = torch.log_softmax(torch.tensor([[60.0, 0, 0], [0, 60, 0], [0, 0, 60]]), 1)
    for loss in LOSSES:
        assert loss(log_probability, values, openness).item() == pytest.approx(0, abs=1e-6)


# -- both --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", LOSSES)
def test_probability_may_move_between_allowed_regions(loss: Loss) -> None:
    openness = relation([1, 1, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 0, 1])
    log_probability, values = draw(values=3)
    p = log_probability.exp()
    moved = torch.cat([p[:, :3].sum(1, keepdim=True) * torch.tensor([[0.7, 0.1, 0.2]]), p[:, 3:]], 1)
    assert loss(moved.log(), values, openness).item() == pytest.approx(loss(p.log(), values, openness).item())


@pytest.mark.parametrize("loss", LOSSES)
def test_open_voxels_change_nothing(loss: Loss) -> None:
    openness = relation([1, 0, 0], [0, 1, 1], [1, 1, 1])
    log_probability, values = draw(90, 3, values=3)
    log_probability.requires_grad_()
    told = values != 2
    everywhere = loss(log_probability, values, openness)
    assert everywhere.item() == pytest.approx(loss(log_probability[told], values[told], openness).item())
    everywhere.backward()
    assert log_probability.grad is not None
    assert not log_probability.grad[~told].any()
    assert log_probability.grad[told].any()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("openness", [relation([1, 0, 0], [1, 1, 1]), relation([1, 1, 1], [1, 1, 1])])
def test_a_fully_open_batch_costs_nothing(loss: Loss, openness: Openness) -> None:
    logits = torch.randn(20, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    cost = loss(torch.log_softmax(logits, 1), torch.ones(20, dtype=torch.long), openness)
    cost.backward()
    assert cost.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("openness", [exact(3), relation([1, 0, 0], [0, 1, 1], [1, 1, 1])], ids=["exact", "open"])
def test_extreme_logits_stay_finite(loss: Loss, openness: Openness) -> None:
    logits = (1e4 * torch.tensor([[1.0, -1, 0], [-1, 1, 1], [-1, -1, 1], [1, 1, -1]])).requires_grad_()
    cost = loss(torch.log_softmax(logits, 1), torch.tensor([1, 0, 0, 2]), openness)
    cost.backward()
    assert torch.isfinite(cost)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("openness", [exact(3), relation([1, 0, 0], [0, 1, 1], [1, 1, 1])], ids=["exact", "open"])
def test_gradients_are_those_of_the_value(loss: Loss, openness: Openness) -> None:
    logits = torch.randn(12, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).requires_grad_()
    values = torch.arange(12) % 3
    assert torch.autograd.gradcheck(lambda z: loss(torch.log_softmax(z, 1), values, openness), (logits,))


@pytest.mark.parametrize("annotation, head", [("head", "BrainCOLOR"), ("BrainCOLOR", "FreeSurfer"), ("head", "FAST")])
def test_shipped_relations_give_the_same_as_counting_voxel_by_voxel(annotation: str, head: str) -> None:
    table, spoken = load_protocol(annotation), load_protocol(head).scored()
    known = load_relation(table, spoken)
    assert known is not None
    log_probability, values = draw(500, len(spoken.regions), values=len(table.regions))
    p, allowed = log_probability.exp().numpy(), known.allowed[values.numpy()]
    informative = ~allowed.all(1)
    entropy = -np.log((p * allowed).sum(1))[informative].mean()
    sets = {tuple(row) for row in known.allowed if not row.all()}
    scores = []
    for members in (np.array(row) for row in sets):
        inside, outside = ~(allowed & ~members).any(1), ~(allowed & members).any(1)
        if inside.any():
            chance, sure = p[:, members].sum(1), inside | outside
            scores.append(2 * chance[inside].sum() / (chance[sure].sum() + inside.sum()))
    openness = Openness.of(known)
    assert marginal_cross_entropy(log_probability, values, openness).item() == pytest.approx(entropy)
    assert marginal_dice(log_probability, values, openness).item() == pytest.approx(1 - np.mean(scores), abs=1e-6)
