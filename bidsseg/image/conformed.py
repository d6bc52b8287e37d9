"""The grid that FreeSurfer conforms images to, and writing of its MGH files."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from nibabel.affines import apply_affine, from_matvec
from nibabel.freesurfer.mghformat import MGHImage
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform

from bidsseg.files import replacing
from bidsseg.image.volume import Volume

SIZE = 256
"""Least number of voxels along each axis."""
AXES = ("L", "I", "A")
DIRECTIONS = np.array([[-1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]])
"""The RAS+ directions of these axes, by column."""
COMPRESSION = 4
"""gzip level."""
BRIGHTEST = 99.9
"""Percentile of the intensities above 0 that becomes 255."""


@dataclass(frozen=True)
class ConformedGrid:
    """Cubic grid of 1 mm voxels, axes left, inferior, anterior, centred like the image that it was made for.

    Attributes:
        size: voxels along each axis, at least SIZE, more if the image is longer or the brain does not fit.
        affine: voxel index to RAS+ mm, shape (4, 4).
    """

    size: int
    affine: np.ndarray

    @staticmethod
    def of(image: Volume, brain: np.ndarray) -> ConformedGrid:
        """Return the grid for an image, which contains its brain, booleans (X, Y, Z).

        As in FreeSurfer, the longest edge of the image counts, however it is turned, so that corners may be cut.
        """
        centre = apply_affine(image.affine, np.array(image.shape) / 2)
        reach = np.abs(apply_affine(image.affine, np.argwhere(brain)) - centre).max(initial=0)
        longest = (image.spacing_mm * image.shape).max()
        size = max(SIZE, 2 * int(np.ceil(max(longest / 2 - 1e-3, reach))))
        return ConformedGrid(size, from_matvec(DIRECTIONS, centre - DIRECTIONS @ np.full(3, size / 2)))

    def intensities(self, image: Volume) -> np.ndarray:
        """Return an image as bytes on the grid, linearly interpolated, 0 outside of its field of view."""
        above = image.data[image.data > 0]
        brightest = float(np.percentile(above, BRIGHTEST)) if above.size else 1.0
        scaled = np.clip(image.data * (255 / brightest), 0, 255) + 0.5  # rounded when it becomes an integer
        return self._resampled(scaled.astype(np.float32), image.affine, order=1, dtype=np.dtype(np.uint8))

    def labels(self, labels: Volume) -> np.ndarray:
        """Return the label of the nearest voxel, 0 outside of the field of view: bytes, or int32 if one is over 255."""
        dtype = np.dtype(np.uint8 if labels.data.max() < 256 else np.int32)
        return self._resampled(labels.data.astype(dtype), labels.affine, order=0, dtype=dtype)

    def _resampled(self, data: np.ndarray, affine: np.ndarray, *, order: int, dtype: np.dtype) -> np.ndarray:
        """Return values on the grid; axes that are parallel to those of the grid are interpolated separately."""
        from scipy.ndimage import affine_transform

        turned = ornt_transform(io_orientation(affine), axcodes2ornt(AXES))
        affine = affine @ inv_ornt_aff(turned, data.shape)
        matrix = np.linalg.inv(affine) @ self.affine
        linear = matrix[:3, :3]
        parallel = np.allclose(linear, np.diag(np.diag(linear)), atol=1e-6)
        oriented, found = apply_orientation(data, turned), np.zeros((self.size,) * 3, dtype)
        # The voxels that the image reaches; for all others, the interpolation would only compute zeros.
        reached = apply_affine(np.linalg.inv(matrix), list(product(*[(-1, length) for length in oriented.shape])))
        start = np.clip(np.floor(reached.min(0)), 0, self.size).astype(int)
        stop = np.clip(np.ceil(reached.max(0)) + 1, start, self.size).astype(int)
        affine_transform(
            oriented,
            np.diag(linear) if parallel else linear,
            apply_affine(matrix, start),
            output=found[tuple(map(slice, start, stop))],
            order=order,
            mode="grid-constant",
            prefilter=False,
        )
        return found


def write_mgh(path: Path, data: np.ndarray, affine: np.ndarray) -> None:
    """Write a compressed MGH file, whole or not at all; the same bytes for the same voxels.

    Args:
        data: bytes, int16, int32 or float32, shape (X, Y, Z).
        affine: voxel index to RAS+ mm, shape (4, 4).
    """
    image = MGHImage(data, affine)
    with (
        replacing(path) as stream,
        gzip.GzipFile(filename="", mode="wb", compresslevel=COMPRESSION, fileobj=stream, mtime=0) as zipped,
    ):
        zipped.write(image.to_bytes())
