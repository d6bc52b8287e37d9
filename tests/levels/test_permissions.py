"""Files and folders without permission, and full disks: one clear message, and no partly written files."""

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from bad_input import ErrorStream, t1w, whole
from fake_model import App, app_for_everybody
from permissions import not_root

pytestmark = pytest.mark.usefixtures("stream")


@pytest.fixture
def open_app(monkeypatch: pytest.MonkeyPatch) -> Iterator[App]:
    with app_for_everybody(monkeypatch) as app:
        yield app


def test_an_image_that_may_not_be_read(open_app: App) -> None:
    t1w(open_app).chmod(0)
    with not_root():
        code = open_app("--skip-bids-validation")
    assert code == 1
    assert open_app.fates == {"sub-01": "failed", "sub-02": "done"}
    assert "not readable" in open_app.manifest["scans"][0]["reason"]


def test_a_dataset_that_may_not_be_read(open_app: App, stream: ErrorStream) -> None:
    open_app.bids.chmod(0)
    with not_root():
        assert open_app() == 66
    assert "check its permissions" in stream.err


def test_an_output_that_may_not_be_written(open_app: App, stream: ErrorStream) -> None:
    open_app.output.mkdir(mode=0o555)
    with not_root():
        assert open_app("--skip-bids-validation") == 73
    assert "permissions" in stream.err
    assert not list(open_app.output.iterdir())


def test_an_output_that_can_be_written_in_part(open_app: App) -> None:
    open_app.output.mkdir()
    open_app.output.chmod(0o777)
    (open_app.output / "sub-01").mkdir(mode=0o555)
    with not_root():
        assert open_app("--skip-bids-validation") == 73
    assert not whole(open_app, "01")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can leave results of another user")
def test_results_of_another_user_cannot_be_replaced(open_app: App, stream: ErrorStream) -> None:
    assert open_app("--skip-bids-validation") == 0
    for path in [open_app.output, open_app.output / "logs"]:
        path.chmod(0o777)
    with not_root():
        assert open_app("--skip-bids-validation", "--overwrite") == 73
    assert "cannot be replaced" in stream.err


def test_a_disk_that_is_full(app: App, stream: ErrorStream) -> None:
    app.output.mkdir()
    if shutil.which("mount") is None:
        pytest.skip("there is no mount here")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", app.output], capture_output=True)
    if mounted.returncode:
        pytest.skip("a small disk cannot be mounted here")
    try:
        assert app() == 74
        assert "No space left" in stream.err
        assert not list(app.output.rglob("*.part"))
        assert not (app.output / "sub-02/anat/sub-02_seg-FreeSurfer_desc-wholebrain_dseg.json").exists()
        subprocess.run(["mount", "-o", "remount,size=8m", app.output], check=True)
        assert app() == 0
        assert whole(app, "01") and whole(app, "02")
    finally:
        subprocess.run(["umount", app.output], check=True)


def test_a_disk_that_fills_up(app: App, monkeypatch: pytest.MonkeyPatch, stream: ErrorStream) -> None:
    """This test also runs on machines where nothing can be mounted."""
    left = 30_000
    real = os.replace

    def replace(part: Path, path: Path) -> None:
        nonlocal left
        left -= part.stat().st_size
        if left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(part, path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        assert app() == 74
    assert "No space left" in stream.err
    assert not list(app.output.rglob("*.part"))
    assert app() == 0
    assert whole(app, "01") and whole(app, "02")
