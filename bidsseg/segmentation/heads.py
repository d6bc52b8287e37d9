"""Applying the heads at every voxel of the native grid.

The network gives features on the model grid, and each head is one linear map of them. The brain's head is applied
first. The features are then interpolated at the native voxels where the brain may be, and the other heads are applied
there, in chunks of voxels: no array of regions x voxels or of features x voxels is ever stored, and the result equals
that of interpolating all logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from bidsseg.errors import DataError
from bidsseg.image.grid import UPRIGHT, Box, Grid, canonical_spacing
from bidsseg.image.resampling import hat_weights, linearly, resample
from bidsseg.image.volume import Volume, canonical, canonical_shape
from bidsseg.labels import covers_brain
from bidsseg.models.card import protocol_with_lesions
from bidsseg.models.lesion_rule import MOST_PROBABLE, LesionRule
from bidsseg.models.library import Model
from bidsseg.segmentation.features import Features
from bidsseg.segmentation.head_output import HeadOutput, Place
from bidsseg.segmentation.masks import largest_piece, shrunk, without_bridges
from bidsseg.segmentation.result import Probabilities, Segmentation

CHUNK = 1 << 18
"""Number of voxels whose features are interpolated at a time."""
READ = 1 << 12
"""Number of voxels at which the heads are applied at a time."""
NEGLIGIBLE = 1e-4
"""Distance, in voxels of the model grid, below which a native voxel coincides with a model voxel."""
PLANES = 16
"""Number of native planes whose brain probability is computed at a time."""
ELSEWHERE = -10.0
"""Logit of the brain where no features were computed."""
LIKELY = 0.05
"""Least probability of the brain where the other heads are applied."""


def read_heads(
    volume: Volume,
    grid: Grid,
    features: Sequence[Features],
    *,
    weights: Mapping[str, tuple[Tensor, Tensor]],
    model: Model,
    want_probabilities: bool,
    want_entropy: bool,
    lesions: LesionRule = MOST_PROBABLE,
    given: np.ndarray | None = None,
) -> Segmentation:
    """Return the segmentation by all heads, from the features of one or two passes and each head's weight and bias.

    DataError if no brain is left.

    Args:
        given: booleans (X, Y, Z), lesions that are given.
    """
    box, shape, spacing, grid = in_box(volume, grid)
    chance = brain_chance(brain_logit(features, weights), grid, shape, spacing=spacing)
    near = likely(chance, weights)
    place = Place(volume, box, np.flatnonzero(near))
    outputs = empty_outputs(model, len(place.voxels), want_probabilities=want_probabilities, want_entropy=want_entropy)
    if given is not None:
        give_lesions(outputs, model, canonical(given, volume.affine).reshape(-1)[place.positions])
    fill(
        [outputs],
        [features],
        weights,
        voxels=place.voxels,
        corners_of=lambda some: corners(some, shape, spacing, grid=grid),
    )
    return answer(outputs, place, model, chance=chance, near=near, lesions=lesions)


def likely(chance: np.ndarray, weights: Mapping[str, tuple[Tensor, Tensor]]) -> np.ndarray:
    """Return the native voxels in which the heads are applied, booleans, from the brain's probability."""
    near = (torch.from_numpy(chance) > LIKELY).numpy()  # NumPy is slow with 16-bit numbers
    return largest_piece(near) if "brain" in weights else near


def empty_outputs(
    model: Model, count: int, *, want_probabilities: bool = False, want_entropy: bool = False
) -> dict[str, HeadOutput]:
    """Return background at a number of voxels for each head, except that of the brain."""
    outputs = {}
    for name in model.card.heads:
        if name != "brain":
            asked = name in model.card.protocols
            outputs[name] = HeadOutput.empty(
                np.array(model.heads[name].indices),
                count,
                probabilities=want_probabilities and asked,
                entropy=want_entropy and asked,
                lesions=model.heads[name].lesions if name == model.card.lesion else (),
            )
    return outputs


