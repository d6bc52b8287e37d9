"""Deformable registration of two brains by diffeomorphic demons; requires SimpleITK.

Vercauteren et al. 2009, doi:10.1016/j.neuroimage.2008.10.040.
"""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk
from nibabel.affines import apply_affine

from bidsseg.image.volume import Field, Volume, places
from bidsseg.registration.linear import TO_LPS, coarse, image_of, transform_of

SPACING_MM = 2.0
"""Final resolution of the registration."""
STEPS = {4: 60, 2: 40, 1: 20}
"""Number of iterations at each level, by the size of its blocks in voxels."""
SMOOTHING = 0.6
"""Standard deviation (voxels) of the Gaussian by which the field is smoothed at each step.

With more, brains fit worse (``benchmarks/spaces.py``); with less, they do not fit better, but are distorted more.
"""
BINS, POINTS = 256, 15
"""Parameters of the histogram matching."""


def deform(moving: Volume, fixed: Volume, motion: np.ndarray) -> Field:
    """Return the displacement between two brains of the same contrast, starting from a motion.

    Args:
        moving, fixed: 0 around the brain.
        motion: (4, 4), from points of moving to those of fixed, RAS+ mm.

    Returns:
        Displacements from points of fixed to those of moving, including the motion.
    """
    still = coarse(image_of(fixed), SPACING_MM)
    moved = sitk.Resample(image_of(moving), still, transform_of(motion), sitk.sitkLinear, 0.0)
    moved = sitk.HistogramMatching(moved, still, BINS, POINTS, True)  # noqa: FBT003  (no names of arguments)
    demons = sitk.DiffeomorphicDemonsRegistrationFilter()
    demons.SetSmoothDisplacementField(True)  # noqa: FBT003
    demons.SetStandardDeviations(SMOOTHING)
    field = sitk.Image([4, 4, 4], sitk.sitkVectorFloat64, 3)
    for block, steps in STEPS.items():
        demons.SetNumberOfIterations(steps)
        pair = sitk.BinShrink(still, [block] * 3), sitk.BinShrink(moved, [block] * 3)
        field = demons.Execute(*pair, sitk.Resample(field, pair[0]))
    vectors = sitk.GetArrayFromImage(field).transpose(2, 1, 0, 3) @ TO_LPS[:3, :3]
    affine = TO_LPS @ affine_of(still)
    here = places(vectors.shape[:3], affine)
    return Field((apply_affine(np.linalg.inv(motion), here + vectors) - here).astype(np.float32), affine)


def affine_of(image: sitk.Image) -> np.ndarray:
    """Return the affine from voxel index to LPS+ mm, (4, 4)."""
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return affine
