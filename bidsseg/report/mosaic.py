"""Mosaics: slices in three planes with regions in colour, small enough for a page of many scans."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from nibabel.orientations import apply_orientation, io_orientation
from PIL import Image, ImageDraw, ImageFont

from bidsseg.files import replacing
from bidsseg.image.volume import Volume

COLUMNS = 7
PIXELS_PER_MM = 1.25
MARGIN_MM = 10.0
FILL = 0.45
"""Opacity of the colour inside a region; its border is opaque."""
PLANES = ((2, 0, 1), (1, 0, 2), (0, 1, 2))
"""Axial, coronal, sagittal: the axis normal to the slice, then the axes to the right and upwards, in RAS+."""
DIRECTIONS = (("L", "R"), ("P", "A"), ("I", "S"))
SIDES = "#ffd060"
"""Colour of the names of the sides."""
GREY_STEP = 4
"""Step between shades of grey: smaller steps are invisible and make larger files."""
UNLISTED = (128, 128, 128)
"""Colour of a label without a colour."""


@dataclass(frozen=True, eq=False)
class Overlay:
    """The drawing over the image.

    Attributes:
        labels: integers or booleans (X, Y, Z) on the grid of the image; 0 is not drawn.
        colors: ``#rrggbb`` for each label.
        outline: draw only borders, over the image. Otherwise, regions are drawn without the image, to overlay on it.
        hollow: draw only the borders of the regions without the image.
    """

    labels: np.ndarray
    colors: Mapping[int, str]
    outline: bool = False
    hollow: bool = False


def write_mosaics(image: Volume, overlays: Mapping[Path, Overlay]) -> None:
    """Write one PNG for each overlay, all with the same slices.

    The slices span the labelled region, or the whole image without labels. Left is shown on the left.

    Args:
        image: intensities; any orientation and spacing.
    """
    orientation = io_orientation(image.affine)
    spacing = image.spacing_mm[np.argsort(orientation[:, 0])]
    data = apply_orientation(image.data, orientation)
    labels = {path: apply_orientation(overlay.labels, orientation) for path, overlay in overlays.items()}
    bounds = labelled_bounds(list(labels.values()), data.shape)
    rows = [Row.make(plane, data.shape, spacing, bounds=bounds, pixels_per_mm=PIXELS_PER_MM) for plane in PLANES]
    greys: list[list[np.ndarray]] = []
    for path, overlay in overlays.items():
        drawn = [row.drawn(labels[path], overlay) for row in rows]
        if not overlay.outline:
            write_png(_joined(rows, drawn), path)
            continue
        greys = greys or [row.greys(data, grey_window(data, bounds)) for row in rows]
        layers = [[_over(*pair) for pair in zip(*each, strict=True)] for each in zip(greys, drawn, strict=True)]
        write_png(_captioned(_joined(rows, layers), rows), path)


@dataclass(frozen=True)
class Row:
    """Slices of one plane, all cropped to the same box.

    Attributes:
        plane: one of PLANES.
        positions: voxel index of each slice along the axis normal to it.
        box: visible part of the three axes, in voxels; everything along the normal axis.
        size: width and height of a slice in pixels.
        spacing_mm: distance between voxels along the normal axis.
    """

    plane: tuple[int, int, int]
    positions: tuple[int, ...]
    box: tuple[slice, slice, slice]
    size: tuple[int, int]
    spacing_mm: float

    @classmethod
    def make(
        cls,
        plane: tuple[int, int, int],
        shape: Sequence[int],
        spacing: np.ndarray,
        *,
        bounds: Sequence[tuple[int, int]],
        pixels_per_mm: float,
        positions: Sequence[int] = (),
    ) -> Row:
        """Return equally spaced slices through the bounds, with a margin in the plane."""
        box = [slice(None)] * 3
        size = []
        for axis in plane[1:]:
            margin = round(MARGIN_MM / spacing[axis])
            first, last = max(bounds[axis][0] - margin, 0), min(bounds[axis][1] + margin, shape[axis] - 1)
            box[axis] = slice(first, last + 1)
            size.append(max(round((last + 1 - first) * spacing[axis] * pixels_per_mm), 1))
        first, last = bounds[plane[0]]
        chosen = tuple(positions) or np.linspace(first, last, COLUMNS + 2)[1:-1].round().astype(int)
        return cls(
            plane, tuple(map(int, chosen)), (box[0], box[1], box[2]), (size[0], size[1]), float(spacing[plane[0]])
        )

    def greys(self, data: np.ndarray, window: tuple[float, float]) -> list[np.ndarray]:
        """Return each slice as RGB (height, width, 3), from black at one end of the window to white at the other."""
        low, high = window
        pictures = []
        for position in self.positions:
            grey = np.clip((self._cut(data, position) - low) * (255 / (high - low)), 0, 255).astype(np.uint8)
            smooth = np.asarray(Image.fromarray(grey).resize(self.size, Image.Resampling.BICUBIC))
            pictures.append(np.repeat(smooth[..., None] // GREY_STEP * GREY_STEP, 3, axis=2))
        return pictures

    def drawn(self, labels: np.ndarray, overlay: Overlay) -> list[np.ndarray]:
        """Return the regions of each slice in colour, RGBA (height, width, 4)."""
        return [_draw(cut, overlay) for cut in self.enlarged(labels)]

    def enlarged(self, labels: np.ndarray) -> list[np.ndarray]:
        """Return the labels of each slice, integers (height, width)."""
        cuts = [Image.fromarray(self._cut(labels, position).astype(np.int32)) for position in self.positions]
        return [np.asarray(cut.resize(self.size, Image.Resampling.NEAREST)) for cut in cuts]

    def caption(self, position: int) -> str:
        """Return the distance of a slice from the middle slice of the row."""
        offset = (position - self.positions[len(self.positions) // 2]) * self.spacing_mm
        return f"{DIRECTIONS[self.plane[0]][int(offset > 0)]} {abs(offset):.0f} mm" if round(offset) else "0 mm"

    def _cut(self, volume: np.ndarray, position: int) -> np.ndarray:
        """Return one slice in voxels, with the higher end of the upright axis on top."""
        index: list[slice | int] = list(self.box)
        index[self.plane[0]] = position
        return volume[tuple(index)].T[::-1]


def labelled_bounds(labels: Sequence[np.ndarray], shape: Sequence[int]) -> list[tuple[int, int]]:
    """Return the first and last labelled voxel along each axis over all label maps; the whole axis without labels."""
    bounds = []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        used = np.zeros(shape[axis], bool)
        for array in labels:
            used |= array.any(axis=others)
        where = np.flatnonzero(used)
        bounds.append((int(where[0]), int(where[-1])) if where.size else (0, shape[axis] - 1))
    return bounds


def grey_window(data: np.ndarray, bounds: Sequence[tuple[int, int]]) -> tuple[float, float]:
    """Return the intensities for black and white: those within the bounds without extremes (fat, vessels)."""
    inside = data[tuple(slice(first, last + 1) for first, last in bounds)]
    step = max(round((inside.size / 1e6) ** (1 / 3)), 1)
    low, high = np.percentile(inside[::step, ::step, ::step], [1, 99.5])
    return float(low), float(max(high, low + 1e-6 * max(abs(low), 1)))


def _draw(labels: np.ndarray, overlay: Overlay) -> np.ndarray:
    """Return the regions of a slice in colour, RGBA (height, width, 4)."""
    border = np.zeros(labels.shape, bool)
    border[:-1] |= labels[:-1] != labels[1:]
    border[1:] |= labels[1:] != labels[:-1]
    border[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    border[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    table = np.full((int(labels.max()) + 1, 4), (*UNLISTED, 255), np.uint8)
    for label, color in overlay.colors.items():
        if label < len(table):
            table[label, :3] = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    inside = table.copy()
    inside[:, 3] = 0 if overlay.outline or overlay.hollow else round(255 * FILL)
    inside[0] = table[0] = 0
    packed: np.ndarray = np.concatenate([inside, table]).view(np.uint32)[labels + len(table) * border]
    return packed.view(np.uint8)


def _over(grey: np.ndarray, colored: np.ndarray) -> np.ndarray:
    """Return a picture RGB (height, width, 3) with another picture, RGBA, over it."""
    opacity = colored[..., 3:] / 255
    return (grey * (1 - opacity) + colored[..., :3] * opacity).astype(np.uint8)


def _joined(rows: Sequence[Row], slices: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """Return all slices, one plane in each row, (height, width, channels)."""
    width, height = max(row.size[0] for row in rows) * COLUMNS, sum(row.size[1] for row in rows)
    canvas = np.zeros((height, width, slices[0][0].shape[2]), np.uint8)
    for (_, _, left, top), picture in zip(_places(rows), itertools.chain(*slices), strict=True):
        canvas[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return canvas


def _places(rows: Sequence[Row]) -> Iterator[tuple[Row, int, int, int]]:
    """Yield for each slice its row, its number in the row, and the left and top of its position."""
    column, top = max(row.size[0] for row in rows), 0
    for row in rows:
        for i in range(COLUMNS):
            yield row, i, i * column + (column - row.size[0]) // 2, top
        top += row.size[1]


def _captioned(picture: np.ndarray, rows: Sequence[Row]) -> np.ndarray:
    """Return the picture with sides and positions written on it."""
    image = Image.fromarray(picture)
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(12)
    for row, i, left, top in _places(rows):
        width, height = row.size
        caption = row.caption(row.positions[i])
        pen.text((left + 3, top + height - 3), caption, fill="#c8c8c8", font=font, anchor="ls")
        if i == 0:
            name_sides(pen, row.plane, (left + 3, left + width - 3), top=top + 3, size=12)
    return np.asarray(image)


def name_sides(
    pen: ImageDraw.ImageDraw, plane: tuple[int, int, int], ends: tuple[int, int], *, top: int, size: int
) -> None:
    """Write the names of the left and right side of a slice at its upper corners.

    Args:
        plane: one of PLANES.
        ends: left and right end of the names (pixels).
        size: of the letters (pixels).
    """
    font = ImageFont.load_default(size)
    for name, x, anchor in zip(DIRECTIONS[plane[1]], ends, ("lt", "rt"), strict=True):
        pen.text((x, top), name, fill=SIDES, font=font, anchor=anchor)


def write_png(picture: np.ndarray, path: Path) -> None:
    """Write a PNG (height, width, 3 or 4), with a palette if there are few colours, which makes it small."""
    opaque = picture.shape[2] == 3
    packed = np.dstack([picture, np.full(picture.shape[:2], 255, np.uint8)]) if opaque else picture
    pixels = np.ascontiguousarray(packed).view(np.uint32).reshape(-1)
    starts = np.flatnonzero(np.append(True, pixels[1:] != pixels[:-1]))  # of pixels in a row that share a colour
    colors, index = np.unique(pixels[starts], return_inverse=True)
    image = Image.fromarray(picture)
    with replacing(path) as stream:
        if len(colors) > 256:
            (image.quantize(256, Image.Quantize.MAXCOVERAGE) if opaque else image).save(stream, format="PNG")
            return
        table = colors.view(np.uint8).reshape(-1, 4)
        indices = np.repeat(index.astype(np.uint8), np.diff(starts, append=pixels.size))
        small = Image.fromarray(indices.reshape(picture.shape[:2]), "P")
        small.putpalette(table[:, :3].tobytes())
        small.save(stream, format="PNG", **({} if opaque else {"transparency": table[:, 3].tobytes()}))
