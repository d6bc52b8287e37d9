"""The pieces of a mask: holes and thin bridges."""

import numpy as np

from bidsseg.segmentation.masks import largest_piece, without_bridges


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
