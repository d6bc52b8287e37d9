"""A network gets the same input for a scan and for its changed copies, whatever their units and pose.

The copies are those of ``benchmarks/robustness.py``, which compares the label maps in the end.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage
from scripts import script

from bidsseg.image.brightness import rescaled_each
from bidsseg.image.grid import within_content
from bidsseg.image.nifti import read_image
from bidsseg.image.volume import Volume
from bidsseg.models.library import load_model
from bidsseg.segmentation.engine import Engine
from bidsseg.segmentation.locate import TURN_FROM_DEG, Brain, ModelInput, model_input

SAME = "times", "stripped", "padded"
"""Kinds of copies that change only units, background or field of view."""
CUT = "one hemisphere", "cerebellum cut"


COPIES: dict[str, Any] = script("robustness").COPIES


load_once = cache(load_model)


def shown(image: nib.Nifti1Image) -> ModelInput:
    images = {"T1w": Volume(image.get_fdata(dtype=np.float32), image.affine)}
    inside, start_mm = within_content(rescaled_each(images), "T1w")
    seen = model_input(inside, load_once("wholebrain"), Engine(), progress=lambda stage: None)
    assert seen.brain is not None
    brain = replace(seen.brain, grid=seen.brain.grid.moved(start_mm))
    return replace(seen, grid=seen.grid.moved(start_mm), brain=brain)


def world(image: nib.Nifti1Image, affine: np.ndarray) -> np.ndarray:
    """Return the matrix (4, 4) from mm in the canonical frame of an image to RAS+ mm, for voxels with this affine."""
    orientation = nib.io_orientation(image.affine)
    matrix = affine @ nib.orientations.inv_ornt_aff(orientation, image.shape)
    scaled: np.ndarray = matrix @ np.diag([*1 / nib.affines.voxel_sizes(matrix), 1])
    return scaled


@cache
def template() -> tuple[nib.Nifti1Image, np.ndarray]:
    """A scan and its brain mask."""
    from nilearn.datasets import load_mni152_template

    image = load_mni152_template(resolution=2)
    data = 1000 * image.get_fdata(dtype=np.float32)
    return nib.Nifti1Image(data, image.affine), data > 0


@cache
def of_template() -> ModelInput:
    return shown(template()[0])


def brain_mask(scan: nib.Nifti1Image, brain: Brain) -> np.ndarray:
    """Return the brain mask on the grid of a scan."""
    canonical = nib.affines.apply_affine(np.linalg.inv(world(scan, scan.affine)) @ scan.affine, indices(scan.shape))
    found: np.ndarray = ndimage.map_coordinates(brain.probability.numpy(), brain.grid.voxels(canonical).T, order=1)
    return found.reshape(scan.shape) > 0.5


def indices(shape: tuple[int, ...]) -> np.ndarray:
    """Return the indices of all voxels (N, 3) of an array."""
    return np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1).reshape(-1, 3)


def compare(name: str, scan: nib.Nifti1Image, mask: np.ndarray, first: ModelInput) -> tuple[float, float, ModelInput]:
    """Return the correlation of the network inputs of scan and copy, their angle in degrees, and the copy's input."""
    copy = COPIES[name](scan, mask)
    second = shown(copy.image)
    to_copy = np.linalg.inv(world(copy.image, copy.affine)) @ world(scan, scan.affine)
    voxels = np.argwhere(first.image[0, 0].numpy() > 0.05)[::37]
    places = first.grid.places(voxels)
    there = second.grid.voxels(nib.affines.apply_affine(to_copy, places))
    if copy.seen is not None:
        native = nib.affines.apply_affine(np.linalg.inv(scan.affine) @ world(scan, scan.affine), places)
        seen = ndimage.map_coordinates(copy.seen.astype(np.uint8), native.T, order=0) > 0
        voxels, there = voxels[seen], there[seen]
    found = ndimage.map_coordinates(second.image[0, 0].numpy(), there.T, order=1)
    correlation = np.corrcoef(first.image[0, 0].numpy()[tuple(voxels.T)], found)[0, 1]
    turn = np.asarray(second.grid.turn).T @ to_copy[:3, :3] @ np.asarray(first.grid.turn)
    return correlation, np.degrees(np.arccos(np.clip((np.trace(turn) - 1) / 2, -1, 1))), second


@pytest.mark.parametrize("name", [name for name in COPIES if name not in ("voxels of 1.5 mm", "slices of 3 mm")])
def test_a_copy_is_shown_as_the_scan(name: str) -> None:
    correlation, angle, seen = compare(name, *template(), of_template())
    assert correlation > (0.99 if name.startswith(SAME) else 0.85), correlation
    assert angle < (15 if name in CUT else TURN_FROM_DEG + 2), angle
    assert seen.brain is not None
    codes = [finding.code for finding in seen.brain.findings]
    assert codes == (["BRAIN_CUT"] if name in CUT else [])


@pytest.mark.parametrize("name", ["times 3 minus 500", "padded 60", "noise around", "grid turned 45", "tilt 20"])
def test_a_copy_of_a_whole_head_is_shown_as_the_head(name: str, testdata: Path) -> None:
    volume, _ = read_image(testdata / "ds000011" / "sub-01" / "anat" / "sub-01_T1w.nii.gz")
    scan = nib.Nifti1Image(volume.data, volume.affine)
    first = shown(scan)
    assert first.brain is not None
    correlation, angle, _ = compare(name, scan, brain_mask(scan, first.brain), first)
    assert correlation > (0.99999 if name.startswith(SAME) else 0.97), correlation
    assert angle < 3, angle
