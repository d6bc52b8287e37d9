"""Lesions and anatomy from datasets with one kind of labels each: ACE (Roulet et al. 2019, arXiv 1903.03445)."""

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bidsseg.errors import DataError
from bidsseg.evaluation.merging import JOINT as JOINT_HEAD
from bidsseg.evaluation.merging import lesion_over_tissue, with_lesions
from bidsseg.execution.machine import cpu_precision
from bidsseg.image.nifti import read_image, read_labels
from bidsseg.labels import Protocol, Region, load_protocol, load_relation
from bidsseg.labels.relation import identity, open_background, read_relation
from bidsseg.learning import samples, validation
from bidsseg.learning.cases import Annotation, Case, Sampling
from bidsseg.learning.losses import Loss, Openness, marginal_cross_entropy
from bidsseg.learning.objective import Relations
from bidsseg.learning.recipe import load_recipe
from bidsseg.learning.samples import Plan
from bidsseg.learning.validation import ERROR, comparable, compare
from bidsseg.models.library import load_model
from bidsseg.segmentation.predict import segment
from bidsseg.segmentation.result import Segmentation


def protocol(name: str, *indices: int) -> Protocol:
    """Return a protocol with the background and regions with these indices."""
    return Protocol(name, tuple(Region(i, f"region {i}", f"r{i}", "#808080", None) for i in indices))


JOINT = protocol("joint", 0, 1, 2, 3, 4, 5)
ANATOMY = Openness.of(identity(protocol("anatomy", 0, 1, 2, 3), JOINT))
LESION = Openness.of(open_background(protocol("lesions", 0, 4, 5), JOINT))
"""Relation of a dataset whose annotations are 0, 4 or 5; the losses use their positions 0, 1 or 2."""
HEALTHY, SICK = [0, 1, 2, 3], [4, 5]


def lesion_dataset(regions: int, lesions: int) -> Openness:
    """Return the relation of a lesion dataset; the last regions of the head are lesions."""
    table = protocol("lesions", 0, *range(regions - lesions, regions))
    return Openness.of(open_background(table, protocol("head", *range(regions))))


