"""Heads of asymmetrical blobs, which a registration can align, and rigid motions."""

import numpy as np
import phantoms
from nibabel.affines import apply_affine, from_matvec
from scipy import ndimage
from scipy.spatial.transform import Rotation

from bidsseg.image.volume import Volume

SHAPE = (48, 56, 48)
FIXED = phantoms.grid(4.0, "LAS", SHAPE, 10)
FIELD = ndimage.gaussian_filter(np.random.default_rng(4).normal(size=(60, 60, 60)), 3)
FIELD /= FIELD.std()
T1W, FLAIR = (0, 60, 100, 150), (0, 20, 130, 90)
"""Brightness of the background and of three tissues."""


def motion(distance_mm: float, angle_degrees: float) -> np.ndarray:
    """Return a rigid motion (4, 4) about the centre of the head, with an oblique axis and shift."""
    turn = Rotation.from_rotvec(angle_degrees * np.array([1.0, -2.0, 2.0]) / 3, degrees=True)
    rigid: np.ndarray = from_matvec(turn.as_matrix(), distance_mm * np.array([2.0, 1.0, -2.0]) / 3)
    return rigid


def blobs(affine: np.ndarray, shape: tuple[int, int, int], contrast: tuple[int, ...], seed: int = 0) -> Volume:
    """Return three tissues in asymmetrical blobs, in a ball of 80 mm about the centre, on a grid."""
    points = np.moveaxis(apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1)), -1, 0)
    field = ndimage.map_coordinates(FIELD, points / 4 + 29.5, order=1)
    tissue = np.where(np.linalg.norm(points, axis=0) < 80, 1 + np.digitize(field, (-0.5, 0.5)), 0)
    noise = np.random.default_rng(seed).normal(0, 3, shape)
    return Volume((np.array(contrast)[tissue] + noise).astype(np.float32), affine)
