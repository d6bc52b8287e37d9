"""An image in memory: voxels and their position in space."""

from collections.abc import Sequence
from dataclasses import dataclass

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine, voxel_sizes
from nibabel.orientations import aff2axcodes

SAME_MM = 0.01
"""Largest distance along an axis between equal voxels of images on the same grid."""
ROUNDING = 1e-3
"""Distance between equal voxels, in voxels, that is due to rounding."""


@dataclass(frozen=True, eq=False)
class Volume:
    """Voxels and their position in space.

    Attributes:
        data: values, shape (X, Y, Z).
        affine: voxel index to RAS+ millimetres, shape (4, 4), float64.
        header: header of the source file, which contains more than the affine (qform, codes, units), so that outputs
            on this grid have exactly the same geometry. None for an image
            that does not come from a file.
    """

    data: np.ndarray
    affine: np.ndarray
    header: nib.Nifti1Header | None = None

    def __post_init__(self) -> None:
        if self.data.ndim != 3:
            raise ValueError(f"a volume has 3 axes, not {self.data.ndim}")
        affine = np.array(self.affine, dtype=np.float64)
        if affine.shape != (4, 4):
            raise ValueError(f"an affine has shape (4, 4), not {affine.shape}")
        object.__setattr__(self, "affine", affine)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Numbers of voxels along each axis."""
        x, y, z = self.data.shape
        return x, y, z

    @property
    def spacing_mm(self) -> np.ndarray:
        """Distance between neighbouring voxel centres along each axis, shape (3,), millimetres."""
        spacing: np.ndarray = voxel_sizes(self.affine)
        return spacing

    def on_grid_of(self, other: "Volume") -> bool:
        """Return whether the voxels have the same positions as those of another image, within 0.01 mm."""
        return same_grid((self.shape, self.affine), (other.shape, other.affine))

    def placed_as(self, other: "Volume") -> "Volume":
        """Return these voxels with the exact positions and the header of another image on the same grid.

        Axes of an oblique grid may otherwise be nearest to other directions by a rounding error, see ``canonical``.
        """
        return Volume(self.data, other.affine, other.header)

    @property
    def orientation(self) -> str:
        """Anatomical direction of each increasing index, e.g. ``'LAS'``."""
        return "".join(aff2axcodes(self.affine))

    @property
    def voxel_volume_mm3(self) -> float:
        """Volume of one voxel, cubic millimetres."""
        return float(abs(np.linalg.det(self.affine[:3, :3])))


@dataclass(frozen=True, eq=False)
class Field:
    """Displacement vectors on the voxels of a grid.

    Attributes:
        vectors: from the place of a voxel to another point, shape (X, Y, Z, 3), RAS+ millimetres.
        affine: voxel index to RAS+ millimetres, shape (4, 4).
    """

    vectors: np.ndarray
    affine: np.ndarray


def corner_voxels(shape: Sequence[int]) -> np.ndarray:
    """Return the indices of the corner voxels of a grid, shape (8, 3)."""
    found: np.ndarray = np.array(list(np.ndindex(2, 2, 2))) * (np.array(shape) - 1)
    return found


def same_grid(one: tuple[Sequence[int], np.ndarray], other: tuple[Sequence[int], np.ndarray]) -> bool:
    """Return whether two grids have the same voxels, within SAME_MM.

    Args:
        one, other: number of voxels (X, Y, Z), and voxel index to RAS+ millimetres, shape (4, 4).
    """
    (shape, affine), (other_shape, other_affine) = one, other
    if tuple(shape) != tuple(other_shape):
        return False
    corners = corner_voxels(shape)
    apart = apply_affine(affine, corners) - apply_affine(other_affine, corners)
    return bool((np.abs(apart) <= SAME_MM).all())


def places(shape: Sequence[int], affine: np.ndarray) -> np.ndarray:
    """Return the positions of the voxels of a grid, shape (X, Y, Z, 3), RAS+ millimetres."""
    positions: np.ndarray = apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1))
    return positions


def canonical(data: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Return the array (X, Y, Z) with its axes permuted and flipped to R, A, S (nearest)."""
    turned: np.ndarray = nib.orientations.apply_orientation(data, nib.orientations.io_orientation(affine))
    return turned


def canonical_shape(volume: Volume) -> tuple[int, ...]:
    """Return the numbers of voxels (3,) along R, A, S."""
    return canonical(np.empty(volume.shape, np.uint8), volume.affine).shape


def canonical_affine(volume: Volume) -> np.ndarray:
    """Return the affine (4, 4) of a volume after its axes are brought to R, A, S."""
    orientation = nib.orientations.io_orientation(volume.affine)
    affine: np.ndarray = volume.affine @ nib.orientations.inv_ornt_aff(orientation, volume.shape)
    return affine


def from_canonical(data: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Return the array in the axes of the scan: the inverse of canonical."""
    ras, native = nib.orientations.axcodes2ornt("RAS"), nib.orientations.io_orientation(affine)
    turned: np.ndarray = nib.orientations.apply_orientation(data, nib.orientations.ornt_transform(ras, native))
    return turned


def distance_in_voxels(volume: Volume, other: Volume) -> float:
    """Return the largest distance between equal voxels of two grids, in voxels of the other, whatever their order.

    It is infinite if the grids have different numbers of voxels.
    """
    shape = canonical_shape(volume)
    if shape != canonical_shape(other):
        return np.inf
    corners = corner_voxels(shape)
    ours, theirs = canonical_affine(volume), canonical_affine(other)
    apart = np.abs(apply_affine(np.linalg.inv(theirs) @ ours, corners) - corners)
    return float(apart.max())


def in_order_of(volume: Volume, other: Volume, *, within: float = ROUNDING) -> Volume | None:
    """Return a volume in the storage order of another image that has the same voxels; None if it is on another grid.

    Args:
        within: distance between equal voxels, in voxels of the other, that is accepted.
    """
    if volume.on_grid_of(other):
        return volume.placed_as(other)
    if distance_in_voxels(volume, other) >= within:
        return None
    data = from_canonical(canonical(volume.data, volume.affine), other.affine)
    return Volume(data, other.affine, other.header)
