"""Invalid input of real users: no traceback, no effect on other scans, no partly written files."""

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import phantoms
import pytest
from bad_input import ErrorStream, t1w, whole
from fake_model import App, make_app, save_card
from nifti import load_nifti

from bidsseg.app import cli
from bidsseg.models.card import WEIGHTS

pytestmark = pytest.mark.usefixtures("stream")


# -- the call ----------------------------------------------------------------------------------------------------------


def missing(app: App) -> None:
    shutil.rmtree(app.bids)


def empty(app: App) -> None:
    missing(app)
    app.bids.mkdir()


def a_file(app: App) -> None:
    app.bids = t1w(app)


def no_description(app: App) -> None:
    (app.bids / "dataset_description.json").unlink()


def broken_description(app: App) -> None:
    (app.bids / "dataset_description.json").write_text("{")


def wrong_name(app: App) -> None:
    t1w(app).rename(t1w(app).with_name("sub-01_made-up_T1w.nii.gz"))


def no_images(app: App) -> None:
    for label in ("01", "02"):
        t1w(app, label).unlink()


def output_inside(app: App) -> None:
    app.output = app.bids / "sub-01"


def output_is_a_file(app: App) -> None:
    app.output.write_text("taken")


def unchanged(app: App) -> None:
    pass


@pytest.mark.parametrize(
    ("prepare", "words", "code", "hint"),
    [
        (missing, [], 66, "no folder"),
        (empty, [], 18, "no sub-* folder"),
        (a_file, [], 66, "is not a folder"),
        (no_images, [], 18, "no T1w image"),
        (no_description, [], 16, "dataset_description"),
        (broken_description, [], 16, "dataset_description"),
        (wrong_name, [], 16, "sub-01_made-up_T1w"),
        (output_inside, [], 64, "inside BIDS_DIR"),
        (output_is_a_file, [], 73, "out"),
        (unchanged, ["--participant-label", "77"], 18, "77"),
        (unchanged, ["--session-label", "9"], 18, "9"),
        (unchanged, ["--model", "/nowhere"], 66, "/nowhere"),
        (unchanged, ["--device", "cuda:99"], 64, "--device cuda:99: torch sees"),
        (unchanged, ["--device", "cuda:99", "--dry-run"], 64, "--device cuda:99: torch sees"),
    ],
)
def test_a_call_that_cannot_work(
    prepare: Callable[[App], None], words: list[str], code: int, hint: str, app: App, stream: ErrorStream
) -> None:
    prepare(app)
    assert app(*words) == code
    err = stream.err
    assert hint in err
    assert err.splitlines()[-1].startswith("bidsseg: ")
    assert not app.output.is_dir() or output_inside is prepare


def test_a_cluster_has_devices_of_its_own(app: App) -> None:
    assert app("--device", "cuda:99", "--executor", "slurm", "--dry-run") == 0


def test_an_unknown_level(app: App, stream: ErrorStream) -> None:
    assert app(level="preprocess") == 17
    assert "participant, longitudinal, group, evaluate, train" in stream.err


def test_problems_of_other_files_are_warnings(app: App, stream: ErrorStream) -> None:
    (app.bids / "participants.tsv").write_text("participant_id\tgender\nsub-01\tfemale\n")
    description = '{"Name": "old", "BIDSVersion": "1.0.0", "ReferencesAndLinks": "a paper"}'
    (app.bids / "dataset_description.json").write_text(description)
    assert app() == 0
    assert "warning: " in stream.err
    assert app.manifest["warnings"]


def test_no_validation_when_skipped(app: App) -> None:
    (app.bids / "dataset_description.json").unlink()
    assert app("--skip_bids_validator") == 0


# -- the image ---------------------------------------------------------------------------------------------------------

GRID = phantoms.grid()
HEAD = phantoms.noisy_head(GRID)


def bytes_of(content: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_bytes(content)

    return write


def image(data: np.ndarray, affine: np.ndarray = GRID, **header: Any) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        phantoms.save(path, data, affine, **header)

    return write


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-500])


