"""Evaluation of SegNet in the convention of its paper: the true brain of each scan is given, and only it is evaluated.

    python benchmarks/segnet_published.py OASIS MODEL_FOLDER

De Brébisson and Montana 2015 (arXiv 1502.02445) took the brain, its box and the scale of the brightness from the manual
labels (derivative ``manual``), also at test time. ``accuracy.py`` evaluates the model without such a mask, as a user
runs it. The held-out participants on the card of the model are evaluated.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from bidsseg.evaluation import agreement
from bidsseg.evaluation.bootstrap import estimate
from bidsseg.execution.machine import cpu_precision, keep_freed_memory
from bidsseg.labels import load_protocol
from bidsseg.learning.cases import Case
from bidsseg.learning.datasets import load_cases
from bidsseg.learning.voxel_trainer import labelled_brain
from bidsseg.models.library import load_model
from bidsseg.networks.segnet.staged import StagedSegNet, segment_in_stages
from bidsseg.networks.segnet.surroundings import describe, surroundings
from bidsseg.settings import Report, Settings

PRECISION = torch.bfloat16 if cpu_precision() == "bf16" else torch.float32
NAIVE = 2000
"""Voxels in a batch of separate patches."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("oasis", type=Path)
    parser.add_argument("model")
    options = parser.parse_args()
    keep_freed_memory()
    labels = {"BrainCOLOR": [options.oasis / "derivatives" / "manual"]}
    settings = Settings(options.oasis, Path("never-written"), labels=labels)
    model = load_model(options.model)
    held_out = model.card.metrics.get("held_out", ())
    unseen = [case for case in load_cases(settings, Report()) if case.name in held_out]
    if not unseen:
        parser.error(
            f"the card of {options.model} lists no held-out participant of {options.oasis}: give the model of a fold"
        )
    network = model.network
    assert isinstance(network, StagedSegNet)
    head = load_protocol("BrainCOLOR").scored()
    dice, errors, first_errors = [], [], []
    for case in unseen:
        assert case.image is not None
        truth = labelled_brain(case, head).labels
        first, final, seconds, stages = segmentations(network, case.image[0], case.brain)
        scored = truth >= 0
        regions = agreement.dice(final[scored].numpy(), truth[scored].numpy(), range(1, len(head.regions)))
        dice.append(float(np.nanmean(regions)))
        errors.append(float((final != truth)[scored & (truth > 0)].float().mean()))
        first_errors.append(float((first != truth)[scored & (truth > 0)].float().mean()))
        print(
            f"{case.name}: Dice {dice[-1]:.3f}, voxel error {errors[-1]:.3f} ({first_errors[-1]:.3f} after the first "
            f"network), {stages} stages, {seconds:.0f} s, {int(case.brain.sum()) * 2 / seconds:,.0f} voxels/s",
            flush=True,
        )
    print(f"patch by patch: {naive_rate(network, unseen[0]):,.0f} voxels/s")
    mean = estimate(np.array(dice))
    print(f"Dice {mean.mean:.3f} [{mean.low:.3f}, {mean.high:.3f}] (published .725)")
    print(f"voxel error {np.mean(errors):.3f} (published .163), {np.mean(first_errors):.3f} after the first network")


def segmentations(
    network: StagedSegNet, image: torch.Tensor, brain: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, float, int]:
    """Return labels (X, Y, Z) after the first network and at the end, seconds, and the number of stages."""
    started = time.monotonic()
    staged, _ = segment_in_stages(
        network.first, network.second, image, mask=brain, dtype=PRECISION, most=network.stages
    )
    seconds = time.monotonic() - started
    return staged.first.long(), staged.labels.long(), seconds, staged.stages


def naive_rate(network: StagedSegNet, case: Case) -> float:
    """Return the voxels per second of the first network if the patches of each voxel are computed separately."""
    assert case.image is not None
    seen = surroundings(case.image[0], case.brain)
    points = torch.nonzero(case.brain)[: 4 * NAIVE]
    net = network.first.eval()
    started = time.monotonic()
    with torch.inference_mode(), torch.autocast("cpu", PRECISION, enabled=PRECISION is torch.bfloat16):
        for some in points.split(NAIVE):
            net(describe(seen, some, net.groups))
    return len(points) / (time.monotonic() - started)


if __name__ == "__main__":
    main()
