"""The initial model as a teacher: which heads it teaches, and where."""

import copy

import numpy as np
import pytest
import torch

from bidsseg.labels import load_protocol
from bidsseg.learning.losses import Loss
from bidsseg.learning.objective import Relations, loss_of
from bidsseg.learning.recipe import Recipe
from bidsseg.learning.samples import Plan
from bidsseg.learning.teacher import Teacher, taught_heads
from bidsseg.models.card import Card
from bidsseg.models.library import build

HEADS = tuple(load_protocol(name).scored() for name in ("BrainCOLOR", "FAST", "brain"))
RECIPE = Recipe("tiny", "", {head.name: 1.0 for head in HEADS}, {"name": "unet3d"}, loss=Loss(1.0, 0.0))


@pytest.mark.parametrize(
    ("labels", "taught"),
    [
        (["BrainCOLOR"], ["FAST", "brain"]),
        (["BrainCOLOR", "FAST"], []),
        (["FAST"], ["BrainCOLOR"]),
        (["BrainCOLOR", "head"], ["FAST"]),
        (["head"], ["BrainCOLOR", "FAST"]),
    ],
)
def test_heads_that_no_label_determines_are_taught(labels: list[str], taught: list[str]) -> None:
    assert taught_heads(HEADS, [load_protocol(name) for name in labels]) == taught


def test_the_teacher_speaks_only_where_labels_leave_several_regions_open() -> None:
    labels, tissue = load_protocol("BrainCOLOR"), HEADS[1]
    relations = Relations(HEADS)
    openness = relations.get(labels, tissue)
    assert openness is not None
    one = int((openness.allowed.sum(1) == 2).int().argmax())  # a region that may be two of the four tissues
    values = torch.tensor([0, one])
    random = np.random.default_rng(0)
    logits = torch.tensor(random.normal(0, 1, (2, 4)), dtype=torch.float32, requires_grad=True)
    teacher = torch.tensor(random.dirichlet(np.ones(4), 2), dtype=torch.float32)
    plan = Plan(RECIPE, HEADS)
    answers = {head.name: torch.zeros(2, len(head.regions)) for head in HEADS} | {"FAST": logits}
    given = [(labels, values)]
    without, _ = loss_of(answers, given, plan, relations=relations)
    taught, parts = loss_of(answers, given, plan, relations=relations, taught={"FAST": teacher})
    allowed = openness.allowed[values].float()
    target = teacher * allowed / (teacher * allowed).sum(1, keepdim=True)
    expected = -(target * torch.log_softmax(logits, 1)).sum() / 2
    assert torch.isclose(taught - without, expected) and torch.isclose(parts["initial>FAST"], expected.detach())


def test_labels_of_one_region_are_not_overruled() -> None:
    relations = Relations(HEADS)
    openness = relations.get(load_protocol("BrainCOLOR"), HEADS[2])
    assert openness is not None
    values = torch.nonzero(openness.allowed.sum(1) == 1)[:3, 0]
    brain = torch.tensor([[0.9, 0.1]] * 3)  # the teacher sees no brain where BrainCOLOR has a region
    answers = {head.name: torch.zeros(3, len(head.regions)) for head in HEADS}
    given = [(load_protocol("BrainCOLOR"), values)]
    _, parts = loss_of(answers, given, Plan(RECIPE, HEADS), relations=relations, taught={"brain": brain})
    assert parts["initial>brain"] == 0


def test_the_teacher_keeps_its_weights() -> None:
    card = Card(
        "one", "", ("T1w",), {"name": "subpixel-unet", "widths": [4, 4], "features": 4, "last": 4}, 1.0, ("FAST",), ""
    )
    network = build(card)
    teacher = Teacher.of(network, ["FAST"], "cpu")
    before = copy.deepcopy(network.state_dict())
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(1.0)
    assert all(torch.equal(value, before[name]) for name, value in teacher.network.state_dict().items())
    assert not any(weight.requires_grad for weight in teacher.network.parameters())
