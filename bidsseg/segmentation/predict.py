"""Application of a model to a scan: find the brain, run the network, and label the scan's own grid."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from bidsseg.image.brightness import rescaled_each
from bidsseg.image.grid import within_content
from bidsseg.image.volume import Volume
from bidsseg.models.lesion_rule import MOST_PROBABLE, LesionRule
from bidsseg.models.library import Model
from bidsseg.segmentation.engine import Engine
from bidsseg.segmentation.features import Features
from bidsseg.segmentation.heads import read_heads
from bidsseg.segmentation.intracranial import estimate_intracranial
from bidsseg.segmentation.locate import ModelInput, head_weights, model_input
from bidsseg.segmentation.plausibility import implausible_findings
from bidsseg.segmentation.result import Segmentation
from bidsseg.segmentation.windows import features_of


def segment(
    images: Mapping[str, Volume],
    model: Model,
    *,
    device: str = "cpu",
    precision: str = "fp32",
    memory_mb: int | None = None,
    fast: bool = False,
    lesions: LesionRule | None = None,
    given: np.ndarray | None = None,
    want_probabilities: bool = False,
    want_entropy: bool = False,
    progress: Callable[[str], None] = lambda stage: None,
) -> Segmentation:
    """Segment one scan. DataError if no brain is found, or if an image is on another grid.

    Args:
        images: by suffix, all on the grid of the first input of the model, which is also the grid of the result; see
            ``registration.align``. The others may be missing, if the model was trained with missing images.
        memory_mb: memory limit of the network, None for no limit.
        fast: omit the pass over the mirror image, if the model has one.
        lesions: which voxels are lesions; None for the rule on the card.
        given: booleans (X, Y, Z), lesions that are given instead: the label map of a head with lesions has them where
            these are and nowhere else. See ``given_lesions.with_given_lesions`` for the other heads.
    """
    volume = images[model.card.inputs[0]]
    engine = Engine(device, precision, memory_mb)
    notes: list[str] = []
    used = rescaled_each({suffix: image for suffix, image in images.items() if suffix in model.card.inputs})
    used, start_mm = within_content(used, model.card.inputs[0])
    seen = model_input(used, model, engine, progress=progress)
    grid = seen.grid.moved(start_mm)
    findings = list(seen.brain.findings) if seen.brain is not None else []
    del used
    progress("segmenting")
    features = passes(seen, model, engine, fast=fast, notes=notes)
    del seen
    progress("labelling")
    with torch.inference_mode():
        result = read_heads(
            volume,
            grid,
            features,
            weights=pass_weights(model, len(features)),
            model=model,
            want_probabilities=want_probabilities,
            want_entropy=want_entropy,
            lesions=(lesions or model.card.lesion_rule()) if given is None else MOST_PROBABLE,
            given=given,
        )
    result.device, result.precision, result.notes = device, precision, list(dict.fromkeys(notes))
    result.findings += findings
    result.intracranial = estimate_intracranial(volume, result.brain, model.card, findings=findings)
    result.findings += implausible_findings(result, model, volume.voxel_volume_mm3)
    return result


def passes(seen: ModelInput, model: Model, engine: Engine, *, fast: bool, notes: list[str]) -> list[Features]:
    """Return the features of the pass over a scan, and of the pass over its mirror image if the model has one."""
    features = [features_of(model.network, seen.image, seen.position, wanted=seen.wanted, engine=engine, notes=notes)]
    one_sided = next((head.one_sided for head in model.heads.values() if head.unpaired), None)
    mirror = model.card.mirror and not fast
    if mirror and one_sided:
        notes.append(f"predicted without the pass over the mirror image: {one_sided}")
    elif mirror:
        # Predictions depend on the position of the cells: those of the second pass cross the borders of the first.
        steps = 0 if seen.wanted is None else model.network.cell // 2
        seen = seen.mirrored(steps)
        there = features_of(model.network, seen.image, seen.position, wanted=seen.wanted, engine=engine, notes=notes)
        features.append(there.mirrored(steps))
    return features


def pass_weights(model: Model, count: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Return weight and bias of each head for the features of one or two passes."""
    weights = head_weights(model)
    if count == 1:
        return weights
    return {name: mirrored_head(model, name, weight, bias=bias) for name, (weight, bias) in weights.items()}


def mirrored_head(model: Model, name: str, weight: Tensor, *, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Return the head for the mean of the logits of a scan and its mirror image, from features (..., 2F)."""
    partners = torch.tensor(model.heads[name].partners())
    return torch.cat([weight, weight[partners]], 1) / 2, (bias + bias[partners]) / 2