def short_inside(path: Path) -> None:
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-500]))


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("../../nowhere")


def annex_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("../../.git/annex/objects/a/b/MD5E-s9--0.nii.gz/MD5E-s9--0.nii.gz")


def rgb(path: Path) -> None:
    colours = np.zeros(HEAD.shape, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(colours, GRID), path)


def singular(path: Path) -> None:
    phantoms.save(path, HEAD, GRID)
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[252:256] = (0).to_bytes(2, "little") + (1).to_bytes(2, "little")  # sform only
    content[280:328] = bytes(48)
    path.write_bytes(gzip.compress(bytes(content)))


UNUSABLE: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated gzip": (truncated, "DAMAGED_GZIP"),
    "truncated before compression": (short_inside, "TRUNCATED"),
    "not NIfTI": (bytes_of(gzip.compress(b"DICM" * 200)), ""),
    "empty file": (bytes_of(b""), "EMPTY_FILE"),
    "web page": (bytes_of(b"<html>not found</html>\n"), "WEB_PAGE"),
    "answer of an object store": (bytes_of(b'\xef\xbb\xbf<?xml version="1.0"?>\n<Error>no</Error>'), "WEB_PAGE"),
    "text": (bytes_of(b'{"error": "not found"}\n'), "NOT_NIFTI"),
    "pointer of git-annex": (bytes_of(b"/annex/objects/MD5E-s9--0.nii.gz\n"), "NOT_FETCHED"),
    "link as text": (bytes_of(b"../../.git/annex/objects/a/b/MD5E-s9--0.nii.gz/MD5E-s9--0.nii.gz"), "NOT_FETCHED"),
    "pointer of Git LFS": (bytes_of(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), "NOT_FETCHED"),
    "link of git-annex": (annex_link, "NOT_FETCHED"),
    "2-D": (image(HEAD[:, :, 24]), "NOT_3D"),
    "one slice": (image(HEAD[:, :, 24:25]), "NOT_3D"),
    "real 4-D": (image(np.stack([HEAD, HEAD], -1)), "REAL_4D"),
    "constant": (image(np.full(HEAD.shape, 7, np.int16)), "CONSTANT_IMAGE"),
    "all zeros": (image(np.zeros(HEAD.shape, np.int16)), "CONSTANT_IMAGE"),
    "all NaN": (image(np.full(HEAD.shape, np.nan, np.float32)), "CONSTANT_IMAGE"),
    "RGB": (rgb, "COLOUR_IMAGE"),
    "complex": (image(HEAD.astype(np.complex64)), "COMPLEX_IMAGE"),
    "no determinant": (singular, "SINGULAR_AFFINE"),
    "voxels of 100 mm": (image(HEAD, phantoms.grid(100)), "VOXEL_SIZE_ABSURD"),
    "a folder": (folder, ""),
    "a broken link": (dangling, ""),
}


@pytest.mark.parametrize("what", UNUSABLE)
def test_an_image_that_cannot_be_used(what: str, app: App, stream: ErrorStream) -> None:
    spoil, code = UNUSABLE[what]
    spoil(t1w(app))
    exit_code = app("--skip-bids-validation")
    assert whole(app, "02") and not whole(app, "01")
    err = stream.err
    if "sub-01" not in app.fates:  # pybids does not list what is no file
        assert exit_code == 0 and "sub-01: no T1w image" in err
        return
    assert exit_code == 1
    assert app.fates == {"sub-01": "failed", "sub-02": "done"}
    reason = next(entry["reason"] for entry in app.manifest["scans"] if entry["scan"] == "sub-01")
    assert code in reason and str(t1w(app)) in reason
    assert f"sub-01 failed: {reason}" in err
    assert len(list((app.output / "logs").glob("crash-*_sub-01.txt"))) == 1
    assert app("--skip-bids-validation", "--participant-label", "01") in (65, 66)


def forms_disagree(path: Path) -> None:
    scan = nib.Nifti1Image(HEAD, GRID)
    scan.header.set_xyzt_units("mm")
    scan.set_sform(GRID, 1)
    scan.set_qform(phantoms.grid(rotation_degrees=20), 1)
    nib.save(scan, path)