def draw(voxels: int = 300, regions: int = 6) -> Tensor:
    """Return random logits (P, C)."""
    return 2 * torch.randn(voxels, regions, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def ace(logits: Tensor, values: Tensor, openness: Openness) -> Tensor:
    return marginal_cross_entropy(torch.log_softmax(logits, 1), values, openness)


# -- the loss ----------------------------------------------------------------------------------------------------------


def test_both_forms_of_the_paper_s_loss() -> None:
    logits = draw()
    values = torch.arange(300) % 3
    p = torch.softmax(logits, 1)
    one_minus = stable = torch.tensor(0.0)
    for i, value in enumerate(values.tolist()):
        if value == 0:
            one_minus = one_minus - torch.log(1 - p[i, SICK].sum())
            stable = stable + torch.logsumexp(logits[i], 0) - torch.logsumexp(logits[i, HEALTHY], 0)
        else:
            one_minus = one_minus - torch.log(p[i, SICK[value - 1]])
            stable = stable + torch.logsumexp(logits[i], 0) - logits[i, SICK[value - 1]]
    loss = ace(logits, values, LESION).item()
    assert loss == pytest.approx(one_minus.item() / 300, abs=1e-6)
    assert loss == pytest.approx(stable.item() / 300, abs=1e-6)


def test_background_means_what_its_dataset_means_by_it() -> None:
    logits, background = draw(), torch.zeros(300, dtype=torch.long)
    p = torch.softmax(logits, 1)
    of_anatomy, of_lesions = ace(logits, background, ANATOMY), ace(logits, background, LESION)
    assert of_anatomy.item() == pytest.approx(-p[:, 0].log().mean().item())
    assert of_lesions.item() == pytest.approx(-p[:, HEALTHY].sum(1).log().mean().item())
    assert of_lesions < of_anatomy - 0.5


def test_the_relation_may_also_be_read_from_a_table(tmp_path: Path) -> None:
    """Names define the relation: the lesion is 1 in the shipped protocol and 4 in the head."""
    tissues = load_protocol("FAST").regions
    lesion = load_protocol("lesion")
    head = Protocol("FASTlesion", (*tissues, replace(lesion.region(1), index=4)))
    path = tmp_path / "table.tsv"
    path.write_text("lesion\tFASTlesion\n0\t0 1 2 3\n1\t4\n")
    found = read_relation(path, lesion, head).allowed
    assert found.tolist() == [[True] * 4 + [False], [False] * 4 + [True]]
    by_name = load_relation(lesion, head)
    assert by_name is not None
    assert np.array_equal(found, by_name.allowed)
    assert load_relation(lesion, load_protocol("FAST")) is None


def test_without_lesion_background_it_is_the_cross_entropy() -> None:
    """T1: voxels of an anatomy dataset, and lesion voxels of a lesion dataset."""
    logits = draw()
    tissue, lesion = torch.arange(300) % 4, torch.arange(300) % 2
    assert ace(logits, tissue, ANATOMY).item() == pytest.approx(F.cross_entropy(logits, tissue).item(), abs=1e-6)
    expected = F.cross_entropy(logits, 4 + lesion)
    assert ace(logits, 1 + lesion, LESION).item() == pytest.approx(expected.item(), abs=1e-6)
    assert not LESION.exact  # otherwise the marginal branch would not be tested


@pytest.mark.parametrize("regions, lesions", [(2, 1), (5, 1), (6, 2), (9, 4)])
def test_uniform_logits(regions: int, lesions: int) -> None:
    """T2: all regions are equally probable."""
    values = torch.zeros(7, dtype=torch.long)
    loss = ace(torch.full((7, regions), 3.0), values, lesion_dataset(regions, lesions))
    assert loss.item() == pytest.approx(-math.log((regions - lesions) / regions), abs=1e-6)


@pytest.mark.parametrize("voxels", [1, 20])
def test_gradient_at_lesion_background(voxels: int) -> None:
    """T3: the gradient, divided by the number of voxels in the mean."""
    logits = draw(voxels).requires_grad_()
    ace(logits, torch.zeros(voxels, dtype=torch.long), LESION).backward()
    p = torch.softmax(logits.detach(), 1)
    sick = p[:, SICK].sum(1, keepdim=True)
    expected = p.clone()
    expected[:, HEALTHY] *= -sick / (1 - sick)
    assert logits.grad is not None
    assert torch.allclose(logits.grad * voxels, expected, atol=1e-12)
    assert torch.allclose(logits.grad.sum(1), torch.zeros(voxels, dtype=torch.float64), atol=1e-12)


def test_probability_may_move_between_healthy_regions_only() -> None:
    """T4: the loss depends only on the sum over healthy regions."""
    p = torch.softmax(draw(), 1)
    background = torch.zeros(300, dtype=torch.long)

    def loss(probability: Tensor) -> float:
        return marginal_cross_entropy(probability.log(), background, LESION).item()

    healthy, to_lesion = p.clone(), p.clone()
    healthy[:, HEALTHY] = p[:, HEALTHY].sum(1, keepdim=True) * torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=p.dtype)
    to_lesion[:, 1], to_lesion[:, 4] = p[:, 1] / 2, p[:, 4] + p[:, 1] / 2
    assert loss(healthy) == pytest.approx(loss(p), abs=1e-9)
    assert loss(to_lesion) > loss(p) + 1e-3


def test_one_lesion_and_nothing_else_is_the_binary_cross_entropy() -> None:
    """T5: with one lesion region, the loss is the binary cross-entropy."""
    logits, values = draw(regions=2), torch.arange(300) % 2
    binary = F.binary_cross_entropy_with_logits(logits[:, 1] - logits[:, 0], values.double())
    assert ace(logits, values, lesion_dataset(2, 1)).item() == pytest.approx(binary.item(), abs=1e-9)


@pytest.mark.parametrize("likely, expected", [(4, 2e4 - math.log(4)), (2, 0.0)])
def test_extreme_logits(likely: int, expected: float) -> None:
    """T6: single precision, where 1 - P is 0 for a certain lesion; four healthy regions are equally improbable."""
    logits = torch.full((1, 6), -1e4)
    logits[0, likely] = 1e4
    loss = ace(logits.requires_grad_(), torch.tensor([0]), LESION)
    loss.backward()
    assert loss.item() == pytest.approx(expected, abs=0.01)
    assert logits.grad is not None
    slope = [-0.25] * 4 + [1.0, 0.0] if likely == 4 else [0.0] * 6
    assert logits.grad[0].tolist() == pytest.approx(slope, abs=1e-3)