def give_lesions(outputs: Mapping[str, HeadOutput], model: Model, given: np.ndarray) -> None:
    """Give the heads the lesions in the voxels of a place, booleans (P,)."""
    for name, output in outputs.items():
        output.given, head = given, model.heads[name]
        output.lesions = [head.indices.index(index) for index in head.lesions]
        output.is_marked = not head.lesions and bool(protocol_with_lesions(model.card, name).lesions)


def brain_in(
    outputs: Mapping[str, HeadOutput], place: Place, model: Model, *, chance: np.ndarray, near: np.ndarray
) -> np.ndarray:
    """Return the brain mask in the box of a place, see `answer`. DataError if it is empty."""
    spacing = canonical_spacing(place.volume)
    if "brain" in model.card.heads:
        near = near & (torch.from_numpy(chance) > 0.5).numpy()
        brain = without_bridges(largest_piece(near), spacing)
    else:
        labelled = place.filled(np.any([output.labels > 0 for output in outputs.values()], 0))
        brain = brain_of_labels(labelled, near, model, spacing=spacing)
    if not brain.any():
        raise DataError(
            "the segmentation is empty: is it a head, in a contrast that the model reads, with the right orientation "
            "in its header?"
        )
    return brain


def brain_of_labels(labelled: np.ndarray, near: np.ndarray, model: Model, *, spacing: np.ndarray) -> np.ndarray:
    """Return the brain mask (X, Y, Z) of a model without a head for it.

    It is the largest piece of the labelled voxels if a protocol of the model covers the brain. The regions of other
    protocols, such as both hippocampi, may be apart; then the mask is the brain that the locator found, or the labelled
    voxels without a locator.

    Args:
        labelled: booleans (X, Y, Z), voxels with a region in any protocol.
        near: booleans (X, Y, Z), voxels whose features were computed.
        spacing: (3,) mm.
    """
    if any(map(covers_brain, model.heads.values())):
        return largest_piece(labelled)
    if model.locator is None:
        return labelled
    located = shrunk(near, model.card.shown_mm + model.card.spacing_mm, spacing)
    located |= labelled
    return located


def answer(
    outputs: Mapping[str, HeadOutput],
    place: Place,
    model: Model,
    *,
    chance: np.ndarray,
    near: np.ndarray,
    lesions: LesionRule = MOST_PROBABLE,
) -> Segmentation:
    """Return the segmentation on the grid of the scan, for the protocols that the model writes.

    Args:
        chance: probability of the brain in the box of the place.
        near: booleans in that box, the voxels of the place.
        lesions: which voxels are lesions.

    Raises:
        DataError: no brain is left.
    """
    volume, lesion, lesion_chance = place.volume, None, None
    brain = brain_in(outputs, place, model, chance=chance, near=near)
    kept = brain.reshape(-1)[place.voxels]
    for output in outputs.values():
        output.labels[~kept] = 0
        if output.lesion_chance is not None:
            output.lesion_chance[~kept] = 0
        if output.is_marked and output.given is not None:
            output.labels[output.given] = 0  # until the region of lesions takes its place
    certainty = next(iter(outputs.values())).certainty[kept] if outputs else chance[brain]
    if model.card.lesion is not None:
        output = outputs[model.card.lesion]
        lesion = place.native(place.filled(output.marked(lesions, place=place)))
        assert output.lesion_chance is not None
        lesion_chance = place.native(place.filled(output.lesion_chance))
    written = {name: output for name, output in outputs.items() if name in model.card.protocols}
    expected = expected_dice(written, model)
    means = [float(np.nanmean(dice)) for dice in expected.values() if np.isfinite(dice).any()]
    return Segmentation(
        labels={name: place.native(place.filled(output.labels)) for name, output in written.items()},
        soft_mm3={name: output.soft * volume.voxel_volume_mm3 for name, output in written.items()},
        brain=place.native(brain),
        lesion=lesion,
        lesion_probability=lesion_chance,
        quality=means[0] if means else float(certainty.mean(dtype=np.float64)),
        expected_dice=expected,
        probabilities={
            name: Probabilities(canonical_shape(volume), volume.affine, place.positions, output.probabilities)
            for name, output in written.items()
            if output.probabilities is not None
        },
        entropy={n: place.native(place.filled(r.entropy)) for n, r in written.items() if r.entropy is not None},
    )


