"""A model without weights that segments tissues by intensity, so that tests of the level take milliseconds."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import phantoms
import pytest
from listed_once import list_once
from nifti import load_nifti

from bidsseg.app import cli
from bidsseg.bids import validator
from bidsseg.bids.names import with_extension
from bidsseg.execution.machine import Machine
from bidsseg.models.card import CARD, Card, find_card, head_protocol
from bidsseg.segmentation.result import Intracranial, Probabilities, Segmentation

INTRACRANIAL_MM3 = 1234567.0
"""The intracranial volume of every scan."""

if TYPE_CHECKING:
    import pandas as pd


def save_card(folder: Path, **values: Any) -> Path:
    """Write the card of a model without weights and return the folder, to be given as ``--model``."""
    given = {
        "name": "wholebrain",
        "title": "Thresholds",
        "inputs": ("T1w",),
        "network": {"name": "none"},
        "spacing_mm": 1.0,
        "heads": ("brain", "BrainCOLOR", "FAST", "FreeSurfer"),
        "sha256": "0" * 64,
        "description": "Tissues told by their intensity.",
        **values,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CARD).write_text(Card(**given).to_json())
    return folder


def segment(images: dict[str, Any], model: Any, **asked: Any) -> Segmentation:
    """Return three classes by intensity, as the first three regions of every protocol."""
    time.sleep(float(os.environ.get("FAKE_MODEL_SECONDS", 0)))
    asked["progress"]("network")
    t1w = images["T1w"]
    share = t1w.data / max(float(t1w.data.max()), 1e-6)
    classes = np.digitize(share, (0.2, 0.4, 0.7)).astype(np.uint8)
    labels, soft, probabilities, entropy = {}, {}, {}, {}
    for name in model.card.protocols:
        protocol = model.heads[name]
        labels[name] = np.array(protocol.indices[:4])[classes].astype(np.min_scalar_type(max(protocol.indices)))
        counts = np.bincount(classes.ravel(), minlength=len(protocol.indices))
        soft[name] = counts * t1w.voxel_volume_mm3
        if asked["want_probabilities"]:
            regions = np.arange(len(protocol.indices))
            probabilities[name] = cast(
                Probabilities, SimpleNamespace(maps=lambda regions=regions: (classes == r for r in regions))
            )
        if asked["want_entropy"]:
            entropy[name] = share.clip(0, 1).astype(np.float32)
    return Segmentation(
        labels=labels,
        soft_mm3=soft,
        brain=classes > 0,
        intracranial=Intracranial(INTRACRANIAL_MM3, "made up"),
        lesion=classes == 2 if model.card.lesion else None,
        lesion_probability=share.astype(np.float16) if model.card.lesion else None,
        probabilities=probabilities,
        entropy=entropy,
        quality=0.875,
        findings=[],
        notes=[],
        device="cpu",
        precision="fp32",
    )


@dataclass
class FakeModel:
    """A substitute for the network that records its calls."""

    segmented: int = 0
    loaded: int = 0

    def modules(self) -> dict[str, ModuleType]:
        """Return substitutes for the modules that need torch."""
        library, predict = ModuleType("library"), ModuleType("predict")
        library.__dict__.update(load_model=self.load)
        predict.__dict__.update(segment=self.segment)
        return {"bidsseg.models.library": library, "bidsseg.segmentation.predict": predict}

    def load(self, name: str) -> SimpleNamespace:
        self.loaded += 1
        card = find_card(name)
        heads = {name: head_protocol(card, name) for name in card.heads}
        network = SimpleNamespace(numbers_per_voxel=32, whole=False)
        return SimpleNamespace(card=card, heads=heads, network=network, locator=None)

    def segment(self, *given: Any, **asked: Any) -> Segmentation:
        self.segmented += 1
        return segment(*given, **asked)


def memory_mb() -> int:
    """Return a fixed value instead of ``available_memory_mb``, so that tests do not depend on other programs."""
    return int(os.environ.get("FAKE_MODEL_MEMORY_MB", 3000))


def machine(settings: Any = None) -> Machine:
    """Return a machine instead of ``choose_machine``, which needs torch."""
    limit = min(memory_mb(), getattr(settings, "memory_mb", None) or memory_mb())
    return Machine("cpu", os.environ.get("FAKE_MODEL_PRECISION", "fp32"), 1, limit)


Report = tuple[list[dict[str, Any]], dict[str, str]]
VALIDATED: dict[tuple[object, ...], Report] = {}
"""What the validator reported on each view of a dataset in this process."""
_run = validator._run


def validate_once(program: str, view: Path) -> Report:
    """Run the validator if it has not yet been run on a view with the same names and contents: a start takes .5 s."""
    try:
        files = {str(path.relative_to(view)): path.is_file() and path.read_bytes() for path in view.rglob("*")}
    except OSError:
        return _run(program, view)
    key = (program, *sorted(files.items()))
    if key not in VALIDATED:
        VALIDATED[key] = _run(program, view)
    return VALIDATED[key]


def use_fakes(monkeypatch: pytest.MonkeyPatch) -> FakeModel:
    """Replace the network, the machine and the size of pictures, whose drawing would take most of the time of a run."""
    fake = FakeModel()
    for name, module in fake.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr("bidsseg.execution.machine.choose_machine", machine)
    monkeypatch.setattr("bidsseg.execution.machine.available_memory_mb", memory_mb)
    monkeypatch.setattr("bidsseg.report.mosaic.PIXELS_PER_MM", 0.25)
    return fake


def heed_interrupts() -> None:
    """Restore the handling of SIGINT, which processes inherit as ignored if tests run in the background of a shell."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@dataclass
