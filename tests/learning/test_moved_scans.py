"""Scans that are moved as a whole, of which SegNet's voxels are drawn."""

from dataclasses import replace

import pytest
import torch
from known_case import CALM, SAMPLING, case, seeded

from bidsseg.learning import augment
from bidsseg.learning.augment import Intensity, Spatial
from bidsseg.learning.cases import View
from bidsseg.learning.segnet import draw_case


def in_its_box(values: torch.Tensor, brain: torch.Tensor) -> torch.Tensor:
    where = torch.nonzero(brain)
    return values[tuple(slice(int(a), int(b) + 1) for a, b in zip(where.amin(0), where.amax(0), strict=True))]


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_a_scan_that_is_only_mirrored_keeps_its_labels_and_its_brightness(flip: float) -> None:
    known = case()
    assert known.image is not None
    drawn = draw_case(known, View(SAMPLING, replace(augment.UNMOVED, flip=flip), CALM, 1.0), seeded())
    assert drawn.image is not None and drawn.name == known.name
    axes = [0] if flip else []
    for before, after in zip(known.annotations, drawn.annotations, strict=True):
        expected = in_its_box(before.values, known.brain).flip(axes).long()
        if flip:
            expected = torch.tensor(before.protocol.partners())[expected]
        assert torch.equal(in_its_box(after.values, drawn.brain).long(), expected)
        assert after.values.dtype == before.values.dtype and not after.values[~drawn.brain].any()
    brightness = in_its_box(known.image[0], known.brain).flip(axes)
    shares = in_its_box(drawn.image[0], drawn.brain)[brightness > 0] / brightness[brightness > 0]
    assert shares.max() / shares.min() < 1.0001


@pytest.mark.parametrize("image", [True, False])
def test_a_scan_that_is_moved_as_a_whole_is_decided_by_its_seed(image: bool) -> None:
    view = View(SAMPLING, Spatial(), Intensity(), 1.0)
    one, again, other = (draw_case(case(image), view, seeded(seed)) for seed in (5, 5, 6))
    assert torch.equal(one.brain, again.brain) and not torch.equal(one.brain, other.brain)
    assert torch.equal(one.annotations[0].values, again.annotations[0].values)
    assert (one.annotations[0].values[one.brain] > 0).all()
    if image:
        assert one.image is not None and again.image is not None and torch.equal(one.image, again.image)
        assert not one.image[0][~one.brain].any() and one.image[0][one.brain].std() > 0
    else:
        assert one.image is None
