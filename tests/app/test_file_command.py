"""``bidsseg file T1W OUTPUT_DIR``: one image that is in no dataset."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import phantoms
import pytest
from nifti import load_nifti
from tiny_model import SecondImage, save_tiny

from bidsseg.app.cli import main
from bidsseg.app.parser import is_command

ROOT = Path(__file__).parents[2]
VALIDATOR = Path(sys.executable).with_name("bids-validator-deno")


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return save_tiny(tmp_path / "model", monkeypatch)


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    return phantoms.make_bids(tmp_path / "bids", 1) / "sub-01" / "anat" / "sub-01_T1w.nii.gz"


@pytest.fixture
def run(tmp_path: Path, model: Path) -> Callable[..., int]:
    """Return a function that runs the command and returns the exit code: ``run(image, *words, output="out")``."""

    def file(image: Path, *words: str, output: str = "out") -> int:
        given = ["--device", "cpu", "--precision", "fp32", "--n-cpus", "1", "--model", str(model)]
        return main(["file", str(image), str(tmp_path / output), *given, *words])

    return file


def named(scan: Path, name: str) -> Path:
    """Return a copy of the scan under another name, in a separate folder."""
    path = scan.parents[3] / "loose" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(scan.read_bytes())
    return path


def test_outputs_equal_those_of_the_level_participant(scan: Path, model: Path, run: Callable[..., int]) -> None:
    loose, folder = named(scan, scan.name), model.parent
    assert run(loose) == 0
    words = ["--device", "cpu", "--precision", "fp32", "--n-cpus", "1", "--skip-bids-validation"]
    assert main([str(scan.parents[2]), str(folder / "level"), "participant", "--model", str(model), *words]) == 0
    trees = []
    for output in (folder / "out", folder / "level"):
        names = {path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file()}
        trees.append({re.sub(r"run-\d+T\d+", "run-TIME", name) for name in names})
    assert trees[0] == trees[1]
    for path in (folder / "level" / "sub-01").rglob("*"):
        if path.is_file() and path.suffix != ".json":
            assert (folder / "out" / path.relative_to(folder / "level")).read_bytes() == path.read_bytes()
    sidecar = json.loads((folder / "out/sub-01/anat/sub-01_seg-FAST_desc-tiny_dseg.json").read_text())
    assert sidecar["Sources"] == ["bids:raw:sub-01_T1w.nii.gz"]


@pytest.mark.skipif(not VALIDATOR.is_file(), reason="the BIDS validator is not installed")
def test_the_output_is_valid_bids(scan: Path, tmp_path: Path, run: Callable[..., int]) -> None:
    assert run(named(scan, "my scan.nii.gz")) == 0
    done = subprocess.run([VALIDATOR, tmp_path / "out", "--format", "json"], capture_output=True, text=True)
    issues = json.loads(done.stdout)["issues"]["issues"]
    assert [issue for issue in issues if issue["severity"] == "error"] == []


@pytest.mark.parametrize("name", ["T1 of Ann.mgz", "brain.mgh"])
def test_an_mgh_file_beside_its_output(name: str, scan: Path, tmp_path: Path, run: Callable[..., int]) -> None:
    image = load_nifti(scan)
    path = tmp_path / "subjects" / name
    path.parent.mkdir()
    nib.save(nib.MGHImage(np.asarray(image.dataobj), image.affine), path)
    assert run(path, output="subjects/out") == 0
    label = "".join(letter for letter in path.stem if letter.isalnum())
    out = tmp_path / "subjects" / "out"
    assert (out / f"sub-{label}.html").is_file()
    found = load_nifti(out / f"sub-{label}" / "anat" / f"sub-{label}_seg-FAST_desc-tiny_dseg.nii.gz")
    assert found.shape == image.shape
    assert np.allclose(found.affine, image.affine, atol=1e-4)


def test_a_finished_scan_is_skipped(
    scan: Path, tmp_path: Path, run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    loose = named(scan, "t1.nii.gz")
    for words, count in [((), 1), ((), 0), (("--overwrite",), 1)]:
        assert run(loose, *words) == 0
        assert f"segmented {count} of 1 scans" in capsys.readouterr().out
    assert not list((tmp_path / "loose").glob("*.json"))


def test_results_of_another_image_are_kept(
    scan: Path, tmp_path: Path, run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(named(scan, "my-t1.nii.gz")) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    capsys.readouterr()
    other = named(scan, "my_t1.nii.gz")
    assert run(other) == 73
    error = capsys.readouterr().err
    assert "my-t1.nii.gz under the name sub-myt1" in error and len(error.splitlines()) == 1
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before
    assert run(other, "--overwrite") == 0
    assert run(named(scan, "second.nii.gz")) == 0
    assert (tmp_path / "out" / "sub-second.html").is_file() and (tmp_path / "out" / "sub-myt1.html").is_file()


def test_a_flair_in_another_folder_joins_earlier_results_of_the_t1w(
    scan: Path,
    tmp_path: Path,
    run: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    loose, flair = named(scan, "t1.nii.gz"), tmp_path / "fluid" / "flair 1.nii.gz"
    flair.parent.mkdir()
    flair.write_bytes(scan.read_bytes())
    assert run(loose) == run(loose, "--flair", str(flair)) == 0
    assert "segmented 0 of 1 scans" in capsys.readouterr().out
    inputs = ("T1w", "FLAIR")
    both = save_tiny(tmp_path / "both", monkeypatch, SecondImage, name="both", inputs=inputs)
    for count in (1, 0):
        assert run(loose, "--flair", str(flair), "--model", str(both)) == 0
        assert f"segmented {count} of 1 scans" in capsys.readouterr().out
    sidecar = json.loads((tmp_path / "out/sub-t1/anat/sub-t1_seg-FAST_desc-both_dseg.json").read_text())
    assert sidecar["Sources"] == ["bids:raw:t1.nii.gz", flair.as_uri()]


def test_exports_of_one_file(scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bidsseg.image.conformed.SIZE", 64)
    model = save_tiny(tmp_path / "freesurfer", monkeypatch, meaning={"brain": [0, 1, 1, 1], "FreeSurfer": [0, 1, 2, 3]})
    loose, quantity = named(scan, "head.nii.gz"), named(scan, "map_of_t1.nii.gz")
    words = ["--model", str(model), "--freesurfer", str(tmp_path / "subjects"), "--measure", f"T1={quantity}"]
    assert main(["file", str(loose), str(tmp_path / "out"), "--device", "cpu", "--n-cpus", "1", *words]) == 0
    assert (tmp_path / "subjects/sub-head/stats/aseg.stats").is_file()
    stats = tmp_path / "out/sub-head/anat/sub-head_meas-T1_seg-FreeSurfer_desc-tiny_stats.tsv"
    voxels = [line.split("\t")[-1] for line in stats.read_text().splitlines()]
    assert voxels[0] == "voxels" and int(voxels[-1]) > 100
    assert json.loads(stats.with_suffix(".json").read_text())["Sources"] == ["bids:raw:map_of_t1.nii.gz"]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["{tmp}/none.nii.gz", "{tmp}/out"], 66, "no such file"),
        (["{tmp}", "{tmp}/out"], 66, "is a folder"),
        (["{scan}"], 64, "required: OUTPUT_DIR"),
        (["{scan}", "{tmp}/out", "--probseg"], 64, "unrecognized arguments: --probseg"),
        (["{scan}", "{tmp}/out", "--measure", "T1={tmp}/none.nii.gz"], 66, "no such file"),
        (["{scan}", "{tmp}/out", "--measure", "T1w"], 64, "give NAME=FILE"),
        (["{scan}", "{tmp}/out", "--freesurfer", "{tmp}/s", "--model", "ace", "--flair", "{scan}"], 64, "--freesurfer"),
        (["{scan}", "{tmp}/out", "--mem", "4"], 64, "at least 500"),
        (["{scan}", "{tmp}/out", "--model", "none"], 66, "no model"),
        (["{scan}", "{tmp}/out", "--model", "ace"], 64, "needs a FLAIR: give --flair FILE"),
        (["{scan}", "{tmp}/out", "--flair", "{tmp}/none.nii.gz"], 66, "no such file"),
        (["{scan}", "{scan}"], 73, "cannot be written"),
        (["{tmp}/bids/README.md", "{tmp}/out"], 65, "NOT_NIFTI"),
    ],
)
def test_errors_have_a_code_and_say_what_to_do(
    words: list[str], code: int, message: str, scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [word.format(tmp=tmp_path, scan=scan) for word in words]
    assert main(["file", *given]) == code
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("bidsseg: ") and message in last


def test_help_needs_no_heavy_imports() -> None:
    script = (
        "import sys\nfrom bidsseg.app.cli import main\n"
        "try:\n    main(['file', '--help'])\nexcept SystemExit:\n    pass\n"
        "print('heavy:', sorted({'torch', 'numpy', 'pandas', 'nibabel'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert "T1W OUTPUT_DIR" in done.stdout and done.stdout.endswith("heavy: []\n")


def test_help_offers_no_given_lesions(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["file", "--help"])
    text = capsys.readouterr().out
    assert "--filled" in text and "--lesions" not in text and "given or found" not in text


def test_a_dataset_in_a_folder_called_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_command("file", ["file", "t1.nii.gz", "out"])
    (tmp_path / "file").mkdir()
    assert is_command("file", ["file", "t1.nii.gz", "out"])
    assert not is_command("file", ["file", "out", "participant"])
    assert not is_command("file", ["./file", "out", "participant"])
