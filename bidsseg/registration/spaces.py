"""Standard spaces: templates of TemplateFlow, the registration of a scan to them, and label maps on their grids.

Ciric et al. 2022, TemplateFlow, doi:10.1038/s41592-022-01681-2. Files are read from its cache; missing files
are downloaded once by its own client, if there is a network.
"""

from __future__ import annotations

import itertools
import os
import re
import sys
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
from nibabel.affines import apply_affine

from bidsseg.errors import DataError, InputMissing, UsageError
from bidsseg.image.nifti import read_image, read_labels
from bidsseg.image.volume import Field, Volume, places
from bidsseg.registration.templateflow import check_is_volume, check_template


@dataclass(frozen=True)
class Space:
    """A template at one resolution.

    Attributes:
        template: its name in TemplateFlow.
        resolution: TemplateFlow's number of the resolution, e.g. ``1``.
        image, brain: its T1w and brain mask.
        affine: whether the registration is only affine.
    """

    template: str
    resolution: str
    image: Path
    brain: Path
    affine: bool = False

    @property
    def words(self) -> dict[str, str]:
        """Return the entities for the names of outputs in this space."""
        return {"space": self.template, "res": self.resolution, "transform": ".txt" if self.affine else ".nii.gz"}

    @property
    def reference(self) -> str:
        """Return a public reference to the image."""
        return f"https://templateflow.s3.amazonaws.com/tpl-{self.template}/{self.image.name}"


@dataclass(frozen=True, eq=False)
class Fit:
    """The registration of a scan to a template.

    Attributes:
        grid: the template's brain mask, which defines the voxels of the space.
        motion: affine, (4, 4), from points of the scan to those of the template, RAS+ mm.
        field: from points of the template to those of the scan; None for an affine registration.
    """

    grid: Volume
    motion: np.ndarray
    field: Field | None

    @cached_property
    def points(self) -> np.ndarray:
        """Return the point of the scan for each voxel of the grid, (X, Y, Z, 3), RAS+ mm."""
        here = places(self.grid.shape, self.grid.affine).astype(np.float32)
        if self.field is None:
            moved: np.ndarray = apply_affine(np.linalg.inv(self.motion), here)
            return moved
        from scipy import ndimage

        index = np.moveaxis(apply_affine(np.linalg.inv(self.field.affine), here), -1, 0)
        for axis in range(3):
            vectors = self.field.vectors[..., axis]
            here[..., axis] += ndimage.map_coordinates(vectors, index, order=1, mode="nearest")
        return here


def find_space(word: str) -> Space:
    """Return the space named by e.g. ``MNI152NLin2009cAsym`` (at resolution 1) or ``MNI152NLin2009cAsym:res-2:affine``.

    Raises:
        UsageError: the name is invalid, TemplateFlow has no such volume, or SimpleITK is not installed.
        InputMissing: the files are not in the cache and cannot be downloaded.
    """
    match = re.fullmatch(r"([A-Za-z0-9]+)(?::res-0*([1-9]\d*))?(:affine)?", word)
    if not match:
        raise UsageError(f"output space '{word}': give TEMPLATE[:res-NUMBER][:affine], e.g. MNI152NLin2009cAsym:res-1")
    template, resolution = match[1], int(match[2] or 1)
    try:
        check_is_volume(template)
        found = stored(template, resolution)
        if found is None:
            check_template(template, resolution, (path.name[4:] for cache in caches() for path in cache.glob("tpl-*")))
    except UsageError as error:
        raise UsageError(f"output space '{word}': {error}") from error
    try:
        import SimpleITK  # noqa: F401
    except ImportError as error:
        raise UsageError(f'output space {word} needs SimpleITK: pip install "bidsseg[spaces]"') from error
    if found is None:
        fetch(template, resolution)
        found = stored(template, resolution)
    if found is None:
        missing = next(path for path in files_in(caches()[-1], template, resolution) if not is_there(path))
        raise InputMissing(
            f'output space {word}: {missing} is missing; download it on a machine with a network (python -c "from '
            f"templateflow.api import get; get('{template}', resolution={resolution})\") and set TEMPLATEFLOW_HOME"
        )
    return Space(template, str(resolution), *found, affine=bool(match[3]))


def stored(template: str, resolution: int) -> tuple[Path, Path] | None:
    """Return the T1w and the brain mask of a template in the first cache with both; None without."""
    each = (files_in(cache, template, resolution) for cache in caches())
    return next((files for files in each if all(map(is_there, files))), None)


