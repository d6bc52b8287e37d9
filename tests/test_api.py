"""The Python interface: `import bidsseg`."""

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import phantoms
import pytest
import torch
from nifti import load_nifti
from scipy import ndimage
from tiny_model import Brightness, SecondImage, save_tiny

import bidsseg
from bidsseg import api
from bidsseg.app.cli import main
from bidsseg.derivative.sidecar_keys import LESION_RULE
from bidsseg.errors import DataError, InputMissing, OutputNotWritable, UsageError
from bidsseg.image.nifti import read_image
from bidsseg.labels import load_protocol

ROOT = Path(__file__).parents[1]
AS_ASKED: dict[str, Any] = {"device": "cpu", "precision": "fp32"}


class Unsure(Brightness):
    """Gives no region a probability above .95."""

    def __init__(self, outputs: dict[str, int], meaning: dict[str, list[int]]) -> None:
        super().__init__(outputs, meaning, sharpness=4.0)


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return save_tiny(tmp_path / "model", monkeypatch)


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    return phantoms.make_bids(tmp_path / "bids", 1, flair=True) / "sub-01" / "anat" / "sub-01_T1w.nii.gz"


def bids_results(scan: Path, model: Path, *words: str) -> Path:
    """Run the level participant and return the folder with its results."""
    out = model.parent / "out"
    given = ["--model", str(model), "--device", "cpu", "--n-cpus", "1", "--skip-bids-validation", *words]
    assert main([str(scan.parents[2]), str(out), "participant", *given]) == 0
    return out / "sub-01" / "anat"


# -- import ------------------------------------------------------------------------------------------------------------


