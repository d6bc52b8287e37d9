"""Rigid and affine registration of two images by mutual information; requires SimpleITK.

Mattes et al. 2003, doi:10.1109/TMI.2003.809072. SimpleITK uses LPS; arguments and results are in RAS+.
"""

from __future__ import annotations

from contextlib import suppress
from operator import itemgetter

import numpy as np
import SimpleITK as sitk
from nibabel.affines import from_matvec

from bidsseg.image.volume import Volume

LEVELS_MM = (6.0, 3.0, 2.0)
"""Resolutions of the registration, one after the other."""
SAMPLES = 30_000
"""Number of voxels that are compared at each level, drawn with the seed."""
SEED = 1
BINS = 32
LONGEST_STEP_MM, SHORTEST_STEP_MM, STEPS = 2.0, 0.01, 200
TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])

# Sums over several threads vary in their last digits; setting the number of threads of one registration is not enough.
sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)


def register(moving: Volume, fixed: Volume) -> tuple[np.ndarray, np.ndarray]:
    """Align an image rigidly to another of the same head, with any contrasts and grids.

    The search starts from the positions in the headers and from matching centres of mass; the better start is refined.

    Returns:
        The moved image on the grid of fixed, linearly interpolated, 0 outside of its field of view; and the motion
        (4, 4), from the original to the new position of a point, RAS+ mm.

    Raises:
        RuntimeError: the images do not overlap.
    """
    still, moved = image_of(fixed), image_of(moving)
    transform = search(moved, still)
    data = sitk.GetArrayFromImage(sitk.Resample(moved, still, transform, sitk.sitkLinear, 0.0)).T
    return data, motion_of(transform)


def fit(moving: Volume, fixed: Volume) -> np.ndarray:
    """Return the affine motion (4, 4) of an image to another head, RAS+ mm: a rigid motion, then refined.

    Raises:
        RuntimeError: the images do not overlap.
    """
    still, moved = image_of(fixed), image_of(moving)
    rigid = sitk.Euler3DTransform(search(moved, still))
    start = sitk.AffineTransform(3)
    start.SetCenter(rigid.GetCenter())
    start.SetMatrix(rigid.GetMatrix())
    start.SetTranslation(rigid.GetTranslation())
    return motion_of(refined(moved, still, [start]))


def as_text(motion: np.ndarray) -> str:
    """Return a motion (4, 4), RAS+ mm, as a text file of ITK and ANTs: from points of fixed to those of moving."""
    matrix = back_in_lps(motion)
    numbers = " ".join(repr(float(value)) for value in [*matrix[:3, :3].ravel(), *matrix[:3, 3]])
    lines = ["#Insight Transform File V1.0", "#Transform 0", "Transform: AffineTransform_double_3_3"]
    return "\n".join([*lines, f"Parameters: {numbers}", "FixedParameters: 0 0 0", ""])


def back_in_lps(motion: np.ndarray) -> np.ndarray:
    """Return the matrix (4, 4) from points of fixed to those of moving, LPS mm, of a motion (4, 4), RAS+ mm."""
    return TO_LPS @ np.linalg.inv(motion) @ TO_LPS


def transform_of(motion: np.ndarray) -> sitk.Transform:
    """Return the transform, from points of fixed to those of moving, of a motion (4, 4), RAS+ mm; see ``motion_of``."""
    matrix = back_in_lps(motion)
    transform = sitk.AffineTransform(3)
    transform.SetMatrix(matrix[:3, :3].ravel().tolist())
    transform.SetTranslation(matrix[:3, 3].tolist())
    return transform


def image_of(volume: Volume) -> sitk.Image:
    """Return a volume as an image of SimpleITK, in LPS."""
    image = sitk.GetImageFromArray(volume.data.T.astype(np.float32))
    affine = TO_LPS @ volume.affine
    image.SetSpacing(volume.spacing_mm.tolist())
    image.SetDirection((affine[:3, :3] / volume.spacing_mm).ravel().tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    return image


def motion_of(transform: sitk.Transform) -> np.ndarray:
    """Return the motion (4, 4), RAS+ mm, of a transform from points of fixed to those of moving."""
    return np.linalg.inv(TO_LPS @ matrix_of(transform) @ TO_LPS)


def matrix_of(transform: sitk.Transform) -> np.ndarray:
    """Return the (4, 4) matrix of an affine transform."""
    origin = np.array(transform.TransformPoint((0.0, 0.0, 0.0)))
    columns = [np.array(transform.TransformPoint(axis)) - origin for axis in np.eye(3).tolist()]
    matrix: np.ndarray = from_matvec(np.stack(columns, 1), origin)
    return matrix


def search(moving: sitk.Image, fixed: sitk.Image) -> sitk.Transform:
    """Return the rigid transform from points of fixed to those of moving."""
    return refined(moving, fixed, starts(moving, fixed))


def refined(moving: sitk.Image, fixed: sitk.Image, candidates: list[sitk.Transform]) -> sitk.Transform:
    """Return the best transform found from several starts, of the same kind as the starts."""
    method = sitk.ImageRegistrationMethod()
    method.SetInterpolator(sitk.sitkLinear)
    method.SetMetricAsMattesMutualInformation(BINS)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetOptimizerAsRegularStepGradientDescent(LONGEST_STEP_MM, SHORTEST_STEP_MM, STEPS, relaxationFactor=0.8)
    method.SetOptimizerScalesFromPhysicalShift()
    for spacing_mm in LEVELS_MM:
        pair = coarse(fixed, spacing_mm), coarse(moving, spacing_mm)
        method.SetMetricSamplingPercentage(min(1.0, SAMPLES / pair[0].GetNumberOfPixels()), SEED)
        fits = []
        for candidate in candidates:
            method.SetInitialTransform(candidate)
            with suppress(RuntimeError):  # the images do not overlap at this start
                fits.append((method.Execute(*pair), method.GetMetricValue()))
        if not fits:
            raise RuntimeError("the images do not overlap")
        candidates = [min(fits, key=itemgetter(1))[0]]
    return candidates[0]


def starts(moving: sitk.Image, fixed: sitk.Image) -> list[sitk.Transform]:
    """Return the starts of the search: the positions in the headers, and matching centres of mass."""
    centred = sitk.Euler3DTransform(sitk.CenteredTransformInitializer(fixed, moving, sitk.Euler3DTransform()))
    as_headers_say = sitk.Euler3DTransform()
    as_headers_say.SetCenter(centred.GetCenter())
    return [as_headers_say, centred]


def coarse(image: sitk.Image, spacing_mm: float) -> sitk.Image:
    """Return an image of block means of about that size, along the axes with finer resolution."""
    means: sitk.Image = sitk.BinShrink(image, [max(1, round(spacing_mm / spacing)) for spacing in image.GetSpacing()])
    return means
