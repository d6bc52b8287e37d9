"""A picture of the largest lesions of a scan: one axial slice of each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from nibabel.orientations import apply_orientation, io_orientation
from PIL import Image, ImageDraw, ImageFont

from bidsseg.files import remove
from bidsseg.image.volume import Volume
from bidsseg.report.mosaic import PLANES, Overlay, Row, grey_window, labelled_bounds, name_sides, write_png

SHOWN = 6
"""Largest number of lesions in the picture."""
COLUMNS = 3
PIXELS_PER_MM = 2.0
LESION, CHOSEN = 1, 2
COLORS = {LESION: "#e01010", CHOSEN: "#00c8ff"}


def write_lesion_figure(path: Path, image: Volume, lesion: np.ndarray, *, brain: np.ndarray) -> None:
    """Write a PNG with the slices of the largest lesions, in which all are outlined; remove it if there are none.

    Each slice is that with most voxels of its lesion. Left is shown on the left.

    Args:
        image: the background: the FLAIR on the grid of the T1w where there is one, otherwise the T1w.
        lesion, brain: masks (X, Y, Z) on the same grid.
    """
    if not lesion.any():
        remove([path])
        return
    from bidsseg.segmentation.lesions import numbered

    orientation = io_orientation(image.affine)
    spacing = image.spacing_mm[np.argsort(orientation[:, 0])]
    data = apply_orientation(image.data, orientation)
    lesions = apply_orientation(numbered(lesion), orientation)
    bounds = labelled_bounds([apply_orientation(brain | lesion, orientation)], data.shape)
    window = grey_window(data, bounds)
    tiles = []
    for index in range(1, min(int(lesions.max()), SHOWN) + 1):
        chosen = lesions == index
        position = int(chosen.sum((0, 1)).argmax())
        row = Row.make(PLANES[0], data.shape, spacing, bounds=bounds, positions=[position], pixels_per_mm=PIXELS_PER_MM)
        shown = np.where(chosen, CHOSEN, lesions > 0).astype(np.uint8)
        tiles.append(
            _tile(row.greys(data, window)[0], row.drawn(shown, Overlay(shown, COLORS, outline=True))[0], index)
        )
    write_png(_grid(tiles), path)


def _tile(grey: np.ndarray, drawn: np.ndarray, index: int) -> np.ndarray:
    """Return a slice RGB (height, width, 3) with the outlines, the number of the lesion and both sides."""
    opacity = drawn[..., 3:] / 255
    picture = Image.fromarray((grey * (1 - opacity) + drawn[..., :3] * opacity).astype(np.uint8))
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(14)
    name_sides(pen, PLANES[0], (4, picture.width - 4), top=4, size=14)
    pen.text((4, picture.height - 4), f"lesion {index}", fill=COLORS[CHOSEN], font=font, anchor="ls")
    return np.asarray(picture)


def _grid(tiles: list[np.ndarray]) -> np.ndarray:
    """Return pictures of one size (height, width, 3) in rows of three."""
    height, width, channels = tiles[0].shape
    rows = -(-len(tiles) // COLUMNS)
    canvas = np.zeros((rows * height, min(len(tiles), COLUMNS) * width, channels), np.uint8)
    for place, tile in enumerate(tiles):
        top, left = place // COLUMNS * height, place % COLUMNS * width
        canvas[top : top + height, left : left + width] = tile
    return canvas
