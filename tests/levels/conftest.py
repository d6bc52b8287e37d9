"""Fixtures of the levels: the program with a fake model, its error stream, and label maps to compare."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from bad_input import ErrorStream, no_traceback
from compared import make_folders
from fake_model import App, make_app


@pytest.fixture
def app(tmp_path: Path, make_bids: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> App:
    return make_app(tmp_path, make_bids(), monkeypatch)


@pytest.fixture
def stream(capfd: pytest.CaptureFixture[str]) -> Iterator[ErrorStream]:
    """The error stream; the test may print no traceback."""
    with no_traceback(capfd) as stream:
        yield stream


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """An empty output folder."""
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """An output folder and a derivative dataset, see `make_folders`."""
    return make_folders(tmp_path)
