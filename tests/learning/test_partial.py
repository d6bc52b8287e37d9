"""Partial annotations (Dai et al. 2019): the shipped recipes on brains of which one has full annotations."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from bidsseg.labels.protocol import Protocol, Region
from bidsseg.learning.cases import Annotation, Case
from bidsseg.learning.loop import evaluate, fit
from bidsseg.learning.recipe import load_recipe
from bidsseg.learning.samples import Plan
from bidsseg.learning.state import Conditions
from bidsseg.networks.network import Network
from bidsseg.networks.unet import UNet

SIZE = 16
TISSUES = ("Fluid", "Grey", "White")
BACKGROUND = Region(0, "Background", "BG", "#000000", 0)
PARTIAL = Protocol(
    "Partial", (BACKGROUND, *(Region(i, name, name, "#808080", None) for i, name in enumerate(TISSUES, 1)))
)
SIDES = [f"{side} {name}" for side in ("Left", "Right") for name in TISSUES]
FULL = Protocol("Full", (BACKGROUND, *(Region(i, name, name, "#808080", None) for i, name in enumerate(SIDES, 1))))
PROTOCOLS = {"BrainCOLOR": FULL, "FAST": PARTIAL}
"""Values that replace those of the recipes."""


class Doubled(UNet):
    """The same network on two copies of the image, of which only the first counts.

    With these few voxels, torch convolves one image three times as slowly as two.
    """

    def forward(self, image: Tensor, coordinates: Tensor | None = None) -> Tensor:
        copies = image.repeat(2, 1, 1, 1, 1).contiguous(memory_format=self.memory_format)
        return super().forward(copies, coordinates)[:1]


def brain(seed: int, full: bool) -> Case:
    """Return a brain of three tissue shells, whose order of brightness differs between brains."""
    rng = np.random.default_rng(seed)
    axes = np.meshgrid(*[np.arange(SIZE) - (SIZE - 1) / 2] * 3, indexing="ij")
    shifted = [(axis - rng.uniform(-1, 1)) / rng.uniform(0.85, 1.15) for axis in axes]
    radius, outer = np.linalg.norm(shifted, axis=0), rng.uniform(6, 7)
    tissues = np.sum([radius < share * outer for share in (1.0, 0.8, 0.55)], axis=0).astype(np.uint8)
    image = np.array([0.0, *rng.permutation([0.25, 0.5, 0.75])])[tissues] + rng.normal(0, 0.04, tissues.shape)
    regions = np.where(tissues > 0, tissues + 3 * (axes[0] > 0), 0).astype(np.uint8)
    annotation = Annotation(FULL, torch.from_numpy(regions)) if full else Annotation(PARTIAL, torch.from_numpy(tissues))
    shown = torch.from_numpy(image.clip(0.01).astype(np.float32))[None]
    return Case(f"toy/sub-{seed:03}", shown, (annotation,), torch.from_numpy(tissues > 0))


def trained(
    name: str, cases: list[Case], seed: int, steps: int, folder: Path, start: Network | None = None
) -> tuple[Network, Plan]:
    """Return a small network trained with a recipe on unchanged cases."""
    recipe = load_recipe(name, small=True)
    recipe = replace(
        recipe,
        steps=steps,
        spacing_mm=1.0,
        coarse=None,
        heads={PROTOCOLS[head].name: weight for head, weight in recipe.heads.items()},
        fading=[PROTOCOLS[head].name for head in recipe.fading],
        sampling=replace(recipe.sampling, shape=(SIZE,) * 3, points=0),
        spatial=replace(recipe.spatial, still=1.0, shift_mm=0.0, flip=0.0),
        intensity=replace(recipe.intensity, gamma=0.0, bias=0.0, noise=0.0, blur=0.0),
    )
    heads = tuple(protocol for protocol in PROTOCOLS.values() if protocol.name in recipe.heads)
    torch.manual_seed(seed)
    network = Doubled({head.name: len(head.regions) for head in heads}, widths=[8, 16])
    if start is not None:
        given = {key: value for key, value in start.state_dict().items() if key in network.state_dict()}
        network.load_state_dict(network.state_dict() | given)
    plan = Plan(recipe, heads, seed)
    (folder / name).mkdir()
    fit(
        network, cases, [], plan=plan, conditions=Conditions(folder / name, float("inf"), lambda: False, lambda _: None)
    )
    return network, plan


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Use one thread, which is fastest for a small network."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_partial_annotations_help_where_one_full_one_has_no_more_to_teach(tmp_path: Path) -> None:
    """Joint, then full annotations are better than full ones alone for as many steps, by a Dice of at least .03."""
    one = [brain(1, full=True)]
    partial = [brain(number, full=False) for number in range(2, 14)]
    unseen = [brain(number, full=True) for number in range(50, 56)]
    alone = trained("partial-full", one, 0, 240, tmp_path)
    joint, _ = trained("partial-joint", one + partial, 0, 120, tmp_path)
    both = trained("partial-joint-finetune", one, 0, 120, tmp_path, joint)
    dice = [
        evaluate(network, unseen, plan, precision=torch.float32)["dice Full>Full"] for network, plan in (alone, both)
    ]
    assert dice[1] > dice[0] + 0.03
