"""Several scans of one head on one grid, shown to the network alike: the same box and pose, tied where nothing changed.

Differences between their segmentations then come from the images, not from how each head lies in its grid. The heads
are applied at the voxels of that grid and, from the same features, at the voxels of the grid of each scan.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from bidsseg.image.brightness import rescaled, rescaled_each
from bidsseg.image.grid import Grid, canonical_frame, canonical_spacing, within_content
from bidsseg.image.matching import mean_of
from bidsseg.image.resampling import linearly
from bidsseg.image.volume import Volume, canonical_shape, from_canonical
from bidsseg.models.lesion_rule import MOST_PROBABLE, LesionRule
from bidsseg.models.library import Model
from bidsseg.segmentation.engine import Engine
from bidsseg.segmentation.features import Features
from bidsseg.segmentation.head_output import Place
from bidsseg.segmentation.heads import (
    answer,
    brain_chance,
    brain_logit,
    corners,
    empty_outputs,
    fill,
    in_box,
    in_planes,
    likely,
)
from bidsseg.segmentation.locate import find_brain, place_grid
from bidsseg.segmentation.plausibility import implausible_findings
from bidsseg.segmentation.predict import pass_weights, passes
from bidsseg.segmentation.result import Segmentation

LEAST_SHARE = 1e-12
"""Smallest probability whose logarithm is computed."""


@dataclass(frozen=True, eq=False)
class NativeScan:
    """A scan on its own grid.

    Attributes:
        motion: (4, 4) from its points to those of the common grid, RAS+ mm, rigid.
    """

    volume: Volume
    motion: np.ndarray


def located_brain(images: Mapping[str, Volume], model: Model, engine: Engine) -> np.ndarray:
    """Return the brain found by the locator of a model, booleans (X, Y, Z) on the grid of the first image.

    Without a locator, all voxels but the background are brain. DataError if no brain is found.

    Args:
        images: by suffix, all on one grid.
    """
    volume = images[model.card.inputs[0]]
    used, start_mm = within_content(rescaled_each(images), model.card.inputs[0])
    if model.locator is None:
        return rescaled(volume).data > 0
    found = find_brain(used, model.locator, engine)
    grid = found.grid.moved(start_mm)
    matrix = np.asarray(grid.turn).T * canonical_spacing(volume) / grid.spacing_mm
    start = grid.voxels(np.zeros((1, 3)))[0]
    chance = linearly(found.probability, matrix, start, shape=canonical_shape(volume))
    return from_canonical((chance > 0.5).numpy(), volume.affine)


def segment_together(
    sessions: Sequence[Mapping[str, Volume]],
    model: Model,
    engine: Engine,
    *,
    tie: np.ndarray,
    natives: Sequence[NativeScan],
    fast: bool = False,
    lesions: LesionRule = MOST_PROBABLE,
    progress: Callable[[str], None] = lambda stage: None,
) -> tuple[list[Segmentation], list[dict[str, np.ndarray]]]:
    """Segment several scans of one head, all on one grid. DataError if no brain is found.

    Args:
        sessions: images by suffix of each scan, with the same suffixes, on an isotropic grid with axes to the right,
            anterior and superior.
        tie: from 0 to 1 for each voxel (X, Y, Z), how far the probabilities of each scan are replaced by their mean
            over all scans.
        natives: each scan on its own grid.
        fast: omit the pass over the mirror image, if the model has one.
        lesions: which voxels are lesions.

    Returns:
        The segmentations on the common grid, and the labels of each protocol on the grid of each scan.
    """
    first = model.card.inputs[0]
    volume = sessions[0][first]
    mean = {name: Volume(mean_of([images[name].data for images in sessions]), volume.affine) for name in sessions[0]}
    used = rescaled_each(mean)
    for number, images in enumerate(sessions):
        used |= {f"{name} {number}": rescaled(image) for name, image in images.items()}
    used, start_mm = within_content(used, first)  # the box of the mean
    placed = place_grid({name: used[name] for name in mean}, model, engine, progress=progress)
    features, notes = [], list[str]()
    for number in range(len(sessions)):
        progress(f"segmenting {number + 1} of {len(sessions)}")
        seen = placed.input_of({name: used[f"{name} {number}"] for name in mean}, model)
        features.append(passes(seen, model, engine, fast=fast, notes=notes))
    progress("labelling")
    grid = placed.grid.moved(start_mm)
    whole = Grid(float(volume.spacing_mm[0]), (0.0, 0.0, 0.0), volume.shape)
    read = partial(read_together, sessions=features, model=model, lesions=lesions)
    with torch.inference_mode():
        results = read(volume, grid, tie=tie, wanted=range(len(sessions)))
        labels = []
        for number, native in enumerate(natives):
            motion = np.linalg.inv(native.motion @ canonical_frame(native.volume)) @ canonical_frame(volume)
            share = at_voxels(tie, whole.through(motion), native.volume)
            (there,) = read(native.volume, grid.through(motion), tie=share, wanted=[number])
            labels.append(there.labels)
    for result in results:
        result.device, result.precision, result.notes = engine.device, engine.precision, list(dict.fromkeys(notes))
        result.findings += placed.brain.findings if placed.brain is not None else ()
        result.findings += implausible_findings(result, model, volume.voxel_volume_mm3)
    return results, labels


def at_voxels(values: np.ndarray, grid: Grid, volume: Volume) -> np.ndarray:
    """Return values (D, H, W) on a grid, linearly interpolated at the canonical voxels of a scan, 0 outside."""
    found = np.zeros(canonical_shape(volume), np.float32)
    for planes, part in in_planes(torch.from_numpy(values), grid, found.shape, spacing=canonical_spacing(volume)):
        found[planes] = part.numpy()
    return found


def read_together(
    volume: Volume,
    grid: Grid,
    *,
    sessions: Sequence[Sequence[Features]],
    model: Model,
    tie: np.ndarray,
    lesions: LesionRule,
    wanted: Sequence[int],
) -> list[Segmentation]:
    """Return the segmentation of some scans by all heads, from the features of all, as ``heads.read_heads``.

    Args:
        volume: a scan on the grid of the results.
        grid: the model grid in its canonical frame.
        sessions: the features of the passes of each scan.
        tie: as for ``segment_together``, at the canonical voxels of the volume.
        wanted: numbers of the scans.
    """
    weights = pass_weights(model, len(sessions[0]))
    box, shape, spacing, grid = in_box(volume, grid)
    shared = tie[tuple(slice(*ends) for ends in box)]
    chances = [brain_chance(brain_logit(f, weights), grid, shape, spacing=spacing).astype(np.float32) for f in sessions]
    mean = mean_of(chances)
    chances = [(chance + shared * (mean - chance)).astype(np.float16) for chance in chances]
    near = likely(np.max(chances, 0), weights)
    place = Place(volume, box, np.flatnonzero(near))
    outputs = [empty_outputs(model, len(place.voxels)) for _ in wanted]
    share = torch.from_numpy(shared.reshape(-1)[place.voxels])[:, None]
    fill(
        outputs,
        sessions,
        weights,
        voxels=place.voxels,
        corners_of=lambda some: corners(some, shape, spacing, grid=grid),
        mix=lambda first, logits: tied_logits(logits, share[first : first + len(logits[0])], wanted),
    )
    return [
        answer(output, place, model, chance=chances[number], near=near, lesions=lesions)
        for output, number in zip(outputs, wanted, strict=True)
    ]


def tied_logits(logits: Sequence[Tensor], share: Tensor, wanted: Sequence[int]) -> list[Tensor]:
    """Return logits (N, R) of some scans, whose probabilities are shared with the mean of all scans by (N, 1)."""
    if not share.any():
        return [logits[number] for number in wanted]
    chances = [torch.softmax(each, 1) for each in logits]
    mean = torch.stack(chances).mean(0)
    return [torch.lerp(chances[number], mean, share).clamp(min=LEAST_SHARE).log() for number in wanted]