def expected_dice(outputs: Mapping[str, HeadOutput], model: Model) -> dict[str, np.ndarray]:
    """Return the expected Dice (R,) of the regions of each calibrated head."""
    calibrations, by_region = model.card.expected_dice, model.card.expected_dice_by_region
    found = {}
    for name, output in outputs.items():
        if name in calibrations:
            known = by_region.get(name, {})
            added = np.array([known.get(region.name, 0.0) for region in model.heads[name].regions])
            found[name] = output.expected_dice(calibrations[name], added)
    return found


Mix = Callable[[int, Sequence[Tensor]], Sequence[Tensor]]
"""Changes the logits (N, R) of each scan at N voxels from a position on."""


def fill(
    outputs: Sequence[Mapping[str, HeadOutput]],
    scans: Sequence[Sequence[Features]],
    weights: Mapping[str, tuple[Tensor, Tensor]],
    *,
    voxels: np.ndarray,
    corners_of: Callable[[np.ndarray], tuple[Tensor, Tensor]],
    mix: Mix = lambda first, logits: logits,
) -> None:
    """Apply each head at native voxels (P,) to each of some scans on one grid.

    Args:
        scans: the features of the passes of each scan.
        corners_of: returns the surrounding model voxels of native ones, and their weights.
        mix: combines the logits of the scans, see ``together.py``.
    """
    linear = {name: torch.cat([weights[name][0].T, weights[name][1][None]]) for name in outputs[0]}
    for start in range(0, len(voxels) if linear else 0, CHUNK):
        around = corners_of(voxels[start : start + CHUNK])
        inside = [interpolated(features, *around).split(READ) for features in scans]
        for first, parts in zip(range(start, len(voxels), READ), zip(*inside, strict=True), strict=False):
            for name, matrix in linear.items():
                for output, logits in zip(outputs, mix(first, [part @ matrix for part in parts]), strict=True):
                    output[name].put(first, logits)


def in_box(volume: Volume, grid: Grid) -> tuple[Box, tuple[int, ...], np.ndarray, Grid]:
    """Return the canonical voxels of a scan that a model grid covers, their shape and spacing (mm), and the grid there.

    The origin of the returned grid refers to the first voxel of the box.
    """
    spacing = canonical_spacing(volume)
    box = covered(grid, canonical_shape(volume), spacing)
    low, high = np.array(box).T
    return box, tuple((high - low).tolist()), spacing, grid.moved(-low * spacing)


def covered(grid: Grid, shape: tuple[int, ...], spacing: np.ndarray) -> Box:
    """Return the canonical voxels of a scan that a model grid covers, at least one along each axis."""
    ends = grid.ends(0.5) / spacing
    first = np.clip(np.ceil(ends.min(0) - NEGLIGIBLE).astype(int), 0, np.array(shape) - 1)
    end = np.clip(np.floor(ends.max(0) + NEGLIGIBLE).astype(int) + 1, first + 1, shape)
    x, y, z = zip(first.tolist(), end.tolist(), strict=True)
    return x, y, z


def interpolated(features: Sequence[Features], voxels: Tensor, share: Tensor) -> Tensor:
    """Return the features of all passes, and 1 for the bias, (P, F + 1), interpolated at model voxels (P, N)."""
    return torch.cat([*(one.interpolated(voxels, share) for one in features), torch.ones(len(voxels), 1)], 1)


def brain_logit(features: Sequence[Features], weights: Mapping[str, tuple[Tensor, Tensor]]) -> Tensor:
    """Return the brain's logit on the model grid; without such a head, a high value wherever there are features."""
    if "brain" not in weights:
        return torch.where(features[0].known(), -ELSEWHERE, ELSEWHERE)
    weight, bias = weights["brain"]
    parts = (weight[1] - weight[0]).chunk(len(features))
    logit = sum(one.linear(part, ELSEWHERE / len(features)) for one, part in zip(features, parts, strict=True))
    return logit + (bias[1] - bias[0])


