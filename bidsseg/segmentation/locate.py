"""From a scan to the input of a network: find the brain and its pose, place the model grid, normalise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from bidsseg.errors import DataError
from bidsseg.image.brightness import normalise_each
from bidsseg.image.grid import (
    UPRIGHT,
    Grid,
    Turn,
    as_turn,
    box_grid,
    brain_frame,
    canonical_spacing,
    coordinates,
    dilate,
    whole_grid,
)
from bidsseg.image.guard import BRAIN_CUT, Finding
from bidsseg.image.pose import Pose, Reference, find_pose
from bidsseg.image.resampling import between, stack, to_grid
from bidsseg.image.shading import Shading, find_shading
from bidsseg.image.volume import Volume, canonical_shape
from bidsseg.models.library import Model
from bidsseg.segmentation.engine import Engine
from bidsseg.segmentation.features import Features
from bidsseg.segmentation.heads import brain_logit
from bidsseg.segmentation.masks import largest_piece
from bidsseg.segmentation.windows import features_of

SMALLEST_BRAIN_MM3 = 100_000.0
"""Smallest volume of a brain (a newborn's has about 300,000)."""
TURN_FROM_DEG = 10.0
"""Smallest rotation of a head that is corrected; others are not interpolated, since networks are trained on them."""
AROUND_MM = 30.0
"""Margin around the brain in the second pass of the locator, for a rotated head."""
LARGEST_ERROR_MM = 15.0
"""Largest mean error of the regions of a pose that is used."""
WHITE_MATTER, SURE, FEWEST_VOXELS = 2, 0.8, 1000
"""Generic BIDS value of white matter; probability of a white-matter voxel; fewest voxels to measure shading."""
STRONG_SHADING = 0.105
"""Standard deviation of the logarithm of white matter's brightness that is larger than in most scans."""
CUT_MM, CUT_SHARE = 5.0, 0.05
"""A brain is cut if the centre of a region is further outside the field of view, or a larger share of the brain."""


@dataclass(frozen=True, eq=False)
class Brain:
    """The location of the brain found by a locator.

    Attributes:
        grid: grid of the locator.
        probability: (D, H, W) of the brain on it.
        turn: rotation of the head relative to the scan, if it must be corrected.
        frame_mm: centre and half extent (3,) in mm along the axes of the rotated head, for a known pose.
        is_cut: whether the field of view cuts the brain, so that the frame is more reliable than the mask.
        shading: shading of the first image in that frame, if it is strong.
        findings: findings for the user.
    """

    grid: Grid
    probability: Tensor
    turn: Turn = UPRIGHT
    frame_mm: tuple[np.ndarray, np.ndarray] | None = None
    is_cut: bool = False
    shading: Shading | None = None
    findings: tuple[Finding, ...] = ()

    def places(self) -> np.ndarray:
        """Return the canonical places (V, 3) in mm of the voxels of the brain."""
        return self.grid.places(np.argwhere(self.probability.numpy() > 0.5))

    def frame_on(self, grid: Grid, mask: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Return centre and half extent (3,) of the brain in voxels of a grid that is rotated with the head.

        Args:
            mask: booleans (D, H, W), the brain on that grid.
        """
        if self.frame_mm is None or not self.is_cut:
            return brain_frame(mask)
        centre, half = self.frame_mm
        return grid.voxels(centre[None])[0], half / grid.spacing_mm

    def unshaded(self, image: Tensor, grid: Grid) -> Tensor:
        """Return the first image (D, H, W) on a grid that is rotated with the head, without its strong shading."""
        if self.frame_mm is None or self.shading is None:
            return image
        centre, half = self.frame_mm
        middle = grid.voxels(centre[None])[0]
        x, y, z = ((np.arange(n) - c) * grid.spacing_mm / h for n, c, h in zip(grid.shape, middle, half, strict=True))
        return image / torch.from_numpy(self.shading.along((x, y, z)))


@dataclass(frozen=True, eq=False)
class ModelInput:
    """The input of a network.

    Attributes:
        image: (1, C, D, H, W) on the model grid.
        frame: centre and half extent (3,) of the brain in voxels of the grid, if the model has a locator.
        wanted: booleans (D, H, W), the voxels whose features will be read; None for all.
        brain: location of the brain; None without a locator.
    """

    grid: Grid
    image: Tensor
    frame: tuple[np.ndarray, np.ndarray] | None = None
    wanted: Tensor | None = None
    brain: Brain | None = None

    @property
    def position(self) -> Tensor | None:
        """Coordinates (1, 3, D/2, H/2, W/2) in the frame of the brain, if it is known."""
        return None if self.frame is None else coordinates(self.image.shape[2:], *self.frame)

    def mirrored(self, steps: int) -> ModelInput:
        """Return the input with left and right exchanged, on a grid that begins some voxels further along each axis.

        Outside the image, all values are 0. ``Features.mirrored`` maps features back to the grid.
        """

        def mirror(values: Tensor) -> Tensor:
            """Mirror and shift an array (..., D, H, W)."""
            moved = torch.zeros_like(values)
            n = slice(None, -steps or None)
            moved[..., n, n, n] = values[..., steps:, steps:, steps:]
            return moved.flip(-3)

        frame = None
        if self.frame is not None:
            centre, half = self.frame
            frame = np.array([self.grid.shape[0] - 1, 0, 0]) + [-1, 1, 1] * (centre - steps), half
        wanted = None if self.wanted is None else mirror(self.wanted)
        return ModelInput(self.grid, mirror(self.image), frame, wanted)


@dataclass(frozen=True, eq=False)
class Placement:
    """The model grid in the canonical frame of a scan, and what is known about the brain on it; see ``ModelInput``.

    Attributes:
        shown: booleans (D, H, W), the voxels that the network sees; None for all.
    """

    grid: Grid
    shown: Tensor | None = None
    wanted: Tensor | None = None
    frame: tuple[np.ndarray, np.ndarray] | None = None
    brain: Brain | None = None

    def input_of(self, images: Mapping[str, Volume], model: Model) -> ModelInput:
        """Return images, as for ``model_input``, resampled to the grid, each normalised separately."""
        card = model.card
        image = stack(images, card.inputs, self.grid, needed=self.shown)
        if self.brain is not None:
            image[0] = self.brain.unshaded(image[0], self.grid)
        image = normalise_each(image, self.shown, card.normalisation)[None]
        return ModelInput(self.grid, image, self.frame, self.wanted, self.brain)


def model_input(
    images: Mapping[str, Volume], model: Model, engine: Engine, *, progress: Callable[[str], None]
) -> ModelInput:
    """Place the model grid, and resample the images and coordinates to it.

    The first image defines the grid, and the brain is found in it. Each image is normalised separately.

    Args:
        images: ``rescaled`` and ``within_content``, so that results do not depend on units, background or empty space
            around the head.
    """
    return place_grid(images, model, engine, progress=progress).input_of(images, model)


def place_grid(
    images: Mapping[str, Volume], model: Model, engine: Engine, *, progress: Callable[[str], None]
) -> Placement:
    """Find the brain in the first image, and place the model grid around it; without a locator, over the whole image.

    Args:
        images: as for ``model_input``.
    """
    card, multiple = model.card, model.network.multiple
    volume = images[card.inputs[0]]
    if model.locator is None:
        return Placement(whole_grid(volume, card.spacing_mm, multiple))
    progress("finding the brain")
    brain = find_brain(images, model.locator, engine)
    found = brain.probability.numpy() > 0.5
    native_mm = canonical_spacing(volume)
    grid = box_grid(
        brain.grid,
        found,
        card.spacing_mm,
        margin_mm=card.margin_mm,
        multiple=multiple,
        native_mm=native_mm,
        turn=brain.turn,
    )
    mask = between(brain.probability, brain.grid, grid) > 0.5
    shown = dilate(mask, round(card.shown_mm / card.spacing_mm))
    wanted = dilate(shown, 1)  # features are interpolated: one voxel more than the visible region
    return Placement(grid, shown, wanted, brain.frame_on(grid, mask), brain)


def find_brain(images: Mapping[str, Volume], locator: Model, engine: Engine) -> Brain:
    """Find the brain and its pose; the probability is 0 outside of the largest component, and has no holes in it.

    A head that must be rotated is located again after the rotation.

    Args:
        images: as for ``model_input``.
    """
    seen = model_input(images, locator, engine, progress=lambda stage: None)
    probability, features = look(seen, locator, engine)
    if seen.brain is not None:
        return replace(seen.brain, grid=seen.grid, probability=probability)
    brain = Brain(seen.grid, probability)
    if locator.card.pose is None:
        return brain
    card, volume = locator.card, images[locator.card.inputs[0]]
    reference = Reference.from_card(locator.card.pose)
    chance = region_chance(features, brain, locator)
    pose = pose_of(chance, brain, locator, reference=reference)
    if pose is not None and pose.angle_deg > TURN_FROM_DEG:
        found, multiple, native_mm = probability.numpy() > 0.5, locator.network.multiple, canonical_spacing(volume)
        grid = box_grid(
            brain.grid,
            found,
            card.spacing_mm,
            margin_mm=AROUND_MM,
            multiple=multiple,
            native_mm=native_mm,
            turn=as_turn(pose.turn),
        )
        image = normalise_each(stack(images, card.inputs, grid), None, card.normalisation)[None]
        probability, features = look(ModelInput(grid, image), locator, engine)
        brain = Brain(grid, probability)
        chance = region_chance(features, brain, locator)
        pose = pose_of(chance, brain, locator, reference=reference) or pose
    if pose is None or pose.error_mm > LARGEST_ERROR_MM:
        return brain
    brain = posed(brain, pose, reference, volume=volume, locator=locator)
    return replace(brain, shading=shading_of(volume, chance, brain, locator=locator))


def look(seen: ModelInput, locator: Model, engine: Engine) -> tuple[Tensor, Features]:
    """Return the brain's probability (D, H, W) and the features of a locator. DataError if there is no brain."""
    features = features_of(locator.network, seen.image, seen.position, wanted=seen.wanted, engine=engine, notes=[])
    with torch.inference_mode():
        probability = torch.sigmoid(brain_logit([features], head_weights(locator)))
    piece = largest_piece(probability.numpy() > 0.5)
    if piece.sum() * seen.grid.spacing_mm**3 < SMALLEST_BRAIN_MM3:
        raise DataError(
            "no brain found in the image: is it a head, in a contrast that the model reads, with the right orientation "
            "in its header? [EMPTY_SEGMENTATION]"
        )
    rim = torch.from_numpy(ndimage.binary_dilation(piece))
    return torch.where(torch.from_numpy(piece), probability.clamp(min=0.5 + 1e-3), probability * rim), features


def region_chance(features: Features, brain: Brain, locator: Model) -> np.ndarray:
    """Return the probabilities (V, R) of the regions that define the pose at the V voxels of the brain."""
    assert locator.card.pose is not None
    weight, bias = head_weights(locator)[locator.card.pose["head"]]
    voxels = (brain.probability > 0.5).flatten().nonzero()
    with torch.inference_mode():
        logits = features.interpolated(voxels, torch.ones(voxels.shape)) @ weight.T + bias
        return torch.softmax(logits, 1).double().numpy()


def pose_of(chance: np.ndarray, brain: Brain, locator: Model, *, reference: Reference) -> Pose | None:
    """Return the pose of a head, from the positions of its regions weighted with their probabilities (V, R)."""
    assert locator.card.pose is not None
    indices = locator.heads[locator.card.pose["head"]].indices
    of_reference = chance[:, [indices.index(index) for index in reference.indices]]
    mass = of_reference.sum(0)
    centres = of_reference.T @ brain.places() / np.maximum(mass, 1e-9)[:, None]
    return find_pose(centres, mass * brain.grid.spacing_mm**3, reference)


def shading_of(volume: Volume, chance: np.ndarray, brain: Brain, *, locator: Model) -> Shading | None:
    """Return the shading of an image, measured in white matter; None if it is not stronger than usual."""
    assert locator.card.pose is not None and brain.frame_mm is not None
    regions = locator.heads[locator.card.pose["head"]].regions
    white = chance[:, [region.mapping == WHITE_MATTER for region in regions]].sum(1) > SURE
    if white.sum() < FEWEST_VOXELS:
        return None
    centre, half = brain.frame_mm
    places = (brain.places()[white] - centre) @ np.asarray(brain.turn) / half
    inside = brain.probability > 0.5
    brightness = to_grid(volume, brain.grid, inside)[inside].numpy()[white]
    shading = find_shading(brightness, places)
    return shading if shading.strength > STRONG_SHADING else None


def posed(brain: Brain, pose: Pose, reference: Reference, *, volume: Volume, locator: Model) -> Brain:
    """Return the brain with the rotation of its head, and with the frame of the whole brain if the scan cuts it."""
    spacing = canonical_spacing(volume)
    low, high = -0.5 * spacing, (np.array(canonical_shape(volume)) - 0.5) * spacing

    def outside(places: np.ndarray, slack_mm: float = 0.0) -> np.ndarray:
        beyond: np.ndarray = ((places < low - slack_mm) | (places > high + slack_mm)).any(1)
        return beyond

    turn = as_turn(pose.turn) if pose.angle_deg > TURN_FROM_DEG else UPRIGHT
    brain = replace(brain, turn=turn, frame_mm=(pose.centre_mm, pose.scale * reference.half_mm))
    lost = outside(pose.places(reference.centres_mm), CUT_MM)
    share = float(outside(pose.places(reference.half_mm * in_ball())).mean())
    if not lost.any() and share < CUT_SHARE:
        return brain
    assert locator.card.pose is not None
    names = [locator.heads[locator.card.pose["head"]].region(int(i)).name for i in reference.indices[lost]]
    parts = f", including {', '.join(names[:4])}{' and others' if len(names) > 4 else ''}" if names else ""
    message = f"The field of view cuts off about {share:.0%} of the brain{parts}: volumes cover only the visible part."
    return replace(brain, is_cut=True, findings=(Finding(BRAIN_CUT, message),))


def in_ball(steps: int = 21) -> np.ndarray:
    """Return points (N, 3) that fill the unit ball evenly."""
    axis = np.linspace(-1, 1, steps)
    cube = np.stack(np.meshgrid(axis, axis, axis), -1).reshape(-1, 3)
    ball: np.ndarray = cube[(cube**2).sum(1) <= 1]
    return ball


def head_weights(model: Model) -> dict[str, tuple[Tensor, Tensor]]:
    """Return weight (R, F) and bias (R,) of each head at its temperature, on the CPU like the features."""
    found = {}
    for name in model.card.heads:
        temperature = model.card.temperature.get(name, 1.0)
        weight, bias = (values.float().cpu() / temperature for values in model.network.head(name))
        found[name] = weight, bias
    return found