# -- T7: a toy ---------------------------------------------------------------------------------------------------------

TOY = protocol("toy", 0, 1, 2, 3)
"""Protocol with air, two tissues and a lesion."""
TISSUES = Openness.of(identity(protocol("tissues", 0, 1, 2), TOY))
LESIONS = Openness.of(open_background(protocol("lesion", 0, 3), TOY))
NAIVE = Openness.of(identity(protocol("lesion", 0, 3), TOY))
BRIGHTNESS = torch.tensor([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0], [1.0, 2.0]])
"""Brightness of each class in two sequences."""
OTHER_SCANNER = torch.tensor([0.0, 0.5])
"""Offset of the scanner of the lesion dataset, from which a network can recognise the dataset."""


def toy(seed: int, lesions: bool, voxels: int = 2000) -> tuple[Tensor, Tensor]:
    """Return brightness (P, 2) and true class (P,) of the voxels of one dataset."""
    generator = torch.Generator().manual_seed(seed)
    share = torch.tensor([0.4, 0.3, 0.2, 0.1 * lesions])
    truth = torch.multinomial(share, voxels, replacement=True, generator=generator)
    noise = 0.1 * torch.randn(voxels, 2, generator=generator)
    return BRIGHTNESS[truth] + lesions * OTHER_SCANNER + noise, truth


def toy_dice(of_lesions: Openness) -> tuple[list[float], list[float]]:
    """Return the Dice of each class in unseen voxels of the anatomy dataset, and of the lesion dataset.

    Training uses the classes of an anatomy dataset without lesions, and lesion or background of a lesion dataset, half
    of the batch each.
    """
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))
    optimiser = torch.optim.Adam(net.parameters(), lr=0.01)
    (tissue, tissue_truth), (lesion, lesion_truth) = toy(1, False), toy(2, True)
    for _ in range(200):
        optimiser.zero_grad()
        loss = ace(net(tissue), tissue_truth, TISSUES) + ace(net(lesion), (lesion_truth == 3).long(), of_lesions)
        loss.backward()
        optimiser.step()

    def scores(seed: int, lesions: bool) -> list[float]:
        voxels, truth = toy(seed, lesions)
        found = net(voxels).argmax(1)
        pairs = [(found == c, truth == c) for c in range(3 + lesions)]
        return [(2 * (a & b).sum() / (a.sum() + b.sum())).item() for a, b in pairs]

    return scores(3, False), scores(4, True)


def test_ace_learns_every_class_from_disjoint_annotations() -> None:
    in_anatomy, in_lesions = toy_dice(LESIONS)
    assert min(in_anatomy) > 0.95
    assert min(in_lesions) > 0.95


def test_naive_cross_entropy_loses_the_tissues_of_the_lesion_dataset() -> None:
    in_anatomy, (_, *tissues, lesion) = toy_dice(NAIVE)
    assert min(in_anatomy) > 0.95
    assert max(tissues) < 0.2
    assert lesion > 0.95


# -- T8: merging two networks' answers ---------------------------------------------------------------------------------


def test_lesions_win_over_tissues() -> None:
    tissue = np.arange(24, dtype=np.uint8).reshape(2, 3, 4) % 4
    lesion = np.zeros((2, 3, 4), np.uint8)
    lesion[0, 1], lesion[1, 0, 0] = 4, 5
    merged = lesion_over_tissue(tissue, lesion)
    assert merged.dtype == np.uint8
    assert (merged[0, 1] == 4).all()
    assert merged[1, 0, 0] == 5
    assert np.array_equal(merged[lesion == 0], tissue[lesion == 0])
    assert set(tissue[0, 1]) == {0, 1, 2, 3}  # over background too, and the input stays as it was


def test_no_lesion_leaves_the_tissues() -> None:
    tissue = np.arange(24, dtype=np.uint8).reshape(2, 3, 4) % 4
    assert np.array_equal(lesion_over_tissue(tissue, np.zeros_like(tissue)), tissue)


