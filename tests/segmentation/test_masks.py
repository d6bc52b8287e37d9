"""The pieces of a mask: holes and thin bridges."""

from pathlib import Path

import numpy as np
import pytest

from bidsseg.labels import Protocol, Region, load_protocol
from bidsseg.models.card import Card
from bidsseg.models.library import Model, save_protocol
from bidsseg.networks.network import Network
from bidsseg.segmentation.heads import brain_of_labels
from bidsseg.segmentation.masks import largest_piece, shrunk, without_bridges


def test_holes_of_the_largest_piece_are_filled() -> None:
    mask = np.zeros((9, 9, 9), bool)
    mask[1:6, 1:6, 1:6] = True
    whole = mask.copy()
    mask[3, 3, 3] = False
    mask[8, 8, 8] = True
    assert np.array_equal(largest_piece(mask), whole)
    assert not largest_piece(np.zeros((3, 3, 3), bool)).any()


def test_parts_on_thin_bridges_are_cut_off() -> None:
    mask = np.zeros((40, 40, 40), bool)
    mask[4:26, 4:26, 4:26] = True
    mask[10:13, 10:13, 4:30] = True  # a stump that is thin, but short
    brain = mask.copy()
    brain[10:13, 10:13, 30:] = False
    mask[18:21, 18:21, 26:32] = True  # a bridge, and a blob at its end
    mask[14:24, 14:24, 32:39] = True
    found = without_bridges(mask, np.ones(3))
    assert not found[:, :, 30:].any()
    assert np.array_equal(found[:, :, :26], brain[:, :, :26])
    assert (found <= mask).all()
    assert np.array_equal(without_bridges(brain[:26, :26, :26], np.ones(3)), brain[:26, :26, :26])
    assert np.array_equal(without_bridges(mask, np.full(3, 9.0)), mask)
    thin = np.zeros((9, 9, 9), bool)
    thin[4] = True
    assert np.array_equal(without_bridges(thin, np.ones(3)), thin)


def test_a_shrunk_mask_lies_deeper_on_fine_grids() -> None:
    mask = np.zeros((20, 20, 20), bool)
    mask[4:16, 4:16, :] = True
    found = shrunk(mask, 2.0, np.array([1.0, 2.0, 1.0]))
    assert np.array_equal(np.argwhere(found.any((1, 2))).ravel(), np.arange(6, 14))
    assert np.array_equal(np.argwhere(found.any((0, 2))).ravel(), np.arange(5, 15))
    assert found[10, 10].all()  # the brain may continue beyond the field of view


NAMES = ("Background", "Left a", "Right a")
OWN = Protocol("own", tuple(Region(i, name, "", "#ffffff", 1) for i, name in enumerate(NAMES)))
LOCATOR = Model(Card("finder", "", ("T1w",), {}, 3.0, ("brain",), ""), Network(), None)


@pytest.mark.parametrize(
    "protocol, locator, brain",
    [
        (OWN, LOCATOR, "the located brain"),
        (OWN, None, "both pieces"),
        (load_protocol("FAST"), LOCATOR, "the largest piece"),
    ],
)
def test_the_brain_of_a_model_without_a_head_for_it(
    protocol: Protocol, locator: Model | None, brain: str, tmp_path: Path
) -> None:
    """Both hippocampi, for example, are kept, although they are two pieces."""
    card = Card("ours", "", ("T1w",), {}, 1.0, (protocol.name,), "", shown_mm=2.0, folder=tmp_path)
    save_protocol(protocol, tmp_path)
    model = Model(card, Network(), locator)
    near = np.zeros((30, 30, 30), bool)
    near[2:28, 2:28, 2:28] = True
    small, large = np.zeros_like(near), np.zeros_like(near)
    small[8:12, 10:14, 10:14], large[18:23, 10:14, 10:14] = True, True
    inner = np.zeros_like(near)
    inner[5:25, 5:25, 5:25] = True
    expected = {"the located brain": inner, "both pieces": small | large, "the largest piece": large}[brain]
    assert np.array_equal(brain_of_labels(small | large, near, model, spacing=np.ones(3)), expected)
