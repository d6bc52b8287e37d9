"""Annotations read from files: brought to the grid of their scan, and checked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from nibabel.affines import apply_affine
from nibabel.orientations import inv_ornt_aff, io_orientation

from bidsseg.bids.scan import Scan
from bidsseg.errors import DataError, UsageError
from bidsseg.image.grid import canonical, from_canonical
from bidsseg.image.mgh import is_mgh
from bidsseg.image.nifti import read_image, read_labels, read_mask
from bidsseg.image.volume import Volume
from bidsseg.labels import Protocol
from bidsseg.labels.sides import LEFT
from bidsseg.learning.cases import Annotation
from bidsseg.registration.align import Images, align

TOLERANCE = 0.1
"""Largest distance between the voxels of a label map and those of its scan, in voxels of the scan."""

PROBABLE = 0.5
"""Least probability of a label in a map of probabilities."""
SAME = 1e-3
"""Distance, in voxels, that is due to rounding."""
CLOSE_MM = 1.0
"""Left and right regions whose centres are this close lie on neither side."""

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


def read_annotation(path: Path, scan: Scan, images: Images, *, note: Note) -> Volume:
    """Return a label map on the grid of the T1w of its scan.

    Accepted with a note: other storage order of the same grid; an affine that differs by less than a tenth of a voxel;
    the grid of the FLAIR, by the rigid alignment of that image; and, for files of FreeSurfer (``.mgz``), any grid in
    scanner space. Labels on other grids than that of the T1w are resampled by nearest neighbour.

    Raises:
        DataError: the file is not a label map, or is on another grid.
    """
    labels, t1w = read_values(path, note=note), images.volumes["T1w"]
    if labels.on_grid_of(t1w):
        return labels
    if (distance := distance_in_voxels(labels, t1w)) < TOLERANCE:
        if labels.orientation != t1w.orientation:
            note(path, f"stored as {labels.orientation} and not as {t1w.orientation} like the T1w, accepted")
        if distance > SAME:
            note(path, f"less than {TOLERANCE} voxels away from the grid of the T1w, accepted")
        return Volume(from_canonical(canonical(labels.data, labels.affine), t1w.affine), t1w.affine, t1w.header)
    if scan.flair is not None:
        flair, _ = read_image(scan.flair)
        if distance_in_voxels(labels, flair) < TOLERANCE:
            note(path, "drawn on the grid of the FLAIR, resampled to that of the T1w")
            return nearest(labels, t1w, motion=_motion(flair, images, note=lambda text: note(path, text)))
    if is_mgh(path):
        note(path, "resampled to the grid of the T1w, nearest neighbour")
        return nearest(labels, t1w)
    raise DataError(f"{path}: not on the grid of {scan.t1w.name}")


def read_values(path: Path, *, note: Note) -> Volume:
    """Return a label map; in a mask (``_mask``, ``_probseg``), probabilities are labels from a threshold.

    DataError if the file is neither.
    """
    try:
        return read_labels(path)
    except DataError:
        is_mask = path.name.partition(".")[0].endswith(("_mask", "_probseg"))
        mask = read_mask(path, PROBABLE) if is_mask else None
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


def distance_in_voxels(labels: Volume, image: Volume) -> float:
    """Return the largest distance between equal voxels of two grids, in voxels of the image, whatever their order.

    It is infinite if the grids have different numbers of voxels.
    """
    ours, theirs = (_canonical_grid(each) for each in (labels, image))
    if ours[0] != theirs[0]:
        return np.inf
    corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(ours[0]) - 1)
    apart = np.abs(apply_affine(np.linalg.inv(theirs[1]) @ ours[1], corners) - corners)
    return float(apart.max())


def _canonical_grid(volume: Volume) -> tuple[tuple[int, ...], np.ndarray]:
    """Return shape and affine of a volume with axes to R, A, S."""
    order = io_orientation(volume.affine)
    shape = canonical(np.empty(volume.shape, np.uint8), volume.affine).shape
    return shape, volume.affine @ inv_ornt_aff(order, volume.shape)


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


def annotation_of(values: np.ndarray, protocol: Protocol, path: Path, *, note: Note) -> Annotation:
    """Return label values (X, Y, Z) on a 1 mm RAS grid as an annotation.

    A mask may have another value than 1, such as 255.

    Raises:
        DataError: values outside the protocol, or left and right exchanged.
    """
    shown = np.unique(values)
    if protocol.indices == (0, 1) and len(shown) == 2 and shown[0] == 0 and shown[1] > 1:
        note(path, f"the value {shown[1]} of the mask is read as 1")
        values = (values != 0).astype(np.uint8)
    annotation = Annotation(protocol, positions(values, protocol, str(path)))
    if region := exchanged(annotation):
        raise DataError(
            f"{path}: left and right are exchanged ('{region}' lies on the other side): flip the labels, or correct "
            "the table or the affine"
        )
    return annotation


def exchanged(annotation: Annotation) -> str | None:
    """Return the name of a left region that lies to the right of its partner, if this holds for most pairs."""
    protocol = annotation.protocol
    lefts = [i for i, hemisphere in enumerate(protocol.hemispheres) if hemisphere == LEFT]
    pairs = [(i, j) for i in lefts if (j := protocol.sides[i]) not in (None, i)]
    if not pairs:
        return None
    values = annotation.values.long()
    planes = torch.stack([torch.bincount(plane.flatten(), minlength=len(protocol.regions)) for plane in values])
    count = planes.sum(0).double()
    middle = (planes * torch.arange(len(planes))[:, None]).sum(0) / count
    drawn = [(i, j) for i, j in pairs if count[i] > 0 and count[j] > 0]
    wrong = [i for i, j in drawn if middle[i] > middle[j] + CLOSE_MM]
    return protocol.regions[wrong[0]].name if 2 * len(wrong) > len(drawn) else None


def positions(values: np.ndarray, protocol: Protocol, where: str) -> torch.Tensor:
    """Return label values (X, Y, Z) as positions in the protocol's table; DataError for values outside the protocol."""
    unknown = np.setdiff1d(values, protocol.indices).tolist()
    if unknown:
        raise DataError(f"{where}: the values {unknown[:5]} are not in the protocol {protocol.name}")
    table = np.zeros(max(protocol.indices) + 1, np.uint8 if len(protocol.indices) <= 256 else np.int16)
    table[list(protocol.indices)] = np.arange(len(protocol.indices))
    return torch.from_numpy(np.ascontiguousarray(table[values]))
