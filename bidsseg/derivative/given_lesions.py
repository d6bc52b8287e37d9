"""Masks of lesions drawn by hand or by another tool (``--lesions``): found, and read on the grid of the T1w."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from bidsseg.bids.annotations import find_lesion_mask, shows_lesions
from bidsseg.bids.label_kinds import anat_images, places
from bidsseg.bids.names import parse_name, with_extension
from bidsseg.bids.scan import Scan
from bidsseg.errors import UsageError
from bidsseg.files import fingerprint
from bidsseg.reading import object_or_empty
from bidsseg.registration.align import Images

FLAG = "--lesions"
NO_T1W = "lesions are filled with the brightness of white matter in a T1w, and {} is none"
"""Why lesions are not filled in an image with a name."""


@dataclass(frozen=True)
class GivenLesions:
    """The given mask of the lesions of one scan.

    Attributes:
        folder: the derivative dataset that it is in.
        file: the mask; None if the folder has none of the scan.
    """

    folder: Path = Path()
    file: Path | None = None

    @cached_property
    def checksum(self) -> str:
        """The checksum of the mask; empty without a mask."""
        return fingerprint(self.file) if self.file is not None else ""

    @cached_property
    def manual(self) -> bool | None:
        """Whether a person drew the mask, as its sidecar says; None if it does not say."""
        content = object_or_empty(with_extension(self.file, ".json")) if self.file is not None else {}
        manual = content.get("Manual")
        return manual if isinstance(manual, bool) else None


def find_given_lesions(folder: Path | None, scan: Scan) -> GivenLesions:
    """Return the mask of a scan in a folder, see ``find_lesion_mask``; none if the user gives no folder."""
    return GivenLesions() if folder is None else GivenLesions(folder, find_lesion_mask(folder, scan))


def read_given_lesions(given: GivenLesions, images: Images, *, scan: Scan) -> np.ndarray | None:
    """Return the given lesions of a scan on the grid of the T1w, booleans (X, Y, Z); None if there is no mask.

    Differences are accepted, with a note among those of the images, as in training (``read_on_grid``). A mask with
    ``space-T1w`` in its name may have any grid: nearest neighbours are read in scanner space.

    Raises:
        DataError: the file is not a mask, or is on another grid.
    """
    from bidsseg.registration.label_files import nearest, read_on_grid, read_values

    if given.file is None:
        return None
    path, parsed = given.file, parse_name(given.file.name)

    def note(path: Path, text: str) -> None:
        images.notes.append(f"{path.name}: {text}")

    if parsed and parsed[0].get("space") == scan.modality:
        mask, t1w = read_values(path, note=note), images.volumes["T1w"]
        if not mask.on_grid_of(t1w):
            note(path, "resampled to the grid of the T1w, nearest neighbour")
            mask = nearest(mask, t1w)
    else:
        mask = read_on_grid(path, images, t1w=scan.t1w, flair=scan.flair, note=note)
    found: np.ndarray = mask.data > 0
    return found


def about_given_lesions(
    folder: Path | None, found: Sequence[tuple[Scan, GivenLesions]], *, all_selected: bool
) -> list[str]:
    """Return warnings about scans without a mask. UsageError if all scans of a dataset are selected and none has one.

    Args:
        folder: None without ``--lesions``.
        found: each scan that can be segmented, with its mask.
    """
    if folder is None:
        return []
    lacking = [scan.key for scan, given in found if given.file is None]
    if found and len(lacking) == len(found) and (all_selected or not _any_mask(folder)):
        raise UsageError(
            f"{FLAG} {folder}: no mask fits a scan: looked for sub-*/[ses-*/]anat/<T1w>_label-lesion_mask.nii.gz, "
            f"where <T1w> is e.g. {found[0][0].key}"
        )
    return [f"{key}: no mask of lesions in {folder}, segmented as without {FLAG}" for key in lacking]


def _any_mask(folder: Path) -> bool:
    return any(shows_lesions(image) for place in places(folder) for image in anat_images(folder, place))