@pytest.mark.parametrize("lesion", [np.ones((1, 3, 4), np.uint8), np.ones((2, 3, 4), bool)])
def test_only_label_maps_of_one_grid_are_merged(lesion: np.ndarray) -> None:
    with pytest.raises(DataError):
        lesion_over_tissue(np.zeros((2, 3, 4), np.uint8), lesion)


# -- partial annotations (Dai et al. 2019, arXiv 1908.10851): one head for full and partial ones -----------------------


def test_a_partial_annotation_that_names_everything_is_a_full_one() -> None:
    logits, values = draw(), torch.arange(300) % 6
    nothing_merged = Openness.of(open_background(protocol("partial", *range(6)), JOINT))
    assert ace(logits, values, nothing_merged).item() == pytest.approx(F.cross_entropy(logits, values).item(), abs=1e-6)


def test_the_background_of_a_partial_annotation_may_be_all_that_it_does_not_name() -> None:
    logits, values = draw(), torch.arange(300) % 3
    partial = Openness.of(open_background(protocol("partial", 0, 2, 5), JOINT))
    p = torch.softmax(logits, 1)
    told = torch.stack([p[:, [0, 1, 3, 4]].sum(1), p[:, 2], p[:, 5]], 1)
    assert ace(logits, values, partial).item() == pytest.approx(F.nll_loss(told.log(), values).item(), abs=1e-6)


# -- how the program trains and measures it ----------------------------------------------------------------------------

FAST, LESION_MASK = load_protocol("FAST"), load_protocol("lesion")


def case(name: str, protocol: Protocol, values: Tensor) -> Case:
    return Case(
        name, values[None].float() + 1, (Annotation(protocol, values),), torch.ones(values.shape, dtype=torch.bool)
    )


@pytest.mark.parametrize("naive", [False, True])
def test_the_background_of_a_naive_recipe_is_background(naive: bool) -> None:
    relations = Relations([JOINT_HEAD], naive=naive)
    of_lesions, of_tissue = relations.get(LESION_MASK, JOINT_HEAD), relations.get(FAST, JOINT_HEAD)
    assert of_lesions is not None and of_tissue is not None
    assert of_lesions.allowed[0].tolist() == [True, *[not naive] * 3, False]
    assert of_lesions.allowed[1].tolist() == [False] * 4 + [True]
    assert of_tissue.allowed.tolist() == torch.eye(5, dtype=torch.bool)[:4].tolist()


def test_datasets_take_turns() -> None:
    recipe = replace(load_recipe("ace"), inputs=("T1w",), sampling=Sampling((8, 8, 8), points=0))
    many = [case(f"anatomy/sub-{i}", FAST, torch.ones(12, 12, 12, dtype=torch.uint8)) for i in range(9)]
    few = [case("lesions/sub-1", LESION_MASK, torch.ones(12, 12, 12, dtype=torch.uint8))]
    drawn = [samples.draw([*many, *few], Plan(recipe, (JOINT_HEAD,)), number) for number in range(8)]
    assert [sample.values[0][0].name for sample in drawn] == ["FAST", "lesion"] * 4
    uneven = replace(recipe, balanced=False)
    names = [samples.draw([*many, *few], Plan(uneven, (JOINT_HEAD,)), number).values[0][0].name for number in range(8)]
    assert names.count("lesion") < 4


@pytest.mark.parametrize("small", [False, True])
def test_the_baselines_differ_from_ace_in_what_they_are_named_for(small: bool) -> None:
    ace, *others = (load_recipe(name, small=small) for name in ("ace", "ace-naive-ce", "ace-naive-dice"))
    beside = 1.0 if small else 0.0
    assert (ace.loss.naive, ace.loss.entropy, ace.loss.dice) == (False, 1.0, beside)
    assert [(o.loss.naive, o.loss.entropy, o.loss.dice) for o in others] == [(True, 1.0, beside), (True, 0.0, 1.0)]
    tissue, lesion = load_recipe("multi-unet", small=small), load_recipe("multi-unet-lesion", small=small)
    assert (list(ace.heads), list(tissue.heads), list(lesion.heads)) == (["FASTlesion"], ["FAST"], ["lesion", "brain"])
    for other in (*others, tissue, lesion):
        same = replace(ace, name="", title="", description="", heads={}, loss=Loss())
        assert replace(other, name="", title="", description="", heads={}, loss=Loss()) == same


