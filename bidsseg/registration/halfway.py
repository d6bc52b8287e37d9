"""The halfway space of several scans of one head: rigid motions that favour none of them; requires SimpleITK.

Each pair of scans is registered in both directions, and the mean of both motions is used. The motions of all scans to
the space halfway between them are their mean in the Lie algebra of rigid motions. No result depends on the order of the
scans (Reuter et al. 2012, Within-subject template estimation, doi:10.1016/j.neuroimage.2012.02.084).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from nibabel.affines import apply_affine, from_matvec
from scipy import ndimage
from scipy.linalg import expm
from scipy.spatial.transform import Rotation

from bidsseg.errors import DataError, UsageError
from bidsseg.image.grid import content_box
from bidsseg.image.guard import refusal
from bidsseg.image.volume import Volume

ROUNDS = 30
"""Number of steps to the mean of several motions; each step reduces the error about tenfold."""
MARGIN_MM = 40.0
"""Margin of the halfway grid around all brains."""
AROUND_MM = 10.0
"""Margin of the brain in the registration."""
BLUR = 0.425
"""Standard deviation of a Gaussian, as a share of its full width at half maximum."""


@dataclass(frozen=True, eq=False)
class HalfwaySpace:
    """The grid halfway between several scans.

    Attributes:
        motions: for each scan the motion (4, 4) from its points to those of the space, RAS+ mm, rigid.
        shape: (X, Y, Z).
        affine: (4, 4), isotropic, with axes to the right, anterior and superior, RAS+ mm.
    """

    motions: Sequence[np.ndarray]
    shape: tuple[int, int, int]
    affine: np.ndarray

    def resampled(self, volume: Volume, motion: np.ndarray) -> np.ndarray:
        """Return an image on the grid (X, Y, Z), float32, interpolated once by cubic splines; 0 where it is 0 or ends.

        Args:
            motion: (4, 4) from the points of the image to those of the space, RAS+ mm.
        """
        spacing = float(np.cbrt(abs(np.linalg.det(self.affine[:3, :3]))))
        pull = np.linalg.inv(motion @ volume.affine) @ self.affine
        inside = self.seen(volume, motion)
        filled = np.asarray(volume.data != 0)
        if not filled.all():  # a constant background stays constant: splines swing beside an edge
            share = np.empty(self.shape, np.float32)
            ndimage.affine_transform(filled.astype(np.float32), pull[:3, :3], pull[:3, 3], output=share, order=1)
            inside &= share >= 0.5
        data = np.asarray(volume.data, np.float32)
        wider = np.sqrt(np.clip(spacing**2 - volume.spacing_mm**2, 0, None))  # otherwise, fine voxels would be skipped
        data = ndimage.gaussian_filter(data, BLUR * wider / volume.spacing_mm)
        found = np.empty(self.shape, np.float32)
        ndimage.affine_transform(data, pull[:3, :3], pull[:3, 3], output=found, order=3, mode="nearest")
        np.clip(found, data.min(), data.max(), out=found)
        return np.where(inside, found, np.float32(0))

    def seen(self, volume: Volume, motion: np.ndarray) -> np.ndarray:
        """Return the voxels of the grid that are in the field of view of an image, booleans (X, Y, Z)."""
        pull = np.linalg.inv(motion @ volume.affine) @ self.affine
        inside = np.ones(self.shape, bool)
        steps = [np.arange(n) for n in self.shape]
        for axis, size in enumerate(volume.shape):
            x, y, z = (pull[axis, i] * steps[i] for i in range(3))
            place = x[:, None, None] + y[None, :, None] + z[None, None] + pull[axis, 3]
            inside &= (place > -0.5 - 1e-6) & (place < size - 0.5 + 1e-6)
        return inside


def halfway_motions(brains: Sequence[Volume]) -> list[np.ndarray]:
    """Return the motion (4, 4) of each scan to the space halfway between all of them, RAS+ mm, rigid.

    Args:
        brains: images of one head in any poses, 0 around the brain, since scalp and neck move on their own.

    Raises:
        DataError: two of them do not overlap.
        UsageError: SimpleITK is not installed.
    """
    between = {(i, i): np.eye(4) for i in range(len(brains))}
    for i, j in itertools.combinations(range(len(brains)), 2):
        between[i, j] = symmetric_motion(brains[i], brains[j])
        between[j, i] = inverse(between[i, j])
    return mean_motions(between, len(brains))


def symmetric_motion(moving: Volume, fixed: Volume) -> np.ndarray:
    """Return the motion (4, 4) between two scans, RAS+ mm: the mean of the registrations in both directions."""
    try:
        from bidsseg.registration.linear import image_of, motion_of, search
    except ImportError as error:
        raise UsageError('the level longitudinal needs SimpleITK: pip install "bidsseg[flair]"') from error
    one, other = image_of(moving), image_of(fixed)
    try:
        there, back = motion_of(search(one, other)), motion_of(search(other, one))
    except RuntimeError as error:
        raise refusal("CANNOT_BE_ALIGNED", "two sessions cannot be aligned: are both of the same head?") from error
    return rigid((twist(there) - twist(back)) / 2)


def mean_motions(between: dict[tuple[int, int], np.ndarray], count: int) -> list[np.ndarray]:
    """Return the motions to the mean of several scans, from the motions (4, 4) between every two of them.

    Args:
        between: motion from the first to the second scan, also of each scan to itself.
    """
    if count == 2:
        half = twist(between[0, 1]) / 2
        return [rigid(half), rigid(-half)]
    motions = [rigid(sum((twist(between[i, j]) for j in range(count)), np.zeros(6)) / count) for i in range(count)]
    for _ in range(ROUNDS):
        # What is left of the motion to each other scan, half of which either scan should make.
        left = [
            sum((twist(motions[j] @ between[i, j] @ inverse(motions[i])) for j in range(count)), np.zeros(6)) / count
            for i in range(count)
        ]
        motions = [rigid(step) @ motion for step, motion in zip(left, motions, strict=True)]
        centre = sum((twist(motion) for motion in motions), np.zeros(6)) / count
        motions = [rigid(-centre) @ motion for motion in motions]
    return motions


def halfway_space(volumes: Sequence[Volume], brains: Sequence[np.ndarray], spacing_mm: float) -> HalfwaySpace:
    """Return the halfway space of scans, with a grid around the brains that all scans show.

    Args:
        brains: mask of each scan, booleans (X, Y, Z).

    Raises:
        DataError: the scans do not overlap.
        UsageError: SimpleITK is not installed.
    """
    motions = halfway_motions([brain_alone(*pair) for pair in zip(volumes, brains, strict=True)])
    placed = list(zip(volumes, brains, motions, strict=True))
    points = [apply_affine(motion @ volume.affine, np.argwhere(brain)) for volume, brain, motion in placed]
    low = np.min([found.min(0) for found in points], 0) - MARGIN_MM
    high = np.max([found.max(0) for found in points], 0) + MARGIN_MM
    for volume, _, motion in placed:  # no farther than the fields of view
        corners = np.stack(np.meshgrid(*[(-0.5, n - 0.5) for n in volume.shape]), -1).reshape(-1, 3)
        reach = apply_affine(motion @ volume.affine, corners)
        low, high = np.maximum(low, reach.min(0)), np.minimum(high, reach.max(0))
    if (high - low < spacing_mm).any():
        raise DataError("the sessions show different parts of the head")
    size = np.ceil((high - low) / spacing_mm - 1e-6).astype(int)
    origin = (low + high - (size - 1) * spacing_mm) / 2
    x, y, z = size.tolist()
    return HalfwaySpace(motions, (x, y, z), from_matvec(np.eye(3) * spacing_mm, origin))


def brain_alone(volume: Volume, brain: np.ndarray) -> Volume:
    """Return the part of an image around a mask (X, Y, Z), 0 outside of the mask."""
    low, high = np.array(content_box(brain)).T
    reach = np.ceil(AROUND_MM / volume.spacing_mm).astype(int)
    first, last = np.maximum(low - reach, 0), np.minimum(high + reach, volume.shape)
    part = tuple(map(slice, first, last))
    affine = volume.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ first
    return Volume(np.where(brain[part], volume.data[part], np.float32(0)), affine)


# -- rigid motions and their logarithms --------------------------------------------------------------------------------


def twist(motion: np.ndarray) -> np.ndarray:
    """Return the logarithm of a rigid motion (4, 4): a rotation vector (radians) and a velocity (mm), (6,)."""
    turn = Rotation.from_matrix(motion[:3, :3]).as_rotvec()
    angle = float(np.linalg.norm(turn))
    cross = skew(turn)
    if angle < 1e-6:
        left = np.eye(3) - cross / 2
    else:
        share = (1 - angle / 2 / np.tan(angle / 2)) / angle**2
        left = np.eye(3) - cross / 2 + share * cross @ cross
    return np.concatenate([turn, left @ motion[:3, 3]])


def rigid(logarithm: np.ndarray) -> np.ndarray:
    """Return the rigid motion (4, 4) with a logarithm (6,)."""
    if not logarithm.any():
        return np.eye(4)
    matrix = np.zeros((4, 4))
    matrix[:3, :3], matrix[:3, 3] = skew(logarithm[:3]), logarithm[3:]
    motion: np.ndarray = expm(matrix)
    return motion


def inverse(motion: np.ndarray) -> np.ndarray:
    """Return the inverse of a rigid motion (4, 4)."""
    back: np.ndarray = from_matvec(motion[:3, :3].T, -motion[:3, :3].T @ motion[:3, 3])
    return back


def skew(vector: np.ndarray) -> np.ndarray:
    """Return the matrix (3, 3) of the cross product with a vector (3,)."""
    x, y, z = vector
    return np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