def some_nan(path: Path) -> None:
    data = HEAD.copy()
    data[:4], data[-1, 0, 0] = np.nan, np.inf
    phantoms.save(path, data, GRID)


COARSE, FINE = (30, 34, 30), (60, 60, 60)

USABLE: dict[str, tuple[Callable[[Path], None], set[str]]] = {
    "NaN": (some_nan, {"NAN_VALUES"}),
    "int16 with slope": (image(np.rint(HEAD * 100).astype(np.int16), slope=0.01), set()),
    "float64": (image(HEAD.astype(np.float64)), set()),
    "squeezable 4-D": (image(HEAD[..., None]), {"EXTRA_AXES"}),
    "negative": (image(HEAD - 60), {"NEGATIVE_VALUES"}),
    "sform is not qform": (forms_disagree, {"FORMS_DISAGREE"}),
    "no forms": (image(HEAD, sform_code=0, qform_code=0), {"FORMS_MISSING"}),
    "micrometres": (image(HEAD, np.diag([1e3, 1e3, 1e3, 1]) @ GRID, unit="micron"), {"UNITS_CONVERTED"}),
    "micrometres that are millimetres": (image(HEAD, unit="micron"), {"UNITS_WRONG"}),
    "no unit": (image(HEAD, unit=None), {"UNITS_MISSING"}),
    "6 mm voxels": (image(phantoms.noisy_head(phantoms.grid(6, shape=COARSE), COARSE), phantoms.grid(6, shape=COARSE)),
                    {"VOXEL_SIZE_UNUSUAL"}),
    "0.2 mm voxels": (image(phantoms.noisy_head(phantoms.grid(0.2, shape=FINE), FINE) + np.arange(60, dtype=np.float32),
                            phantoms.grid(0.2, shape=FINE)), {"VOXEL_SIZE_UNUSUAL", "FIELD_OF_VIEW_SMALL"}),
    "flipped": (image(HEAD[::-1], phantoms.grid(orientation="LAS")), set()),
    "oblique": (image(HEAD, phantoms.grid(rotation_degrees=25)), set()),
    "thick slices": (image(phantoms.noisy_head(phantoms.grid((2, 2, 5), "LPS", (96, 112, 36)), (96, 112, 36)),
                           phantoms.grid((2, 2, 5), "LPS", (96, 112, 36))), set()),
}  # fmt: skip


@pytest.mark.parametrize("what", USABLE)
def test_an_image_that_is_odd_but_usable(what: str, app: App, stream: ErrorStream) -> None:
    change, codes = USABLE[what]
    change(t1w(app))
    assert app() == 0
    assert whole(app, "01")
    entry = app.manifest["scans"][0]
    assert {finding["code"] for finding in entry.get("findings", [])} == codes
    err = stream.err
    assert all(f"[{code}]" in err for code in codes)
    source = load_nifti(t1w(app))
    written = load_nifti(app.output / "sub-01/anat/sub-01_seg-FAST_desc-wholebrain_dseg.nii.gz")
    assert written.affine.tobytes() == source.affine.tobytes()
    assert written.shape == source.shape[:3]


# -- the dataset -------------------------------------------------------------------------------------------------------