def answer(labels: dict[str, np.ndarray], lesion: np.ndarray | None = None) -> Segmentation:
    first = next(iter(labels.values()), lesion)
    assert first is not None
    return Segmentation(labels, {}, first > 0, lesion, 1.0)


def test_two_models_are_joined_in_one_protocol() -> None:
    tissue = np.array([[[0, 1, 2, 3]]], np.uint8)
    lesion = np.array([[[True, False, False, True]]])
    joined = with_lesions(answer({"FAST": tissue}), answer({}, lesion))
    assert joined.labels["FASTlesion"].tolist() == [[[4, 1, 2, 4]]]
    assert joined.labels["FASTlesion"].dtype == np.uint8
    with pytest.raises(DataError, match="head FAST and one with the head lesion"):
        with_lesions(answer({"FAST": tissue}), answer({"FAST": tissue}))


def test_two_models_are_measured_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.tensor([[[0, 1, 2, 3, 3, 4, 4, 4]]], dtype=torch.uint8)
    tissue = np.array([[[0, 1, 2, 3, 3, 3, 2, 2]]], np.uint8)
    of_tissue, of_lesions = (SimpleNamespace(card=SimpleNamespace(inputs=("T1w",), modality="T1w")) for _ in range(2))
    answers = {id(of_tissue): answer({"FAST": tissue}), id(of_lesions): answer({"FAST": tissue}, values.numpy() == 4)}
    monkeypatch.setattr(validation, "segment", lambda images, model, precision: answers[id(model)])
    people = [case("both/sub-1", JOINT_HEAD, values)]
    table = validation.validate(of_tissue, people, lambda line: None, lesion_model=of_lesions)  # type: ignore[arg-type]
    assert set(table["head"]) == {"FASTlesion"}
    assert dict(zip(table.region, table.dice, strict=True)) == {
        "Cerebrospinal Fluid": 1.0, "Gray Matter": 1.0, "White Matter": 1.0, "Lesion": 1.0, ERROR: 0.0,
    }  # fmt: skip


def test_a_head_is_measured_on_what_each_dataset_knows() -> None:
    found = np.array([[[0, 1, 2, 3, 3, 4, 4, 4]]], np.uint8)
    healthy = case("anatomy/sub-1", FAST, torch.tensor([[[0, 1, 2, 3, 3, 3, 2, 2]]], dtype=torch.uint8))
    sick = case("lesions/sub-1", LESION_MASK, torch.tensor([[[0, 0, 0, 0, 1, 1, 1, 1]]], dtype=torch.uint8))
    ((annotation, relation),) = comparable(healthy.annotations, JOINT_HEAD)
    scores = compare(found, JOINT_HEAD, annotation, relation=relation)
    expected = {"Cerebrospinal Fluid": 1.0, "Gray Matter": 0.5, "White Matter": 0.8, ERROR: 3 / 7}
    assert scores == pytest.approx(expected)
    ((annotation, relation),) = comparable(sick.annotations, JOINT_HEAD)
    assert compare(found, JOINT_HEAD, annotation, relation=relation) == pytest.approx({"Lesion": 6 / 7, ERROR: 0.25})


@pytest.mark.data
@pytest.mark.parametrize("patient", ["sub-19", "sub-26"])
def test_the_shipped_model_finds_the_lesions_of_a_patient(patient: str, testdata: Path) -> None:
    """The model was trained only on images synthesised from label maps; the mask is the consensus of three raters."""
    anat = testdata / "ms" / patient / "anat"
    scans = {name: read_image(anat / f"{patient}_{name}.nii.gz")[0] for name in ("T1w", "FLAIR")}
    stem = f"{patient}_space-MNI152_label-lesion_mask.nii.gz"
    truth = read_labels(testdata / "ms/derivatives/manual" / patient / "anat" / stem)
    assert truth.on_grid_of(scans["T1w"])
    found = segment(scans, load_model("ace"), precision=cpu_precision()).lesion
    assert found is not None
    both, either = found & (truth.data > 0), found.sum() + (truth.data > 0).sum()
    assert 2 * both.sum() / either > 0.5