class App:
    """The command line in tests: a dataset, a fake model and an output folder."""

    bids: Path
    output: Path
    card: Path
    fake: FakeModel

    def __call__(self, *words: str, level: str = "participant", model: Path | None = None) -> int:
        """Run the command line and return the exit code."""
        return cli.main([str(self.bids), str(self.output), level, "--model", str(model or self.card), *words])

    def process(self, *words: str, **environment: str) -> subprocess.Popen[str]:
        """Start the command line in a separate process."""
        command = [sys.executable, __file__, self.bids, self.output, "participant", "--model", self.card, *words]
        return subprocess.Popen(
            list(map(str, command)),
            env={**os.environ, "PYTHONPATH": f"{Path(__file__).parent}:{Path(__file__).parents[2]}", **environment},
            start_new_session=True,
            preexec_fn=heed_interrupts,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    @property
    def manifest(self) -> dict[str, Any]:
        """Return the record of the last run."""
        last = sorted((self.output / "logs").glob("run-*.json"))[-1]
        return dict(json.loads(last.read_text()))

    @property
    def fates(self) -> dict[str, str]:
        """Return the outcome of each scan in the last run."""
        return {entry["scan"]: entry["outcome"] for entry in self.manifest["scans"]}

    def files(self, pattern: str = "sub-*/**/*") -> dict[str, bytes]:
        """Return names and contents of the files in the output folder."""
        found = sorted(path for path in self.output.glob(pattern) if path.is_file())
        return {path.relative_to(self.output).as_posix(): path.read_bytes() for path in found}

    def voxels(self, name: str) -> np.ndarray:
        """Return the voxels of an image in the output folder."""
        return np.asarray(load_nifti(self.output / name).dataobj)

    def sidecar(self, name: str) -> dict[str, Any]:
        """Return the content of the sidecar of an image or table in the output folder."""
        return dict(json.loads(with_extension(self.output / name, ".json").read_text()))

    def table(self, name: str) -> pd.DataFrame:
        """Return a table in the output folder; missing cells are ``n/a``."""
        import pandas as pd

        return pd.read_csv(self.output / name, sep="\t", keep_default_na=False)


def make_app(folder: Path, bids: Path, monkeypatch: pytest.MonkeyPatch) -> App:
    """Return an app whose network is fake, and whose registrations compare few voxels, until the end of the test."""
    fake = use_fakes(monkeypatch)
    monkeypatch.setattr("bidsseg.registration.linear.SAMPLES", 3000)
    monkeypatch.setattr(validator, "_run", validate_once)
    list_once(monkeypatch)
    return App(bids, folder / "out", save_card(folder / "model"), fake)


@contextmanager
def app_for_everybody(monkeypatch: pytest.MonkeyPatch, *people: int) -> Iterator[App]:
    """Return an app in a folder that every user may read and write; one run has imported all modules.

    Args:
        people: participants and sessions, as ``phantoms.make_bids`` takes them.
    """
    place = Path(tempfile.mkdtemp())
    place.chmod(0o777)
    app = make_app(place, phantoms.make_bids(place / "bids", *people), monkeypatch)
    app.output = place / "first"
    assert app("--skip-bids-validation") == 0
    app.output = place / "out"
    yield app
    subprocess.run(["chmod", "-R", "u+rwX", place], check=True)  # tests remove permissions
    shutil.rmtree(place)


if __name__ == "__main__":  # the command line with the fake model in a separate process
    use_fakes(pytest.MonkeyPatch())
    sys.exit(cli.main())
