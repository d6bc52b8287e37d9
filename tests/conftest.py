"""Fixtures that several test files share."""

import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small volumes: threads would only wait for each other

import phantoms
import pytest
from labelled import RECIPE, Ask, leave_curves_undrawn, make_labelled
from listed_once import list_once
from recording_console import RecordingConsole

from bidsseg.settings import Settings, Training

SLOWEST = (
    "test_cluster.py", "test_partial.py", "test_dask.py", "test_train.py", "test_participant.py", "test_robustness.py",
    "test_spaces.py", "test_longitudinal.py", "test_system_errors.py", "test_stopping.py", "test_learning_segnet.py",
    "test_bad_input.py", "test_memory.py", "test_registration.py", "test_streams.py", "test_concurrent.py",
    "test_wheel.py", "test_finished.py", "test_crossvalidate.py",
)  # fmt: skip
"""Slowest test files. They run first; otherwise one process would still run them when the others have finished."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the slowest files first and keep the order of the others."""
    items.sort(key=lambda item: SLOWEST.index(item.path.name) if item.path.name in SLOWEST else len(SLOWEST))


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Return one process more than there are cores: tests of batch systems and of several processes mostly wait."""
    return len(os.sched_getaffinity(0)) + 1


def _one_thread() -> None:
    """Give torch one thread in this process, if it is loaded."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """Restore one thread after a run of the program; with more threads than cores, all of them wait."""
    _one_thread()
    yield
    _one_thread()


@pytest.fixture
def make_bids(tmp_path: Path) -> Callable[..., Path]:
    """``make_bids(participants=2, sessions=0, runs=0, flair=False)`` writes a dataset; see `phantoms.make_bids`."""
    return partial(phantoms.make_bids, tmp_path / "bids")


@pytest.fixture(params=phantoms.CASES)
def head_file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A head in each form of real data, one after the other."""
    return phantoms.save_case(tmp_path, request.param)


@pytest.fixture(scope="session")
def testdata() -> Path:
    """Folder of the real data, from the variable BIDSSEG_TESTDATA."""
    if folder := os.environ.get("BIDSSEG_TESTDATA"):
        return Path(folder)
    pytest.skip("real data: set BIDSSEG_TESTDATA to its folder")


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A labelled dataset, see `labelled.make_labelled`."""
    return make_labelled(tmp_path_factory.mktemp("labelled"))


@pytest.fixture
def ask(dataset: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """Return a function for settings: ``ask(recipe, overwrite=..., resume=...)``; nobody is held out by default."""
    leave_curves_undrawn(monkeypatch)
    list_once(monkeypatch)

    def settings(recipe: str = RECIPE, *, output: str = "out", overwrite: bool = False, **training: Any) -> Settings:
        path = tmp_path / "recipe.toml"
        path.write_text(recipe)
        training = {"recipe": str(path), "folds": 5 if "fold" in training else 1, **training}
        return Settings(
            dataset[0],
            tmp_path / output,
            precision="fp32",
            n_cpus=1,
            overwrite=overwrite,
            labels=training.pop("labels", {"FAST": [dataset[1]]}),
            training=Training(**training),
            report=RecordingConsole(),
        )

    return settings
