"""A dataset with annotations, and a recipe for very short training."""

import io
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import phantoms
import pytest
import torch
from PIL import Image
from recording_console import RecordingConsole

from bidsseg.learning.interruption import Interruption
from bidsseg.models.library import load_model
from bidsseg.settings import Settings

Ask = Callable[..., Settings]
"""Type of the fixture `ask`."""

SHAPE = (24, 28, 24)
GRID = phantoms.grid(8.0, "LAS", SHAPE)
HALF = np.diag([0.5, 0.5, 0.5, 1]) @ GRID
"""Affine that halves the size of the phantom, because training uses a 1 mm grid."""
RECIPE = """
name = "tiny"
title = "Tissue from next to nothing"
spacing_mm = 3.0
heads = { brain = 0.5, FAST = 1.0 }
steps = 3

[network]
name = "subpixel-unet"
coordinates = 0
widths = [4, 8]
features = 4
last = 4

[sampling]
shape = [32, 32, 32]
points = 500
whole_head = true
"""


def make_labelled(folder: Path) -> tuple[Path, Path]:
    """Write three participants with their tissues in the protocol FAST, and a label map without image."""
    bids = phantoms.make_bids(folder / "bids", 3, spacing_mm=8.0, shape=SHAPE)
    tissue = np.array([0, 1, 2, 3, 2], np.uint8)[phantoms.head(GRID, SHAPE, phantoms.LABEL)]
    for number in range(1, 5):
        name = f"sub-{number:02}"
        phantoms.save(folder / "fast" / name / "anat" / f"{name}_seg-FAST_dseg.nii.gz", tissue, HALF)
        if number < 4:
            image = phantoms.noisy_head(GRID, SHAPE, seed=number)
            phantoms.save(bids / name / "anat" / f"{name}_T1w.nii.gz", image, HALF)
    return bids, folder / "fast"


def leave_curves_undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write one pixel for the picture of a learning curve; drawing it takes longer than a very short training."""
    pixel = io.BytesIO()
    Image.new("L", (1, 1)).save(pixel, "png")
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda _, stream, **__: stream.write(pixel.getvalue()))


def console(settings: Settings) -> RecordingConsole:
    assert isinstance(settings.report, RecordingConsole)
    return settings.report


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_model(str(folder)).network.state_dict()


def interrupt_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupt the training after this number of steps; it checks once before the first step.

    Threads that read scans are not interrupted.
    """
    asked = []

    def once_more(self: Interruption) -> bool:
        if threading.current_thread() is not threading.main_thread():
            return False
        asked.append(1)
        return len(asked) > steps + 1

    monkeypatch.setattr(Interruption, "asked", once_more)
