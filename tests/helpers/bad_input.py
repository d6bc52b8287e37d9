"""What tests of bad input share: the errors that the user reads, and outputs that are complete or absent."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fake_model import App


class ErrorStream:
    """The standard error stream, as the user reads it."""

    def __init__(self, capture: pytest.CaptureFixture[str]) -> None:
        self.capture = capture
        self.text = ""

    @property
    def err(self) -> str:
        """The text printed so far."""
        self.text += self.capture.readouterr().err
        return self.text


@contextmanager
def no_traceback(capture: pytest.CaptureFixture[str]) -> Iterator[ErrorStream]:
    """Yield the error stream, which may contain no traceback at the end."""
    stream = ErrorStream(capture)
    yield stream
    assert "Traceback" not in stream.err and "internal error" not in stream.err


def t1w(app: App, label: str = "01") -> Path:
    return app.bids / f"sub-{label}" / "anat" / f"sub-{label}_T1w.nii.gz"


def whole(app: App, label: str) -> bool:
    """Return whether all outputs of a participant exist; otherwise none may exist."""
    names = [path.name for path in (app.output / f"sub-{label}").rglob("*") if path.is_file()]
    assert not [name for name in names if name.endswith(".part")]
    assert len(names) in (0, 21), names
    return len(names) == 21
