"""A model applied to a scan: find the brain, look at it once, answer on the scan's own grid."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from scipy import ndimage
from torch import Tensor

from bidsseg.errors import DataError
from bidsseg.image.grid import (
    Grid,
    between,
    box_grid,
    brain_frame,
    canonical_spacing,
    coordinates,
    dilate,
    normalise_each,
    stack,
    whole_grid,
)
from bidsseg.image.volume import Volume
from bidsseg.models.library import Model
from bidsseg.segmentation.native import Segmentation, largest_piece, read_heads
from bidsseg.segmentation.windows import features_of

SMALLEST_BRAIN_MM3 = 100_000.0
"""Less than this is not a brain (a newborn's has about 300,000)."""


@dataclass(frozen=True)
class Engine:
    """Where and how networks run.

    Attributes:
        memory_mb: what a prediction may take, None for no limit.
    """

    device: str = "cpu"
    precision: str = "fp32"
    memory_mb: int | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Type of the activations."""
        return torch.bfloat16 if self.precision == "bf16" else torch.float32


def segment(
    images: Mapping[str, Volume],
    model: Model,
    *,
    device: str = "cpu",
    precision: str = "fp32",
    memory_mb: int | None = None,
    want_probabilities: bool = False,
    want_entropy: bool = False,
    progress: Callable[[str], None] = lambda stage: None,
) -> Segmentation:
    """Segments one scan. DataError if there is no brain to be found, or if an image lies on another grid.

    Args:
        images: by suffix, all on the grid of the first that the model reads, which the answer lies on too; see
            ``image.align``. The others may be missing, if the model has learned to do without.
    """
    volume = images[model.card.inputs[0]]
    engine = Engine(device, precision, memory_mb)
    notes: list[str] = []
    grid, image, position = model_input(images, model, engine, notes, progress)
    progress("segmenting")
    features = features_of(model.network, image, position, engine, notes)
    weights = head_weights(model)
    one_sided = next((head.one_sided for head in model.heads.values() if head.unpaired), None)
    if model.card.mirror and one_sided:
        notes.append(f"without the mean of the scan and its mirror image: {one_sided}")
    elif model.card.mirror:
        mirrored = None if position is None else mirror_coordinates(position)
        other = features_of(model.network, image.flip(2), mirrored, engine, notes).flip(0)
        features = torch.cat([features, other], -1)
        weights = {name: mirrored_head(model, name, w, b) for name, (w, b) in weights.items()}
    progress("labelling")
    with torch.inference_mode():
        result = read_heads(volume, grid, features, weights, model, want_probabilities, want_entropy)
    result.device, result.precision, result.notes = device, precision, list(dict.fromkeys(notes))
    return result


def model_input(
    images: Mapping[str, Volume], model: Model, engine: Engine, notes: list[str], progress: Callable[[str], None]
) -> tuple[Grid, Tensor, Tensor | None]:
    """The model grid, the images (1, C, D, H, W) on it, coordinates (1, 3, D/2, H/2, W/2) if the model wants them.

    The first image places the grid, and the brain is found in it. Each is normalised by itself.
    """
    card, multiple = model.card, model.network.multiple
    volume = images[card.inputs[0]]
    shown, position = None, None
    if model.locator is None:
        grid = whole_grid(volume, card.spacing_mm, multiple)
    else:
        progress("finding the brain")
        around, brain = find_brain(images, model.locator, engine)
        found = brain.numpy() > 0.5
        grid = box_grid(around, found, card.spacing_mm, card.margin_mm, multiple, canonical_spacing(volume))
        mask = between(brain, around, grid) > 0.5
        shown = dilate(mask, round(card.shown_mm / card.spacing_mm))
        position = coordinates(grid.shape, *brain_frame(mask))
    return grid, normalise_each(stack(images, card.inputs, grid), shown, card.normalisation)[None], position


def find_brain(images: Mapping[str, Volume], locator: Model, engine: Engine) -> tuple[Grid, Tensor]:
    """The locator's grid and on it the brain's probability (D, H, W): 0 away from the largest piece, no holes in it."""
    grid, image, position = model_input(images, locator, engine, [], lambda stage: None)
    features = features_of(locator.network, image, position, engine, [])
    weight, bias = head_weights(locator)["brain"]
    logits = features.float() @ weight.T + bias
    probability = torch.softmax(logits, -1)[..., 1]
    piece = largest_piece(probability.numpy() > 0.5)
    if piece.sum() * grid.spacing_mm**3 < SMALLEST_BRAIN_MM3:
        raise DataError("no brain found in the image: is it a T1w of a head, with the right orientation in its header?")
    rim = torch.from_numpy(ndimage.binary_dilation(piece))
    return grid, torch.where(torch.from_numpy(piece), probability.clamp(min=0.5 + 1e-3), probability * rim)


def head_weights(model: Model) -> dict[str, tuple[Tensor, Tensor]]:
    """Weight (R, F) and bias (R,) of each head, on the CPU as the features are."""
    heads = {name: model.network.head(name) for name in model.card.heads}
    return {name: (weight.float().cpu(), bias.float().cpu()) for name, (weight, bias) in heads.items()}


def mirrored_head(model: Model, name: str, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The head that takes the mean of the logits for a scan and its mirror image, from features (..., 2F)."""
    partners = torch.tensor(model.heads[name].partners())
    return torch.cat([weight, weight[partners]], 1) / 2, (bias + bias[partners]) / 2


def mirror_coordinates(position: Tensor) -> Tensor:
    """The coordinates of the mirror image, (1, 3, D, H, W)."""
    flipped = position.flip(2).clone()
    flipped[:, 0] *= -1
    return flipped
