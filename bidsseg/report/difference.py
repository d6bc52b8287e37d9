"""Pictures of the slices in which two label maps differ most, with the outlines of both maps."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from nibabel.orientations import apply_orientation, io_orientation
from PIL import Image, ImageDraw

from bidsseg.image.volume import Volume
from bidsseg.report.mosaic import PLANES, Row, grey_window, labelled_bounds, name_sides

PIXELS_PER_MM = 2.5
FOUND, REFERENCE, BOTH = (255, 140, 26), (51, 187, 255), (255, 255, 255)
"""Colours of the outlines of the found map, of the reference, and of voxels where both coincide."""
GAP = 14
"""Pixels between slices."""


def difference_picture(found: Volume, reference: Volume, image: Volume | None) -> bytes:
    """Return a PNG of an axial, a coronal and a sagittal slice, each with the most differing voxels of its plane.

    If the maps are equal, each has the most labelled voxels.

    Args:
        found, reference: label maps on one grid.
        image: intensities on the same grid; None for a black background.
    """
    orientation = io_orientation(reference.affine)
    spacing = reference.spacing_mm[np.argsort(orientation[:, 0])]
    one, other = (apply_orientation(volume.data, orientation) for volume in (found, reference))
    ground = np.zeros(one.shape, np.float32) if image is None else apply_orientation(image.data, orientation)
    bounds = labelled_bounds([one, other], one.shape)
    window = grey_window(ground, bounds)
    differ = one != other
    weight = differ if differ.any() else one > 0
    pictures = []
    for plane in PLANES:
        counts = weight.sum(plane[1:])
        row = Row.make(
            plane, one.shape, spacing, bounds=bounds, positions=[int(counts.argmax())], pixels_per_mm=PIXELS_PER_MM
        )
        picture = row.greys(ground, window)[0]
        outlines = [outline(row.enlarged(labels)[0]) for labels in (one, other)]
        picture[outlines[0]], picture[outlines[1]] = FOUND, REFERENCE
        picture[outlines[0] & outlines[1]] = BOTH
        pictures.append(_with_sides(picture, plane))
    stream = io.BytesIO()
    Image.fromarray(_side_by_side(pictures)).quantize(128).save(stream, format="PNG", optimize=True)
    return stream.getvalue()


def outline(labels: np.ndarray) -> np.ndarray:
    """Return a mask (height, width) of the pixels of a slice whose upper or left neighbour has another label."""
    border = np.zeros(labels.shape, bool)
    border[1:] = labels[1:] != labels[:-1]
    border[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    return border


def _with_sides(picture: np.ndarray, plane: tuple[int, int, int]) -> np.ndarray:
    """Return a picture (height, width, 3) with the names of both sides in its upper corners."""
    image = Image.fromarray(picture)
    name_sides(ImageDraw.Draw(image), plane, (4, image.width - 4), top=4, size=14)
    return np.asarray(image)


def _side_by_side(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Return one picture with pictures (height, width, 3) side by side, centred vertically, with a gap after each."""
    height = max(picture.shape[0] for picture in pictures)
    padded = []
    for picture in pictures:
        above = (height - picture.shape[0]) // 2
        below = height - picture.shape[0] - above
        padded.append(np.pad(picture, ((above, below), (0, GAP), (0, 0))))
    return np.concatenate(padded, axis=1)