def files_in(cache: Path, template: str, resolution: int) -> tuple[Path, Path]:
    """Return the paths of the T1w and brain mask of a template; some templates number resolutions with one digit."""
    folder, spellings = cache / f"tpl-{template}", (f"{resolution:02d}", str(resolution))
    stems = [folder / f"tpl-{template}_res-{number}" for number in spellings]
    stem = next((stem for stem in stems if stem.with_name(f"{stem.name}_T1w.nii.gz").exists()), stems[0])
    return stem.with_name(f"{stem.name}_T1w.nii.gz"), stem.with_name(f"{stem.name}_desc-brain_mask.nii.gz")


def caches() -> list[Path]:
    """Return TemplateFlow's folders: the one set by the user, otherwise that of the image and the default one."""
    home = os.environ.get("TEMPLATEFLOW_HOME")
    return [Path(home)] if home else [Path(sys.prefix) / "templateflow", Path.home() / ".cache" / "templateflow"]


def is_there(path: Path) -> bool:
    """Return whether a file has content: the client fills its cache with empty files."""
    return path.is_file() and path.stat().st_size > 0


def fetch(template: str, resolution: int) -> None:
    """Download the files with TemplateFlow's client; any failure leaves them missing."""
    try:
        from templateflow import api

        api.get(template, resolution=resolution, suffix="T1w", desc=None, extension=".nii.gz")
        api.get(template, resolution=resolution, suffix="mask", desc="brain", extension=".nii.gz")
    except Exception:  # no network, a cache that cannot be written, an unknown name
        return


def fit_to(space: Space, t1w: Volume, brain: np.ndarray) -> Fit:
    """Register a scan to a template, comparing only the brains.

    Raises:
        DataError: the two do not overlap.
    """
    from bidsseg.registration.demons import deform
    from bidsseg.registration.linear import fit

    mask, fixed = template_brain(space)
    moving = Volume(np.where(brain, t1w.data, 0), t1w.affine)
    try:
        motion = fit(moving, fixed)
        return Fit(mask, motion, None if space.affine else deform(moving, fixed, motion))
    except RuntimeError as error:
        raise DataError(f"the brain cannot be registered to {space.template}: {error}") from error


@lru_cache(2)
def template_brain(space: Space) -> tuple[Volume, Volume]:
    """Return the brain mask of a template, and its image with everything else set to 0."""
    template, mask = read_image(space.image)[0], read_labels(space.brain)
    return mask, Volume(np.where(mask.data > 0, template.data, 0), template.affine)


def labels_at(labels: np.ndarray, affine: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return the most probable label of a label map at points (X, Y, Z, 3), RAS+ mm; 0 outside of it.

    The probability of a label is the linear interpolation of its binary mask; the smaller of two equal labels wins.

    Args:
        labels: integers or, for a mask, booleans (X, Y, Z) on any grid. The result of booleans is uint8.
        affine: (4, 4) of the label map.
    """
    from scipy import ndimage

    if labels.dtype == bool:
        labels = labels.view(np.uint8)
    found = np.zeros(points.shape[:3], labels.dtype)
    boxes = ndimage.find_objects((labels > 0).view(np.uint8))
    if not boxes:
        return found
    padded = np.pad(labels[boxes[0]], 1)
    first = np.array([part.start - 1 for part in boxes[0]])
    to_voxel = np.linalg.inv(affine)
    for slab, part in zip(found, points, strict=True):
        index = apply_affine(to_voxel, part).reshape(-1, 3) - first
        inside = np.flatnonzero(((index >= 0) & (index <= np.array(padded.shape) - 1)).all(1))
        slab.reshape(-1)[inside] = likeliest(padded, index[inside])
    return found


def likeliest(labels: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Return the most probable label at each position (P, 3), in voxels, all inside the label map."""
    low = np.minimum(np.floor(index).astype(np.intp), np.array(labels.shape) - 2)
    beyond = (index - low).astype(np.float32)
    steps = np.array(list(itertools.product((0, 1), repeat=3)))
    around = np.stack([labels[tuple((low + step).T)] for step in steps])
    share = np.stack([np.prod(np.where(step == 1, beyond, 1 - beyond), axis=1) for step in steps])
    best: np.ndarray = around[0].copy()
    mixed = np.flatnonzero((around != around[0]).any(0))
    around, share = around[:, mixed], share[:, mixed]
    chance = np.stack([(share * (around == label)).sum(0) for label in around])
    equal = np.isclose(chance, chance.max(0), rtol=0, atol=1e-6)
    best[mixed] = np.where(equal, around, np.iinfo(labels.dtype).max).min(0)
    return best
