"""Weights on the line between a model and the one from which its training started."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from scripts import script

from bidsseg.models.library import load_model


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_shared_weights_are_moved_and_the_others_kept(
    share: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``lesions`` has a second image and another head for tissue, which ``open`` lacks."""
    monkeypatch.setattr(sys, "argv", ["between", "lesions", "open", str(share), str(tmp_path)])
    script("between").main()
    models = [load_model(name) for name in (str(tmp_path), "lesions", "open")]
    moved, model, start = (each.network.state_dict() for each in models)

    def line(name: str) -> torch.Tensor:
        return torch.lerp(model[name], start[name], share).half().float()

    for name in ("bottom.first.0.weight", "heads.FreeSurfer.weight"):
        torch.testing.assert_close(moved[name], line(name))
    second_image = slice(1, 16, 2)
    expected = ((1 - share) * model["stem.0.weight"][:, second_image]).half().float()
    torch.testing.assert_close(moved["stem.0.weight"][:, second_image], expected)
    assert torch.equal(moved["heads.FASTlesion.weight"], model["heads.FASTlesion.weight"])
    towards = {"towards": "open", "sha256": models[2].card.sha256, "share": share}
    assert models[0].card.recipe == {**models[1].card.recipe, "moved": towards}