def brain_chance(logit: Tensor, grid: Grid, shape: tuple[int, ...], *, spacing: np.ndarray) -> np.ndarray:
    """Return the brain's probability, float16, on the canonical native grid, from its logit (D, H, W); 0 outside.

    The logit is interpolated on a few planes at a time: a native grid can have thirty times as many voxels.
    """
    if grid.turn != UPRIGHT:
        return turned_chance(logit, grid, shape, spacing=spacing)
    to_native = [
        hat_weights(grid.shape[i], grid.spacing_mm, shape[i], spacing_out=spacing[i], origin_out=-grid.origin_mm[i])
        for i in range(3)
    ]
    within = [(matrix.sum(1) > 0).astype(np.float32) for matrix in to_native]
    covered = torch.from_numpy(np.outer(within[1], within[2]))
    chance = np.zeros(shape, np.float16)
    for start in range(0, shape[0], PLANES):
        planes = slice(start, start + PLANES)
        if within[0][planes].any():
            found = torch.sigmoid(resample(logit, [to_native[0][planes], *to_native[1:]])) * covered
            chance[planes] = (found * torch.from_numpy(within[0][planes])[:, None, None]).half().numpy()
    return chance


def turned_chance(logit: Tensor, grid: Grid, shape: tuple[int, ...], *, spacing: np.ndarray) -> np.ndarray:
    """Return the brain's probability from a rotated grid, about 0 outside of it."""
    chance = np.zeros(shape, np.float16)
    for planes, found in in_planes(logit, grid, shape, spacing=spacing, outside=ELSEWHERE):
        chance[planes] = torch.sigmoid(found).half().numpy()
    return chance


def in_planes(
    values: Tensor, grid: Grid, shape: tuple[int, ...], *, spacing: np.ndarray, outside: float = 0.0
) -> Iterator[tuple[slice, Tensor]]:
    """Yield values (D, H, W) on a grid, linearly interpolated on some planes of the canonical native grid at a time."""
    matrix = np.asarray(grid.turn).T * spacing[None] / grid.spacing_mm
    for start in range(0, shape[0], PLANES):
        planes = min(PLANES, shape[0] - start), *shape[1:]
        first = grid.voxels(np.array([[start * spacing[0], 0.0, 0.0]]))[0]
        yield slice(start, start + PLANES), linearly(values, matrix, first, shape=planes, outside=outside)


def corners(voxels: np.ndarray, shape: tuple[int, ...], spacing: np.ndarray, *, grid: Grid) -> tuple[Tensor, Tensor]:
    """Return the flat positions (P, N) of the model voxels around native voxels (P,), and their weights (P, N).

    N is 8, or less where the grids coincide: a scan with the spacing of the model grid is not interpolated.
    """
    matrix = np.asarray(grid.turn).T * spacing / grid.spacing_mm
    start = grid.voxels(np.zeros((1, 3)))[0]
    here = [torch.from_numpy(index) for index in np.unravel_index(voxels, shape)]
    rows, share = torch.zeros(len(voxels), 1, dtype=torch.int64), torch.ones(len(voxels), 1)
    for axis, size in enumerate(grid.shape):
        steps = [torch.arange(shape[i]) * matrix[axis, i] for i in range(3)]
        position = sum(steps[i][here[i]] for i in range(3) if matrix[axis, i]) + start[axis]
        position = torch.as_tensor(position).clamp(0, size - 1)
        low = (position + NEGLIGIBLE).floor().clamp(max=size - 1)
        beyond = (position - low).clamp(min=0)[:, None]
        around, weights = low.long()[:, None], 1 - beyond
        if (beyond > NEGLIGIBLE).any():
            around = torch.cat([around, (around + 1).clamp(max=size - 1)], 1)
            weights = torch.cat([weights, beyond], 1)
        rows = (rows[:, :, None] * size + around[:, None]).flatten(1)
        share = (share[:, :, None] * weights[:, None]).flatten(1)
    return rows, share
