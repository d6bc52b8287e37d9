"""A training that is packed, done without the data, and finished with it."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import train_elsewhere as elsewhere
from labelled import Ask
from safetensors.torch import load_file

from bidsseg.labels import load_protocol
from bidsseg.learning import training
from bidsseg.learning.cases import Annotation, Case
from bidsseg.models.card import read_card
from bidsseg.models.library import load_model

SCRIPT = Path(elsewhere.__file__)


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Return a function that runs the script with some words and returns its exit code."""
    monkeypatch.setattr(training, "learn", training.learn)  # restored in the end

    def call(*words: object) -> int:
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, words)])
        return elsewhere.main()

    return call


def test_a_training_elsewhere_leaves_the_model_and_its_card(
    ask: Ask, call: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only the training itself runs in a process of its own."""
    given, pack, fitted = ask(), tmp_path / "pack", tmp_path / "fitted.safetensors"
    words = [given.bids_dir, given.output_dir, "train", "--recipe", given.training.recipe, "--labels"]
    words += [f"FAST={given.labels['FAST'][0]}", "--folds", "2", "--n-cpus", "1"]
    assert call("pack", pack, *words) == 75
    assert "2 scans are packed" in capsys.readouterr().err
    assert call("pack", "--as", "other", pack, *words) == 75
    names = sorted(path.name for path in pack.iterdir())
    assert len([name for name in names if name.endswith(".case")]) == 2  # both models have the same scans
    assert {"tiny.job", "other.job"} < set(names)

    given.bids_dir.rename(tmp_path / "away")
    subprocess.run([sys.executable, SCRIPT, "fit", pack, "tiny", fitted, "--device", "cpu"], check=True)
    (tmp_path / "away").rename(given.bids_dir)
    assert call("finish", fitted, *words) == 0, capsys.readouterr().err
    folder = given.output_dir / "models" / "tiny"
    card = read_card(folder)
    assert card.recipe["steps_done"] == 3
    assert card.metrics["held_out"] == ["bids/sub-01", "bids/sub-03"]
    learned, initial = load_file(fitted), elsewhere.read(pack / "tiny.job")["weights"]
    assert all(
        torch.equal(value.half(), learned[name]) for name, value in load_model(str(folder)).network.state_dict().items()
    )
    assert any(not torch.equal(value, learned[name]) for name, value in initial.items())


@pytest.mark.parametrize("has_image", [True, False])
def test_a_packed_scan_is_nearly_the_scan(has_image: bool) -> None:
    shape = (70, 62, 60)
    brain = torch.zeros(shape, dtype=torch.bool)
    brain[30:45, 25:40, 22:38] = True
    image = torch.rand((2, *shape), generator=torch.Generator().manual_seed(0)) * 0.8 + 0.1
    image[1] = 0  # a missing FLAIR
    values = brain.to(torch.uint8) * 2
    case = Case("bids/sub-01", image if has_image else None, (Annotation(load_protocol("FAST"), values),), brain)
    found = elsewhere.opened(elsewhere.small(case))
    assert (found.name, found.kind) == (case.name, case.kind)
    assert found.brain.sum() == brain.sum() and torch.equal(found.annotations[0].values, found.brain * 2)
    if not has_image:
        assert found.image is None and found.brain.shape == shape
        return
    assert found.image is not None and case.image is not None
    assert found.image[:, found.brain] == pytest.approx(case.image[:, brain], abs=0.9 / elsewhere.LEVELS)
    assert not found.image[1].any() and found.image[0].any(0).sum() < brain.numel()
    assert found.brain.numel() < brain.numel()