def test_three_sessions_of_two_runs(
    tmp_path: Path, make_bids: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    app = make_app(tmp_path, make_bids(1, 3, 2), monkeypatch)
    assert app() == 0
    assert list(app.fates) == [f"sub-01_ses-{s}_run-{r}" for s in (1, 2, 3) for r in (1, 2)]
    assert len(list(app.output.rglob("*_seg-FAST_*_dseg.nii.gz"))) == 6


def test_links_that_go_round(app: App) -> None:
    (app.bids / "sub-01" / "anat" / "round").symlink_to("../..")
    (app.bids / "sub-01" / "self").symlink_to("self")
    (app.bids / "sub-03").symlink_to("sub-03")
    (app.bids / "sub-01" / "anat" / "sub-01_acq-loop_T1w.nii.gz").symlink_to("sub-01_acq-loop_T1w.nii.gz")
    assert app("--skip-bids-validation") in (0, 1)
    assert whole(app, "01") and whole(app, "02")


def test_a_dataset_of_7_tesla(app: App, tmp_path: Path, stream: ErrorStream) -> None:
    for label in ("01", "02"):
        t1w(app, label).rename(t1w(app, label).with_name(f"sub-{label}_UNIT1.nii.gz"))
    assert app() == 18
    assert "select it by --anat-modality UNIT1" in stream.err
    assert app("--anat-modality", "UNIT1") == 0
    assert whole(app, "01") and whole(app, "02")
    sidecar = json.loads((app.output / "sub-01/anat/sub-01_seg-FAST_desc-wholebrain_dseg.json").read_text())
    assert sidecar["Sources"] == ["bids:raw:sub-01/anat/sub-01_UNIT1.nii.gz"]
    (tmp_path / "filter.json").write_text('{"t1w": {"suffix": "UNIT1"}}')
    assert app("--bids-filter-file", str(tmp_path / "filter.json"), level="group") == 0
    assert "done\t" in (app.output / "group_seg-FAST_desc-wholebrain_morph.tsv").read_text()


def test_a_description_of_the_dataset_with_a_byte_order_mark(app: App, stream: ErrorStream) -> None:
    path = app.bids / "dataset_description.json"
    path.write_bytes(path.read_text().encode("utf-8-sig"))
    assert app() == 0
    assert "warning: dataset_description.json: JSON files must be" in stream.err


@pytest.mark.parametrize("size", ["another grid", "damaged"])
def test_a_flair_that_does_not_fit(
    size: str, tmp_path: Path, make_bids: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    app = make_app(tmp_path, make_bids(2, flair=True), monkeypatch)
    save_card(app.card, inputs=("T1w", "FLAIR"))
    flair = app.bids / "sub-01" / "anat" / "sub-01_FLAIR.nii.gz"
    if size == "damaged":
        truncated(flair)
    else:
        other = phantoms.grid((9, 5, 5), "PIR", (20, 44, 44))
        phantoms.save(flair, phantoms.noisy_head(other, (20, 44, 44)), other)
    assert app() == (1 if size == "damaged" else 0)
    assert whole(app, "02") and whole(app, "01") == (size != "damaged")


# -- the model ---------------------------------------------------------------------------------------------------------


def lie(folder: Path, kind: str) -> None:
    """Write a model folder with a false card."""
    import torch
    from safetensors.torch import save_file

    from bidsseg.models.library import checksum

    save_file({"trunk.weight": torch.zeros(3, 3)}, folder / WEIGHTS)
    network = {"name": "subpixel-unet", "widths": [8, 8], "features": 8}
    match kind:
        case "shape":
            save_card(folder, sha256=checksum(folder / WEIGHTS), network=network, heads=("brain", "FAST"))
        case "network":
            save_card(folder, sha256=checksum(folder / WEIGHTS), network={"name": "perceptron"})
        case "options":
            save_card(folder, sha256=checksum(folder / WEIGHTS), network={**network, "wings": 2})
        case "no card":
            (folder / "card.json").write_text("{}")
        case "no weights":
            (folder / WEIGHTS).unlink()


@pytest.mark.parametrize(
    ("kind", "code"),
    [("checksum", 65), ("shape", 65), ("network", 65), ("options", 65), ("no card", 65), ("no weights", 66)],
)
def test_a_model_card_that_lies(
    kind: str, code: int, tmp_path: Path, make_bids: Callable[..., Path], stream: ErrorStream
) -> None:
    model = save_card(tmp_path / "model")
    lie(model, kind)
    output = tmp_path / "out"
    assert cli.main([str(make_bids()), str(output), "participant", "--model", str(model), "--device", "cpu"]) == code
    err = stream.err
    assert err.splitlines()[-1].startswith("bidsseg: ")
    assert str(model) in err or "wholebrain" in err
    assert not list(output.glob("sub-*"))
