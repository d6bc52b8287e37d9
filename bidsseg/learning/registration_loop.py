"""Training DFNet, without labels, on pairs of the labelled scans (Oberoi et al. 2021)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from bidsseg.errors import TemporaryFailure, UsageError
from bidsseg.files import replacing
from bidsseg.learning.cases import ListedCase
from bidsseg.learning.clock import Clock
from bidsseg.learning.optimiser import Stepper
from bidsseg.learning.registration import Mover, Placed, displace
from bidsseg.learning.samples import Plan
from bidsseg.learning.state import Conditions, glimpsed, resumed, same_run, save_checkpoint, seeded
from bidsseg.networks.dfnet import DFNet, roughness, similarity_loss, warp

DFNET = "dfnet.safetensors"
BUDGET_SHARE = 0.25
"""The share of a run's time for the training of DFNet."""


def fit_mover(
    cases: Sequence[ListedCase],
    unlabelled: Sequence[ListedCase],
    plan: Plan,
    *,
    conditions: Conditions,
) -> tuple[Mover, float]:
    """Return the mover of the cases onto the unlabelled scans, and the seconds of the budget used for its training.

    DFNet is read from the folder if present, otherwise trained; a checkpoint in the folder is resumed.
    TemporaryFailure if the training is interrupted; UsageError if fewer than two cases have images.
    """
    registration, recipe = plan.recipe.registration, plan.recipe
    assert registration is not None
    place = recipe.sampling.shape, recipe.spacing_mm
    weights = conditions.folder / DFNET
    if not weights.is_file():
        brains = Placed([case for case in cases if case.has_image], *place)
        if len(brains) < 2:
            raise UsageError(f"recipe {recipe.name}: [registration] needs at least two labelled training scans")
        train(brains, plan, replace(conditions, budget_s=BUDGET_SHARE * conditions.budget_s))
        conditions.processes.wait()
    network = DFNet(registration.norm)
    with safe_open(weights, "pt") as stored:
        network.load_state_dict({name: stored.get_tensor(name) for name in stored.keys()})  # noqa: SIM118
        same_run(json.loads(stored.metadata()["run"]), conditions.run, weights)
        spent_s = float(stored.metadata()["elapsed_s"])
    remove_checkpoint(network, conditions)
    network = network.to(conditions.device).eval().requires_grad_(requires_grad=False)
    return Mover(network, Placed(unlabelled, *place), registration.share, conditions.precision), spent_s


def train(brains: Sequence[Tensor], plan: Plan, conditions: Conditions) -> None:
    """Train DFNet on random pairs of brains (1, 1, D, H, W), and save it in the folder."""
    registration, batch = plan.recipe.registration, plan.recipe.batch
    assert registration is not None
    processes, folder = conditions.processes, conditions.folder
    network = DFNet(registration.norm).to(  # type: ignore[call-overload]
        device=processes.device, memory_format=torch.channels_last_3d
    )
    stepper = Stepper(network, registration.optimiser)
    state, _ = resumed(conditions, network, stepper)
    clock = Clock(conditions, state, registration.steps)
    running: float | None = None
    while state.step < registration.steps:
        progress = clock.progress()
        if clock.stopped:
            save_checkpoint(conditions, network, stepper, state=state)
            raise TemporaryFailure(
                f"interrupted after {state.step} steps of registration, saved in {folder}: run again with --resume"
            )
        if progress >= 1:
            break
        for i in range(processes.rank, batch, processes.count):
            moving, fixed = (brain.to(processes.device) for brain in pair(brains, plan.seed, state.step * batch + i))
            displacement = displace(network, moving, fixed, precision=conditions.precision)
            unlike = similarity_loss(warp(moving, displacement), fixed)
            ((unlike + registration.smoothness * roughness(displacement)) / batch).backward()
            running = 0.95 * (unlike.item() if running is None else running) + 0.05 * unlike.item()
        processes.add_gradients(network.parameters())
        stepper.step(progress)
        processes.average(network.buffers())
        clock.tick()
        if not processes.first:
            continue
        if state.step % 20 == 0:
            shown = f"{clock.pace(progress)}, unlike {running:.4f}"
            conditions.report(f"registration step {state.step}, {progress:.0%}, {shown}")
        if clock.is_time_to_save():
            save_checkpoint(conditions, network, stepper, state=state)
    if processes.first:
        tensors = {name: value.cpu().contiguous() for name, value in network.state_dict().items()}
        with replacing(folder / DFNET) as stream:
            about = {"steps": str(state.step), "elapsed_s": f"{state.elapsed_s:.1f}", "run": json.dumps(conditions.run)}
            about["files"] = json.dumps(dict(conditions.files))
            stream.write(save(tensors, about))


def remove_checkpoint(network: DFNet, conditions: Conditions) -> None:
    """Remove the checkpoint of a finished DFNet, if there still is one; one of the model that follows is kept."""
    if conditions.processes.first:
        saved = glimpsed(conditions.checkpoint).get("network", {})
        if saved.keys() == network.state_dict().keys():
            conditions.checkpoint.unlink()
    conditions.processes.wait()


def pair(brains: Sequence[Tensor], seed: int, number: int) -> list[Tensor]:
    """Return two different brains, by the number of the pair: the moving and the fixed one."""
    order = torch.randperm(len(brains), generator=seeded(seed, number, 2))
    return [brains[int(i)] for i in order[:2]]
