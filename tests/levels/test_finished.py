"""When a scan is finished: what a later run skips, and what it segments again."""

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import phantoms
import pytest
from fake_model import App, make_app, save_card
from nifti import load_nifti

from bidsseg.image.nifti import write_maps

ROOT = Path(__file__).parents[2]


def scan(app: App, label: str = "01") -> Path:
    return app.bids / f"sub-{label}" / "anat" / f"sub-{label}_T1w.nii.gz"


def test_finished_scans_are_skipped(app: App, capsys: pytest.CaptureFixture[str]) -> None:
    assert app() == 0
    written = {path: path.stat().st_mtime_ns for path in app.output.rglob("sub-*/**/*")}
    assert app() == 0
    assert (app.fake.segmented, app.fake.loaded) == (2, 1)
    assert {path: path.stat().st_mtime_ns for path in app.output.rglob("sub-*/**/*")} == written
    assert app.fates == {"sub-01": "skipped", "sub-02": "skipped"}
    assert "2 were finished before" in capsys.readouterr().out
    assert app("--overwrite") == 0
    assert app.fake.segmented == 4


def test_nothing_to_do_needs_no_torch(app: App) -> None:
    """Pages need none of these libraries when they are loaded, either."""
    assert app() == 0
    script = (
        "import sys; from bidsseg.app.cli import main\n"
        f"code = main([{str(app.bids)!r}, {str(app.output)!r}, 'participant', '--model', {str(app.card)!r}])\n"
        "import bidsseg.report\n"
        "print({'torch', 'pandas', 'matplotlib', 'scipy.ndimage'} & set(sys.modules)); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("set()\n")


@pytest.mark.parametrize("change", ["image", "model", "temperature", "lost file", "more wanted", "broken record"])
def test_changed_scans_are_segmented_again(change: str, app: App) -> None:
    assert app() == 0
    words: list[str] = []
    match change:
        case "image":
            source = scan(app)
            phantoms.save(source, phantoms.noisy_head(phantoms.grid(), seed=9), phantoms.grid())
        case "model":
            save_card(app.card, sha256="1" * 64)
        case "temperature":
            save_card(app.card, temperature={"FAST": 1.5})
        case "lost file":
            (app.output / "sub-01/anat/sub-01_seg-FAST_desc-wholebrain_dseg.tsv").unlink()
        case "more wanted":
            words = ["--entropy"]
        case "broken record":
            (app.output / "sub-01/anat/sub-01_seg-FreeSurfer_desc-wholebrain_dseg.json").write_text("{")
    assert app(*words) == 0
    assert app.fake.segmented == (4 if change in ("model", "temperature", "more wanted") else 3)
    assert app(*words) == 0
    assert app.fake.segmented == (4 if change in ("model", "temperature", "more wanted") else 3)


def test_a_changed_uncompressed_image_is_segmented_again(app: App) -> None:
    source = scan(app)
    plain = source.with_suffix("")
    image = load_nifti(source)
    data = np.asarray(image.dataobj).copy()
    source.unlink()
    nib.save(nib.Nifti1Image(data, image.affine, image.header), plain)
    assert app() == 0
    data[24, 28, 24] += 1
    nib.save(nib.Nifti1Image(data, image.affine, image.header), plain)
    assert app() == 0
    assert app.fake.segmented == 3


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_run_is_resumed(
    how: signal.Signals, tmp_path: Path, make_bids: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    app = make_app(tmp_path, make_bids(6), monkeypatch)
    process = app.process("--skip-bids-validation", FAKE_MODEL_SECONDS="0.5")
    record = "sub-02/anat/sub-02_seg-FreeSurfer_desc-wholebrain_dseg.json"
    while not (app.output / record).exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(how)
    _, err = process.communicate()
    assert process.returncode == (-signal.SIGKILL if how == signal.SIGKILL else 130), err
    assert "Traceback" not in err
    leftover = app.output / "sub-06/anat/.sub-06_seg-FAST_desc-wholebrain_dseg.nii.gz.0123abcd.part"
    leftover.parent.mkdir(parents=True, exist_ok=True)
    leftover.write_bytes(b"half a file")
    done = {path.name[:6] for path in app.output.rglob("*seg-FreeSurfer*_dseg.json")}
    assert {"sub-01", "sub-02"} <= done and "sub-06" not in done
    assert app() == 0
    assert app.fake.segmented == 6 - len(done)
    assert not list(app.output.rglob("*.part"))
    resumed = app.files()
    app.output = tmp_path / "straight"
    assert app() == 0
    assert app.files() == resumed


def test_a_page_that_a_killed_run_left_out_is_made(app: App) -> None:
    assert app() == 0
    segmented, page = app.fake.segmented, app.output / "sub-01.html"
    whole = page.read_bytes()
    page.unlink()
    (app.output / ".sub-01.html.0123abcd.part").write_bytes(whole[:100])
    stale = app.output / "sub-02.html"
    stale.write_bytes(b"of an earlier scan")
    os.utime(stale, (0, 0))
    assert app() == 0
    assert app.fake.segmented == segmented and page.read_bytes() == whole
    assert b"of an earlier scan" not in stale.read_bytes()
    assert not list(app.output.rglob("*.part"))


def test_half_files_of_killed_runs_are_removed_everywhere(app: App) -> None:
    assert app() == 0
    names = ("README.md", "descriptions.tsv", "labels/a.label", "logs/run-1.json", "group.html", "sub-01/figures/a.png")
    parts = [app.output / name for name in names]
    parts = [path.with_name(f".{path.name}.0123abcd.part") for path in parts]
    theirs = [app.output / "sub-01/.a.part", app.output / ".note.part"]
    for level, removed in (("participant", parts), ("group", parts[:-1])):
        for path in (*parts, *theirs):
            path.write_bytes(b"half a file")
        assert app(level=level) == 0
        assert not [path for path in removed if path.exists()] and all(path.exists() for path in theirs)


def test_partly_written_scans_never_count_as_finished(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    assert app() == 0
    save_card(app.card, sha256="1" * 64)

    def fail(*_: object) -> None:
        raise RuntimeError("killed here")

    with monkeypatch.context() as patch:
        patch.setattr("bidsseg.derivative.job.volume_table", fail)
        assert app() == 1
    save_card(app.card)
    assert app() == 0
    assert app.fake.segmented == 6


def test_group_leaves_out_a_scan_that_is_half_written_again(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of the earlier result beside others that are already replaced are no result in any table."""
    save_card(app.card, heads=("brain", "BrainCOLOR", "FASTlesion"), lesion="FASTlesion")
    assert app() == 0

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    with monkeypatch.context() as patch:
        patch.setattr("bidsseg.derivative.job.lesion_table", full)
        assert app("--overwrite", "--participant-label", "01") == 74
    assert app(level="group") == 0
    for name in ("seg-BrainCOLOR", "seg-FASTlesion", "label-lesion"):
        table = app.table(f"group_{name}_desc-wholebrain_morph.tsv")
        assert list(table["status"]) == ["failed", "done"], name


@pytest.mark.parametrize("whole", [False, True])
def test_an_output_on_request_of_a_killed_run_does_not_outlive_its_image(
    whole: bool, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*given: Any, **named: Any) -> None:
        if whole:
            write_maps(*given, **named)
        raise RuntimeError("killed here")

    with monkeypatch.context() as patch:
        patch.setattr("bidsseg.derivative.job.write_maps", killed)
        assert app("--probseg") == 1
    phantoms.save(scan(app), phantoms.noisy_head(phantoms.grid(), seed=9), phantoms.grid())
    assert len(app.files("sub-01/anat/*_probseg.*")) == 1 + whole
    assert app() == 0
    assert not app.files("sub-01/anat/*_probseg.*")


def test_a_dry_run_lists_and_writes_nothing(app: App, capsys: pytest.CaptureFixture[str]) -> None:
    assert app("--dry-run", "--probseg", "-w", str(app.output.parent / "work")) == 0
    out = capsys.readouterr().out
    assert "model wholebrain: Thresholds" in out
    assert "sub-01: to do" in out
    assert str(app.output / "sub-02/anat/sub-02_seg-FAST_desc-wholebrain_probseg.nii.gz") in out
    assert not app.output.exists() and not (app.output.parent / "work").exists()
    assert app("--participant-label", "01") == 0
    capsys.readouterr()
    assert app("--dry-run") == 0
    out = capsys.readouterr().out
    assert "sub-01: done" in out and "sub-02: to do" in out


def test_a_fast_result_is_no_substitute_for_a_full_one(app: App) -> None:
    assert app("--fast") == 0
    assert app("--fast") == 0
    assert app.fake.segmented == 2
    assert app() == 0
    assert app.fake.segmented == 4
    assert app() == 0
    assert app("--fast") == 0
    assert app.fake.segmented == 6