def test_the_import_is_light() -> None:
    script = (
        "import sys\nimport bidsseg\n"
        "heavy = {'torch', 'pandas', 'nibabel', 'numpy', 'scipy', 'bids'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert [name for name in sys.modules if name.startswith('bidsseg')] == ['bidsseg']\n"
        "bidsseg.list_models()\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)


def test_what_the_package_offers() -> None:
    assert {"segment", "load_model", "list_models", "compare", "Result", "errors", "api"} <= set(dir(bidsseg))
    assert bidsseg.segment is api.segment
    assert bidsseg.errors.DataError is DataError
    with pytest.raises(AttributeError, match="no attribute 'segmnt'"):
        bidsseg.segmnt  # noqa: B018


def test_list_models() -> None:
    assert "wholebrain" in [card.name for card in bidsseg.list_models()]


# -- segment -----------------------------------------------------------------------------------------------------------


def test_results_are_those_of_the_command_line(scan: Path, model: Path) -> None:
    folder = bids_results(scan, model, "--precision", "fp32", "--probseg")
    result = bidsseg.segment(scan, model=model, probabilities=True, **AS_ASKED)
    assert result.protocols == ("FAST",)
    for image, name in [
        (result.dseg("FAST"), "sub-01_seg-FAST_desc-tiny_dseg.nii.gz"),
        (result.brain_mask, "sub-01_desc-brain_mask.nii.gz"),
    ]:
        written = load_nifti(folder / name)
        assert np.array_equal(image.dataobj, written.dataobj)
        assert np.array_equal(image.affine, load_nifti(scan).affine)
        assert image.header == written.header
        assert image.get_data_dtype() == np.uint8
    assert result.lesion_mask is None
    morph = pd.read_csv(folder / "sub-01_seg-FAST_desc-tiny_morph.tsv", sep="\t", dtype={"index": "Int64"})
    pd.testing.assert_frame_equal(result.volumes("FAST"), morph, check_dtype=False)
    assert list(result.regions("FAST")["name"])[:2] == [r.name for r in load_protocol("FAST").regions[:2]]
    white = result.probability("FAST", 3)
    probabilities = load_nifti(folder / "sub-01_seg-FAST_desc-tiny_probseg.nii.gz")
    assert np.allclose(white.get_fdata(), probabilities.dataobj[..., 3], atol=1e-3)
    assert (result.device, result.precision) == ("cpu", "fp32")
    assert 0 < result.quality <= 1
    assert {finding.code for finding in result.findings} <= {"TISSUE_UNUSUAL", "BRAIN_VOLUME_UNUSUAL", "SIDES_UNEQUAL"}
    assert repr(result).startswith("<bidsseg.Result of sub-01 by tiny: quality 0.")


def test_names_of_regions_that_look_like_missing_cells(scan: Path, model: Path) -> None:
    rows = ["index\tname\tabbreviation", "0\tBackground\tBG", "1\tNone\tNA", "2\tnull\tNULL", "3\tWhite\tnan"]
    (model / "seg-FAST_dseg.tsv").write_text("\n".join(rows))
    regions = bidsseg.segment(scan, model=model, **AS_ASKED).regions("FAST")
    assert list(regions["name"]) == ["Background", "None", "null", "White"]
    assert list(regions["abbreviation"]) == ["BG", "NA", "NULL", "nan"]
    assert regions["mapping"].isna().all()


def test_an_image_may_be_given_in_many_ways(scan: Path, model: Path, tmp_path: Path) -> None:
    loaded = bidsseg.load_model(model)
    mgz = tmp_path / "orig.mgz"
    image = load_nifti(scan)
    nib.save(nib.MGHImage(np.asarray(image.dataobj), image.affine), mgz)
    given: list[api.Image | Mapping[str, api.Image]] = [
        scan,
        str(scan),
        image,
        {"T1w": scan},
        {"FLAIR": tmp_path / "not read", "T1w": image},
        mgz,
        nib.MGHImage.from_filename(mgz),
    ]
    results = [bidsseg.segment(one, model=loaded, **AS_ASKED) for one in given]
    for result in results:
        assert result.model is loaded
        assert np.array_equal(result.dseg("FAST").dataobj, results[0].dseg("FAST").dataobj)
        assert np.allclose(result.brain_mask.affine, image.affine, atol=1e-4)


def test_nothing_global_changes_and_nothing_is_printed(
    scan: Path, model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def state() -> tuple[object, ...]:
        return (
            torch.get_num_threads(),
            torch.get_default_dtype(),
            torch.is_grad_enabled(),
            torch.backends.cudnn.benchmark,
            torch.get_rng_state().tolist(),
            np.geterr(),
        )

    before = state()
    bidsseg.segment(scan, model=model, **AS_ASKED)
    assert state() == before
    assert capfd.readouterr() == ("", "")


def test_a_flair_is_aligned_for_a_model_that_reads_it(
    scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = save_tiny(tmp_path / "two", monkeypatch, SecondImage, inputs=("T1w", "FLAIR"))
    flair = scan.with_name("sub-01_FLAIR.nii.gz")
    result = bidsseg.segment({"T1w": scan, "FLAIR": flair}, model=model, **AS_ASKED)
    assert any("FLAIR moved by" in note for note in result.notes)
    assert result.dseg("FAST").shape == load_nifti(scan).shape
    with pytest.raises(UsageError, match="needs a FLAIR"):
        bidsseg.segment(scan, model=model)


def test_the_rule_of_lesions(scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meaning = {"brain": [0, 1, 1, 1], "FASTlesion": [0, 4, 2, 3]}
    model = api.load_model(save_tiny(tmp_path / "lesions", monkeypatch, meaning=meaning, lesion="FASTlesion"))

    def voxels(**rule: Any) -> int:
        mask = bidsseg.segment(scan, model=model, **rule, **AS_ASKED).lesion_mask
        assert mask is not None
        return int(np.asarray(mask.dataobj).sum())

    assert voxels() == voxels(least_lesion_mm3=0) > voxels(lesion_threshold=0.95) > 0 == voxels(least_lesion_mm3=1e9)
    assert voxels() >= voxels(least_lesion_peak=0.95) >= voxels(lesion_threshold=0.95)
    model = api.load_model(save_tiny(tmp_path / "unsure", monkeypatch, Unsure, meaning=meaning, lesion="FASTlesion"))
    all_lesions, probable, none = (voxels(lesion_threshold=0.5, least_lesion_peak=peak) for peak in (0, 0.8, 0.97))
    assert all_lesions > probable > 0 == none


def test_given_lesions(scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = save_tiny(tmp_path / "model", monkeypatch, meaning={"brain": [0, 1, 1, 1], "FreeSurfer": [0, 3, 2, 1]})
    white = np.asarray(bidsseg.segment(scan, model=model, **AS_ASKED).dseg("FreeSurfer").dataobj) == 2
    x, y, z = np.argwhere(ndimage.binary_erosion(white))[0]
    drawn = np.zeros(white.shape, np.uint8)
    drawn[x - 1 : x + 2, y - 1 : y + 1, z] = 1
    mask = tmp_path / "drawn" / "sub-01" / "anat" / "sub-01_label-lesion_mask.nii.gz"
    phantoms.save(mask, drawn, load_nifti(scan).affine)
    result = bidsseg.segment(scan, model=model, lesions=load_nifti(mask), **AS_ASKED)

    labels = np.asarray(result.dseg("FreeSurfer").dataobj)
    assert np.array_equal(labels == 77, drawn == 1) and result.lesion_mask is not None
    assert np.array_equal(np.asarray(result.lesion_mask.dataobj), drawn)
    assert 77 in list(result.regions("FreeSurfer")["index"])
    assert result.volumes("FreeSurfer").set_index("index")["voxels"][77] == 6
    there = bids_results(scan, model, "--lesions", str(tmp_path / "drawn"), "--precision", "fp32")
    (file,) = there.glob("*_seg-FreeSurfer_*_dseg.nii.gz")
    assert np.array_equal(labels, np.asarray(load_nifti(file).dataobj))
    (sidecar,) = [path for path in result.save(tmp_path / "saved") if path.name.endswith("_dseg.json")]
    about = json.loads(sidecar.read_text())
    assert about["LesionsGiven"] and "LesionThreshold" not in about

    with pytest.raises(UsageError, match="no effect on given lesions"):
        bidsseg.segment(scan, model=model, lesions=mask, least_lesion_mm3=3)
    with pytest.raises(UsageError, match=r"in a T1w, and .*sub-01_T2w.nii.gz is none"):
        bidsseg.segment(shutil.copy(scan, tmp_path / "sub-01_T2w.nii.gz"), model=model, lesions=mask)
    phantoms.save(mask, drawn[1:], load_nifti(scan).affine)
    for name in ("sub-01_T1w.nii.gz", "sub-01_mprage.nii.gz"):
        with pytest.raises(DataError, match="not on the grid of the T1w"):
            bidsseg.segment(shutil.copy(scan, tmp_path / name), model=model, lesions=mask, **AS_ASKED)


def test_given_probabilities_of_lesions(scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = save_tiny(tmp_path / "model", monkeypatch)
    brain = np.asarray(bidsseg.segment(scan, model=model, **AS_ASKED).brain_mask.dataobj)
    probable = brain * np.linspace(0, 1, brain.size, dtype=np.float32).reshape(brain.shape)
    path = tmp_path / "drawn" / "sub-01" / "anat" / "sub-01_label-lesion_probseg.nii.gz"
    phantoms.save(path, probable, load_nifti(scan).affine)
    there = bids_results(scan, model, "--lesions", str(tmp_path / "drawn"), "--precision", "fp32")
    (file,) = there.glob("*_label-lesion_*_mask.nii.gz")
    assert np.array_equal(np.asarray(load_nifti(file).dataobj), probable >= 0.5)
    for lesions in (path, shutil.copy(path, tmp_path / "wmh.nii.gz"), load_nifti(path)):
        result = bidsseg.segment(scan, model=model, lesions=lesions, **AS_ASKED)
        assert result.lesion_mask is not None
        assert np.array_equal(np.asarray(result.lesion_mask.dataobj), probable >= 0.5)
        assert "probabilities of at least 0.5 are read as labels" in result.notes[0]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"device": "gpu"}, "cuda:N"),
        ({"precision": "fp8"}, "bf16 or fp32"),
        ({"memory_mb": 100}, "at least 500"),
        ({"lesion_threshold": 1.5}, "lesion_threshold 1.5: give"),
        ({"least_lesion_mm3": -1}, "least_lesion_mm3 -1: give"),
        ({"least_lesion_peak": 1.5}, "least_lesion_peak 1.5: give"),
        ({"memory_mb": 500}, "give --mem that much"),
        ({"lesion_threshold": "x"}, "lesion_threshold 'x': give a number"),
        ({"least_lesion_mm3": [5]}, r"least_lesion_mm3 \[5\]: give a number"),
        ({"memory_mb": "8G"}, "memory_mb '8G': give a number"),
        ({"lesion_threshold": 0.5}, "finds no lesions: lesion_threshold has no effect"),
        ({"device": 0}, "cuda:N"),
        ({"model": 3}, "model 3: give a name, a folder"),
        ({"image": {"FLAIR": "x"}}, "images by suffix"),
        ({"image": {"T1w": "x", "T2w": "y"}}, "images by suffix"),
        ({"image": np.zeros((9, 9, 9))}, "not ndarray"),
    ],
)
def test_wrong_arguments(given: dict[str, Any], message: str, scan: Path, model: Path) -> None:
    image = given.get("image", scan)
    options = {"model": model, **{key: value for key, value in given.items() if key != "image"}}
    with pytest.raises(UsageError, match=message):
        bidsseg.segment(image, **options)


def test_errors_of_images_and_models(scan: Path, model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputMissing, match="no such file"):
        bidsseg.segment(tmp_path / "none.nii.gz", model=model)
    with pytest.raises(InputMissing, match="no model 'none'"):
        bidsseg.segment(scan, model="none")
    flat = phantoms.save(tmp_path / "flat.nii.gz", np.ones(phantoms.SHAPE, np.float32), phantoms.grid())
    with pytest.raises(DataError, match=r"flat.nii.gz: .*\[CONSTANT_IMAGE\]"):
        bidsseg.segment(flat, model=model)
    result = bidsseg.segment(scan, model=model, **AS_ASKED)
    with pytest.raises(UsageError, match="no label map of 'FreeSurfer': choose one of: FAST"):
        result.dseg("FreeSurfer")
    with pytest.raises(UsageError, match="probabilities=True"):
        result.probability("FAST", 1)


# -- save --------------------------------------------------------------------------------------------------------------


def test_files_are_those_of_the_command(scan: Path, model: Path, tmp_path: Path) -> None:
    folder = bids_results(scan, model, "--precision", "fp32")
    result = bidsseg.segment(scan, model=model, **AS_ASKED)
    files = result.save(tmp_path / "saved")
    assert sorted(files) == sorted((tmp_path / "saved").iterdir())
    sidecar = tmp_path / "saved" / "sub-01_seg-FAST_desc-tiny_dseg.json"
    assert {path.name for path in {*files} - {sidecar}} == {p.name for p in folder.iterdir() if p.suffix != ".json"}
    for path in {*files} - {sidecar}:
        assert path.read_bytes() == (folder / path.name).read_bytes()
    expected = json.loads((folder / sidecar.name).read_text())
    for key in ("Sources", "SpatialReference", "InputFingerprints"):
        del expected[key]
    assert json.loads(sidecar.read_text()) == expected
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputNotWritable):
        result.save(tmp_path / "file")
    with pytest.raises(UsageError, match="folder 3: give a path"):
        result.save(3)  # type: ignore[arg-type]


def test_saved_sidecars_name_the_choices(scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meaning = {"brain": [0, 1, 1, 1], "FASTlesion": [0, 4, 2, 3]}
    model = api.load_model(save_tiny(tmp_path / "lesions", monkeypatch, meaning=meaning, lesion="FASTlesion"))
    rule = {"lesion_threshold": np.float32(0.25), "least_lesion_mm3": np.int64(8), "least_lesion_peak": np.float32(0.5)}

    def saved(**given: Any) -> dict[str, Any]:
        (file,) = [
            path
            for path in bidsseg.segment(scan, model=model, **{**AS_ASKED, **given}).save(tmp_path / "saved")
            if path.name.endswith("_dseg.json")
        ]
        found: dict[str, Any] = json.loads(file.read_text())
        return found

    about = saved(fast=True, **rule)
    assert [about[key] for key in ("Fast", *LESION_RULE)] == [True, 0.25, 8.0, 0.5]
    about = saved(fast=False)
    assert "Fast" not in about and [about[key] for key in LESION_RULE] == ["most probable region", 0, 0]


def test_names_of_files_without_a_bids_name(scan: Path, model: Path, tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.asarray(load_nifti(scan).dataobj), load_nifti(scan).affine)
    names = {path.name for path in bidsseg.segment(image, model=model, **AS_ASKED).save(tmp_path / "saved")}
    assert "sub-image_seg-FAST_desc-tiny_dseg.nii.gz" in names


# -- compare -----------------------------------------------------------------------------------------------------------


def test_compare(tmp_path: Path) -> None:
    affine = phantoms.grid()
    labels = np.array([0, 1, 2, 3, 2], np.uint8)[phantoms.head(affine, contrast=phantoms.LABEL)]
    path = phantoms.save(tmp_path / "labels.nii.gz", labels, affine)
    same = bidsseg.compare(path, nib.Nifti1Image(labels, affine), "FAST")
    assert list(same["index"]) == [1, 2, 3]
    assert (
        (same["dice"] == 1).all() and (same["hausdorff95-mm"] == 0).all() and (same["surface-distance-mm"] == 0).all()
    )
    assert same["reference-mm3"][2] == pytest.approx((labels == 3).sum() * 64.0)
    other = bidsseg.compare(np_image(np.where(labels == 3, 0, labels), affine), path, load_protocol("FAST"))
    assert other["dice"][2] == 0 and np.isnan(other["hausdorff95-mm"][2]) and other["found-mm3"][2] == 0
    inside = bidsseg.compare(np_image(np.maximum(labels, 1), affine), path, "FAST", mask="reference")
    assert (inside["dice"] == 1).all()
    turned = nib.Nifti1Image(labels, affine).as_reoriented(np.array([[1, -1], [2, 1], [0, -1]]))
    assert turned.shape != labels.shape and (bidsseg.compare(path, turned, "FAST")["dice"] == 1).all()
    with pytest.raises(DataError, match="different grids"):
        bidsseg.compare(np_image(labels, phantoms.grid(3.0)), path, "FAST")
    with pytest.raises(DataError, match="which FAST lacks"):
        bidsseg.compare(np_image(labels + 4, affine), path, "FAST")
    with pytest.raises(DataError, match="no protocol 'none'"):
        bidsseg.compare(path, path, "none")
    wrong: Any = 3
    with pytest.raises(UsageError, match="protocol 3: give a name"):
        bidsseg.compare(path, path, wrong)
    with pytest.raises(UsageError, match="mask 3: give own or reference"):
        bidsseg.compare(path, path, "FAST", mask=wrong)


def np_image(labels: np.ndarray, affine: np.ndarray) -> nib.Nifti1Image:
    return nib.Nifti1Image(labels.astype(np.uint8), affine)


# -- real data ---------------------------------------------------------------------------------------------------------


@pytest.mark.data
def test_a_shipped_model_gives_the_label_maps_of_the_command(testdata: Path, tmp_path: Path) -> None:
    scan = testdata / "ds002748" / "sub-01" / "anat" / "sub-01_T1w.nii.gz"
    threads = torch.get_num_threads()
    options = ["--participant-label", "01", "--skip-bids-validation", "--n-cpus", str(threads), "--mem", "6G", "--fast"]
    assert main([str(testdata / "ds002748"), str(tmp_path), "participant", "--device", "cpu", *options]) == 0
    result = bidsseg.segment(scan, device="cpu", memory_mb=6000, fast=True)
    for protocol in result.protocols:
        written = load_nifti(tmp_path / "sub-01" / "anat" / f"sub-01_seg-{protocol}_desc-wholebrain_dseg.nii.gz")
        assert np.array_equal(result.dseg(protocol).dataobj, written.dataobj)
    assert np.array_equal(result.brain_mask.affine, read_image(scan)[0].affine)
