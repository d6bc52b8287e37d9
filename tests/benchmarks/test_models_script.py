"""The script that trains every shipped model, with a substitute for Python that records the commands."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from bidsseg.learning.recipe import load_recipe
from bidsseg.models.card import FOLDER

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "models.sh"
DATASETS = "oasis", "heads", "ds000011", "ds002748", "ms"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name in DATASETS:
        (tmp_path / "data" / name / "sub-01").mkdir(parents=True)
        (tmp_path / "data" / name / "dataset_description.json").write_text("{}")
    return tmp_path / "data"


def call(data: Path, *minutes: str, code: int = 0) -> tuple[int, list[list[str]]]:
    """Return the exit status and the words of each started command; each command exits with ``code``."""
    log, python = data.parent / "log", data.parent / "python"
    log.write_text("")
    python.write_text(f'#!/bin/sh\necho "$@" >> {log}\nexit {code}\n')
    python.chmod(0o755)
    environment = {**os.environ, "PYTHON": str(python)}
    command = [str(SCRIPT), str(data), str(data.parent / "out"), *minutes]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    return done.returncode, [line.split() for line in log.read_text().splitlines()]


def test_all_models_are_trained_once(data: Path) -> None:
    status, commands = call(data)
    assert status == 0
    recipes = [words[words.index("--recipe") + 1] for words in commands if "--recipe" in words]
    made = {load_recipe(name).name for name in recipes}
    assert {path.name for path in FOLDER.iterdir()} <= made
    assert all((SCRIPT.parent / Path(words[0])).is_file() for words in commands)
    assert call(data) == (0, [])


def test_an_interrupted_script_is_resumed(data: Path) -> None:
    assert call(data, "0") == (75, [])
    status, commands = call(data, code=75)
    assert (status, len(commands)) == (75, 1)
    assert call(data)[1][0] == commands[0]


def test_a_failure_ends_it(data: Path) -> None:
    status, commands = call(data, code=65)
    assert (status, len(commands)) == (65, 1)
