"""Standard spaces: templates of TemplateFlow, the fit of a scan to one, and label maps on its grid.

Ciric et al. 2022, TemplateFlow, doi:10.1038/s41592-022-01681-2. The files are those of its cache; what is missing there
is fetched once by its own client, where there is a network.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from scipy import ndimage

from bidsseg.errors import DataError, InputMissing, UsageError
from bidsseg.image.nifti import read_image, read_labels
from bidsseg.image.volume import Volume


@dataclass(frozen=True)
class Space:
    """A template at one resolution.

    Attributes:
        template: its name in TemplateFlow.
        resolution: TemplateFlow's number of the resolution, e.g. ``1``.
        image, brain: its T1w and brain mask.
    """

    template: str
    resolution: str
    image: Path
    brain: Path

    @property
    def entities(self) -> dict[str, str]:
        """Those that outputs in this space have in their names."""
        return {"space": self.template, "res": self.resolution}

    @property
    def reference(self) -> str:
        """Where the image can be found by anyone."""
        return f"https://templateflow.s3.amazonaws.com/tpl-{self.template}/{self.image.name}"


def find_space(word: str) -> Space:
    """The space of a word such as ``MNI152NLin2009cAsym`` or ``MNI152NLin2009cAsym:res-2`` (1 without a resolution).

    Raises:
        UsageError: the word is not of that form.
        InputMissing: its files are not in the cache and cannot be fetched.
    """
    match = re.fullmatch(r"([A-Za-z0-9]+)(?::res-0*([1-9]\d*))?", word)
    if not match:
        raise UsageError(f"output space '{word}': give TEMPLATE or TEMPLATE:res-NUMBER, e.g. MNI152NLin2009cAsym:res-1")
    template, resolution = match[1], int(match[2] or 1)
    folder = cache() / f"tpl-{template}"
    stem = f"tpl-{template}_res-{resolution:02d}"
    files = [folder / f"{stem}_T1w.nii.gz", folder / f"{stem}_desc-brain_mask.nii.gz"]
    if not all(map(is_there, files)):
        fetch(template, resolution)
    missing = [path for path in files if not is_there(path)]
    if missing:
        raise InputMissing(
            f'output space {word}: {missing[0]} is not there; fetch it where there is a network (python -c "from '
            f"templateflow.api import get; get('{template}', resolution={resolution})\") and set TEMPLATEFLOW_HOME"
        )
    return Space(template, str(resolution), *files)


def cache() -> Path:
    """TemplateFlow's folder: what the user says, else that of the image, else the usual one."""
    inside = Path(sys.prefix) / "templateflow"
    usual = inside if inside.is_dir() else Path.home() / ".cache" / "templateflow"
    return Path(os.environ.get("TEMPLATEFLOW_HOME") or usual)


def is_there(path: Path) -> bool:
    """Whether a file has content: the client fills its cache with empty files."""
    return path.is_file() and path.stat().st_size > 0


def fetch(template: str, resolution: int) -> None:
    """Asks TemplateFlow's client for the files; whatever keeps it from that, they are not there then."""
    try:
        from templateflow import api

        api.get(template, resolution=resolution, suffix="T1w", desc=None, extension=".nii.gz")
        api.get(template, resolution=resolution, suffix="mask", desc="brain", extension=".nii.gz")
    except Exception:  # no network, a cache that cannot be written, a name it does not know
        return


def fit_to(space: Space, t1w: Volume, brain: np.ndarray) -> tuple[Volume, np.ndarray]:
    """The template's brain mask, whose grid is the space's, and the affine motion (4, 4) of the scan to it, RAS+ mm.

    Brains are compared, without what is around them.

    Raises:
        UsageError: SimpleITK is needed and not installed.
        DataError: the two do not overlap.
    """
    try:
        from bidsseg.image.linear import fit
    except ImportError as error:
        raise UsageError('--output-spaces needs SimpleITK: pip install "bidsseg[flair]"') from error
    mask, fixed = template_brain(space)
    moving = Volume(np.where(brain, t1w.data, 0), t1w.affine)
    try:
        return mask, fit(moving, fixed)
    except RuntimeError as error:
        raise DataError(f"the brain cannot be fitted to {space.template}: {error}") from error


@lru_cache(1)
def template_brain(space: Space) -> tuple[Volume, Volume]:
    """The brain mask of a template, and its image without what is around the brain."""
    template, mask = read_image(space.image)[0], read_labels(space.brain)
    return mask, Volume(np.where(mask.data > 0, template.data, 0), template.affine)


def labels_in(grid: Volume, labels: np.ndarray, affine: np.ndarray, motion: np.ndarray) -> np.ndarray:
    """A label map (X, Y, Z) on another grid, after a motion (4, 4): at each voxel the label of the highest probability.

    That of a label is the linear interpolation of where it is and where not.
    """
    to_source = np.linalg.inv(affine) @ np.linalg.inv(motion) @ grid.affine
    result = np.zeros(grid.shape, labels.dtype)
    best = interpolated(labels == 0, to_source, grid.shape, outside=1.0)
    for label, box in enumerate(ndimage.find_objects(labels), 1):
        if box is None:
            continue
        place = box_of(box, to_source, grid.shape)
        share = interpolated(labels == label, to_source, grid.shape, place)
        higher = share > best[place]
        result[place][higher] = label
        best[place][higher] = share[higher]
    return result


def interpolated(
    mask: np.ndarray,
    to_source: np.ndarray,
    shape: Sequence[int],
    place: tuple[slice, ...] = (slice(None),) * 3,
    outside: float = 0.0,
) -> np.ndarray:
    """A mask as probabilities in a part of another grid, whose voxels a matrix (4, 4) takes to those of the mask."""
    first = [part.indices(n)[0] for part, n in zip(place, shape, strict=True)]
    size = [part.indices(n)[1] - start for part, n, start in zip(place, shape, first, strict=True)]
    offset = to_source[:3, :3] @ np.array(first) + to_source[:3, 3]
    return ndimage.affine_transform(
        mask.astype(np.float32), to_source[:3, :3], offset, tuple(size), order=1, mode="constant", cval=outside
    )


def box_of(box: tuple[slice, ...], to_source: np.ndarray, shape: Sequence[int]) -> tuple[slice, ...]:
    """The part of a grid that a box of the source reaches, a voxel around it included."""
    ends = [(part.start - 1, part.stop) for part in box]
    corners = np.array(np.meshgrid(*ends, indexing="ij")).reshape(3, -1)
    back = np.linalg.inv(to_source)
    reached = back[:3, :3] @ corners + back[:3, 3:]
    low = np.clip(np.floor(reached.min(1)).astype(int), 0, np.array(shape))
    high = np.clip(np.ceil(reached.max(1)).astype(int) + 1, 0, np.array(shape))
    return tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
