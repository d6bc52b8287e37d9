"""Label maps from files, brought to the grid of the scan to which they belong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from bidsseg.errors import DataError, OtherGrid, UsageError
from bidsseg.image.mgh import is_mgh
from bidsseg.image.nifti import Source, name_of, read_image, read_labels, read_mask
from bidsseg.image.volume import ROUNDING, Volume, distance_in_voxels, in_order_of
from bidsseg.labels.protocol import Protocol
from bidsseg.registration.align import Images, align

TOLERANCE = 0.1
"""Largest distance between the voxels of a label map and those of its scan, in voxels of the scan."""

PROBABLE = 0.5
"""Least probability of a label in a map of probabilities."""

Note = Callable[[Path, str], None]
"""Receives a file and a remark for the user."""


class Remarks:
    """Remarks on files, reported once for all files with the same remark."""

    def __init__(self) -> None:
        self.files: dict[str, list[Path]] = {}

    def add(self, path: Path, remark: str) -> None:
        """Store a remark on a file."""
        self.files.setdefault(remark, []).append(path)

    def lines(self) -> Iterator[str]:
        """Yield one line for each remark."""
        for remark, paths in self.files.items():
            more = f" (and {len(paths) - 1} more label maps)" if len(paths) > 1 else ""
            yield f"{paths[0]}: {remark}{more}"


def read_on_grid(path: Path, images: Images, *, t1w: Path, flair: Path | None, note: Note) -> Volume:
    """Return a label map on the grid of the T1w of its scan.

    Accepted with a note: other storage order of the same grid; an affine that differs by less than a tenth of a voxel;
    the grid of the FLAIR, by the rigid alignment of that image; and, for files of FreeSurfer (``.mgz``), any grid in
    scanner space. Labels on other grids than that of the T1w are resampled by nearest neighbour. A FLAIR that is
    needed becomes one of the guides of the images.

    Args:
        images: images of the scan, on the grid of the T1w.
        t1w, flair: files of the scan.

    Raises:
        DataError: the file is not a label map, or is on another grid (OtherGrid).
    """
    labels, grid = read_values(path, note=note), images.volumes["T1w"]
    if (same := on_same_grid(labels, grid, note=partial(note, path))) is not None:
        return same
    if flair is not None:
        other, _ = read_image(flair)
        if distance_in_voxels(labels, other) < TOLERANCE:
            note(path, "drawn on the grid of the FLAIR, resampled to that of the T1w")
            images.guides.append(flair)
            return nearest(labels, grid, motion=_motion(other, images, note=lambda text: note(path, text)))
    if is_mgh(path):
        note(path, "resampled to the grid of the T1w, nearest neighbour")
        return nearest(labels, grid)
    raise OtherGrid(f"{path}: not on the grid of {t1w.name}")


def on_same_grid(
    labels: Volume, image: Volume, *, other: str = "the T1w", note: Callable[[str], None] = lambda text: None
) -> Volume | None:
    """Return labels whose voxels are those of an image, in its storage order; None if they are on another grid.

    Accepted with a note: another storage order, and voxels that are less than a tenth of a voxel away.

    Args:
        other: what the image is, for the notes.
    """
    found = in_order_of(labels, image, within=TOLERANCE)
    if found is None or labels.on_grid_of(image):
        return found
    if labels.orientation != image.orientation:
        note(f"stored as {labels.orientation} and not as {image.orientation} like {other}, accepted")
    if distance_in_voxels(labels, image) > ROUNDING:
        note(f"less than {TOLERANCE} voxels away from the grid of {other}, accepted")
    return found


def read_values(source: Source, *, note: Note, is_mask: bool = False) -> Volume:
    """Return a label map; in a mask, probabilities are labels from a threshold. DataError if the image is neither.

    Args:
        is_mask: whether it is a mask without a name that says so (``_mask``, ``_probseg``).
    """
    path = Path(name_of(source))
    try:
        return read_labels(source)
    except DataError:
        is_mask = is_mask or path.name.partition(".")[0].endswith(("_mask", "_probseg"))
        mask = read_mask(source, PROBABLE) if is_mask else None
        if mask is None:
            raise
    note(path, f"probabilities of at least {PROBABLE} are read as labels")
    return mask


def _motion(flair: Volume, images: Images, *, note: Callable[[str], None]) -> np.ndarray | None:
    """Return the rigid motion of the FLAIR to match the T1w; None, with a note, if SimpleITK is not installed."""
    if "FLAIR" in images.volumes:
        known = images.motions.get("FLAIR")
        return None if known is None else known.matrix
    try:
        _, motion = align(flair, images.volumes["T1w"])
    except UsageError as error:
        note(f"the FLAIR is not aligned, its position in the scanner is used: {error}")
        return None
    return None if motion is None else motion.matrix


def nearest(labels: Volume, image: Volume, *, motion: np.ndarray | None = None) -> Volume:
    """Return labels on the grid of an image, nearest neighbour in scanner space, 0 outside their field of view.

    Args:
        motion: (4, 4), from the position of a label to that in the image, RAS+ mm.
    """
    moved = labels.affine if motion is None else motion @ labels.affine
    matrix = np.linalg.inv(moved) @ image.affine
    found = np.zeros(image.shape, labels.data.dtype)
    rest = np.indices(image.shape[1:]).reshape(2, -1)
    for i in range(image.shape[0]):
        voxels = np.rint(matrix[:3, :1] * i + matrix[:3, 1:3] @ rest + matrix[:3, 3:]).astype(int)
        inside = ((voxels >= 0) & (voxels < np.array(labels.shape)[:, None])).all(0)
        found[i].reshape(-1)[inside] = labels.data[tuple(voxels[:, inside])]
    return Volume(found, image.affine, image.header)


def with_known_values(values: np.ndarray, protocol: Protocol, path: Path, *, note: Note) -> np.ndarray:
    """Return label values (X, Y, Z), with 1 for another value of a mask, such as 255.

    DataError for values outside the protocol.
    """
    shown = np.unique(values)
    if protocol.indices == (0, 1) and len(shown) == 2 and shown[0] == 0 and shown[1] > 1:
        note(path, f"the value {shown[1]} of the mask is read as 1")
        return np.where(values, np.uint8(1), np.uint8(0))
    if unknown := np.setdiff1d(shown, protocol.indices).tolist():
        raise DataError(f"{path}: the values {unknown[:5]} are not in the protocol {protocol.name}")
    return values
