"""The folder of a scan for FreeSurfer's tools, read as they read it."""

import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import phantoms
import pytest
from fake_model import INTRACRANIAL_MM3, App, make_app, save_card
from nibabel.freesurfer.mghformat import MGHImage
from nifti import load_nifti

from bidsseg.bids.recons import recons_in
from bidsseg.derivative.aseg_stats import Segmented, aseg_stats
from bidsseg.image.conformed import ConformedGrid
from bidsseg.image.volume import Volume
from bidsseg.labels import load_protocol


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of one participant with two sessions, with an oblique grid in the second."""
    folder = tmp_path_factory.mktemp("exported")
    bids = phantoms.make_bids(folder / "bids", 1, 2)
    oblique = phantoms.grid((3.9, 4.1, 4.3), "PSR", rotation_degrees=11)
    phantoms.save(bids / "sub-01/ses-2/anat/sub-01_ses-2_T1w.nii.gz", phantoms.noisy_head(oblique), oblique)
    with pytest.MonkeyPatch.context() as patch:
        app = make_app(folder, bids, patch)
        assert app("--skip-bids-validation", "--freesurfer", str(app.output / "sourcedata/freesurfer")) == 0
    return app.output


@pytest.fixture(scope="module")
def subjects(output: Path) -> Path:
    """The SUBJECTS_DIR of that run."""
    return output / "sourcedata/freesurfer"


@pytest.fixture
def app(tmp_path: Path, make_bids: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> App:
    """One participant, on small grids."""
    monkeypatch.setattr("bidsseg.image.conformed.SIZE", 64)
    return make_app(tmp_path, make_bids(1, shape=(24, 28, 24)), monkeypatch)


def read_stats(path: Path) -> tuple[dict[str, float], list[dict[str, str]]]:
    """Return measures and rows, by the rules of ``asegstats2table`` and with the names in the header."""
    measures, rows, names = {}, [], list[str]()
    for line in path.read_text().splitlines():
        if line.startswith("# ColHeaders"):
            names = line.split()[2:]
        elif line.startswith("# Measure"):
            cells = line.split(",")
            assert len(cells) == 5 and cells[4].strip() == "mm^3"
            measures[cells[1].strip()] = float(cells[3])
        elif "#" not in line:
            assert len(line.split()) == len(names)
            rows.append(dict(zip(names, line.split(), strict=True)))
    return measures, rows


@pytest.mark.parametrize("session", ["1", "2"])
def test_images_are_conformed_and_in_place(output: Path, subjects: Path, session: str) -> None:
    place = subjects / f"sub-01_ses-{session}" / "mri"
    aseg, orig, brain = (MGHImage.from_filename(place / f"{name}.mgz") for name in ("aseg", "orig", "brainmask"))
    for image in (aseg, orig, brain):
        assert image.shape == (256,) * 3, "session 2 is turned"
        assert nib.aff2axcodes(image.affine) == ("L", "I", "A")
        np.testing.assert_allclose(image.header.get_zooms(), 1)
    native = load_nifti(output / f"sub-01/ses-{session}/anat/sub-01_ses-{session}_desc-aseg_dseg.nii.gz")
    labels, conformed = np.asarray(native.dataobj), np.asarray(aseg.dataobj)
    rng = np.random.default_rng(0)
    voxels = np.argwhere(labels > 0)[rng.integers(0, (labels > 0).sum(), 200)]
    there = np.rint(
        nib.affines.apply_affine(np.linalg.inv(aseg.affine), nib.affines.apply_affine(native.affine, voxels))
    ).astype(int)
    same = conformed[tuple(there.T)] == labels[tuple(voxels.T)]
    assert same.mean() > 0.99, "the centre of a voxel has the label of the voxel"
    inside = conformed > 0
    found, shown = np.asarray(brain.dataobj), np.asarray(orig.dataobj)
    assert found.dtype == np.uint8 and shown.max() == 255
    assert (found[~inside] == 0).all() and (found[inside] == shown[inside]).all()


def test_the_table_is_read_as_freesurfers(output: Path, subjects: Path) -> None:
    measures, rows = read_stats(subjects / "sub-01_ses-1/stats/aseg.stats")
    assert list(rows[0]) == [
        "Index", "SegId", "NVoxels", "Volume_mm3", "StructName", "normMean", "normStdDev", "normMin", "normMax",
        "normRange",
    ]  # fmt: skip
    assert [row["StructName"] for row in rows] == [
        "Left-Cerebral-White-Matter", "Left-Cerebral-Cortex", "Left-Lateral-Ventricle",
    ]  # fmt: skip
    image = load_nifti(output / "sub-01/ses-1/anat/sub-01_ses-1_desc-aseg_dseg.nii.gz")
    native, voxel = np.asarray(image.dataobj), abs(np.linalg.det(image.affine[:3, :3]))
    aseg, orig = (
        np.asarray(MGHImage.from_filename(subjects / f"sub-01_ses-1/mri/{name}.mgz").dataobj)
        for name in ("aseg", "orig")
    )
    for number, row in enumerate(rows, 1):
        value = int(row["SegId"])
        here = orig[aseg == value].astype(float)
        assert int(row["Index"]) == number and int(row["NVoxels"]) == here.size
        assert float(row["Volume_mm3"]) == pytest.approx((native == value).sum() * voxel, abs=0.1)
        figures = [float(row[f"norm{name}"]) for name in ("Mean", "StdDev", "Min", "Max", "Range")]
        expected = [here.mean(), here.std(ddof=1), here.min(), here.max(), np.ptp(here)]
        np.testing.assert_allclose(figures, expected, atol=1e-3)
    assert measures["lhCortexVol"] == pytest.approx((native == 3).sum() * voxel, abs=0.01)
    assert measures["BrainSegVol"] - measures["BrainSegVolNotVent"] == measures["VentricleChoroidVol"] > 0
    assert measures["MaskVol"] >= measures["BrainSegVol"] and measures["eTIV"] == INTRACRANIAL_MM3


def test_ventricles_are_those_that_freesurfer_counts() -> None:
    volumes = {value: float(2**place) for place, value in enumerate((2, 4, 5, 14, 15, 24, 31, 43, 44, 63, 72))}
    empty = np.zeros((1, 1, 1), np.uint8)
    text = aseg_stats(Segmented("sub-01", volumes, 1.0, None, empty, empty, protocol=load_protocol("aseg")))
    found = {words[1]: float(words[3]) for line in text.splitlines() if len(words := line.split(", ")) == 5}
    lateral, midline = sum(volumes[v] for v in (4, 5, 31, 43, 44, 63)), sum(volumes[v] for v in (14, 15, 72))
    assert found["VentricleChoroidVol"] == lateral
    assert found["BrainSegVol"] == volumes[2] + lateral + midline
    assert found["BrainSegVolNotVent"] == volumes[2]


def test_a_region_smaller_than_a_voxel_of_the_grid_has_a_row(tmp_path: Path) -> None:
    labels = np.zeros((1, 1, 2), np.uint8)
    labels[0, 0, 0] = 2
    volumes, protocol = {2: 1.0, 4: 0.25, 5: 0.0}, load_protocol("aseg")
    about = Segmented("sub-01", volumes, 1.0, None, labels, labels * 7, protocol=protocol)
    path = tmp_path / "aseg.stats"
    path.write_text(aseg_stats(about))
    _, rows = read_stats(path)
    assert [tuple(row.values())[:4] for row in rows] == [("1", "2", "1", "1.0"), ("2", "4", "0", "0.2")]
    assert [row["normMean"] for row in rows] == ["14.0000", "0.0000"]


def test_an_unknown_intracranial_volume_is_no_measure(app: App, tmp_path: Path) -> None:
    assert app("--skip-bids-validation") == 0
    path = app.output / "sub-01/anat/sub-01_seg-FreeSurfer_desc-wholebrain_morph.tsv"
    path.write_text(path.read_text().replace(str(INTRACRANIAL_MM3), "n/a"))
    assert app("--skip-bids-validation", "--freesurfer", str(tmp_path / "subjects")) == 0
    text = (tmp_path / "subjects/sub-01/stats/aseg.stats").read_text()
    assert "MaskVol" in text and "eTIV" not in text


def test_colours_are_a_table_of_freesurfer(subjects: Path) -> None:
    lines = (subjects / "sub-01_ses-1/label/aseg.ctab").read_text().splitlines()
    rows = [line.split() for line in lines if not line.startswith("#")]
    assert all(len(row) == 6 for row in rows)
    known = {row[0]: row[1:] for row in rows}
    assert known["0"] == ["Unknown", "0", "0", "0", "0"]
    assert known["17"] == ["Left-Hippocampus", "220", "216", "20", "0"]


def test_the_label_map_is_named_as_by_fmriprep(output: Path, subjects: Path) -> None:
    stem = output / "sub-01/ses-1/anat/sub-01_ses-1_desc-aseg_dseg"
    table = stem.with_suffix(".tsv").read_text().splitlines()
    assert table[1].split("\t")[:3] == ["0", "Background", "BG"]
    assert any(line.split("\t")[2] == "Left-Hippocampus" for line in table)
    sidecar = json.loads(stem.with_suffix(".json").read_text())
    assert sidecar["Models"][0]["Name"] == "wholebrain" and "FreeSurfer" in sidecar["Description"]
    found = {recons.protocol: recons.label_maps() for recons in recons_in(subjects)}
    assert [label_map.key for label_map in found["aseg"]] == ["sub-01_ses-1", "sub-01_ses-2"]


def test_a_finished_scan_is_exported_without_the_network(app: App, tmp_path: Path) -> None:
    assert app("--skip-bids-validation") == 0
    segmented, folder = app.fake.segmented, tmp_path / "subjects"
    assert app("--skip-bids-validation", "--freesurfer", str(folder)) == 0
    stats = folder / "sub-01/stats/aseg.stats"
    assert app.fake.segmented == segmented and stats.is_file()
    before = stats.stat().st_mtime_ns
    assert app("--skip-bids-validation", "--freesurfer", str(folder)) == 0
    assert stats.stat().st_mtime_ns == before, "it is not written again"
    stats.unlink()
    assert app("--skip-bids-validation", "--freesurfer", str(folder)) == 0
    assert stats.is_file(), "a folder of a killed run is completed"


def test_the_label_map_without_a_name_is_that_of_the_model_that_exports(app: App, tmp_path: Path) -> None:
    two = save_card(tmp_path / "two", name="two", heads=("brain", "FreeSurfer"))
    folders = [str(tmp_path / name) for name in ("first", "second")]
    sidecar = app.output / "sub-01/anat/sub-01_desc-aseg_dseg.json"
    found = []
    for model, folder in ((app.card, folders[0]), (two, folders[1]), (app.card, folders[0])):
        assert app("--skip-bids-validation", "--freesurfer", folder, model=model) == 0
        found.append(json.loads(sidecar.read_text())["Models"][0]["Name"])
    assert found == ["wholebrain", "two", "wholebrain"] and app.fake.segmented == 2


def test_the_mask_is_that_of_the_model(app: App, tmp_path: Path) -> None:
    assert app("--skip-bids-validation") == 0
    mask = app.output / "sub-01/anat/sub-01_desc-brain_mask.nii.gz"
    inside = np.asarray(load_nifti(mask).dataobj)
    own_mm3 = inside.sum() * abs(np.linalg.det(load_nifti(mask).affine[:3, :3]))
    phantoms.save(mask, np.zeros_like(inside), load_nifti(mask).affine)
    sidecar = json.loads(mask.with_name("sub-01_desc-brain_mask.json").read_text())
    sidecar["Models"][0]["Name"] = "other"
    mask.with_name("sub-01_desc-brain_mask.json").write_text(json.dumps(sidecar))
    assert app("--skip-bids-validation", "--freesurfer", str(tmp_path / "subjects"), "--measure", "T1w") == 0
    assert read_stats(tmp_path / "subjects/sub-01/stats/aseg.stats")[0]["MaskVol"] == pytest.approx(own_mm3, abs=0.01)
    measured = app.output / "sub-01/anat/sub-01_meas-T1w_seg-FAST_desc-wholebrain_stats.json"
    assert json.loads(measured.read_text())["Description"].endswith("in the brain mask of the model other")


def test_a_folder_of_freesurfer_is_never_written_to(app: App, tmp_path: Path) -> None:
    foreign = tmp_path / "subjects/sub-01/mri/aseg.mgz"
    foreign.parent.mkdir(parents=True)
    foreign.write_bytes(b"of recon-all")
    assert app("--skip-bids-validation", "--freesurfer", str(tmp_path / "subjects")) == 73
    assert foreign.read_bytes() == b"of recon-all" and not app.fake.segmented
    assert [path.name for path in (tmp_path / "subjects").iterdir()] == ["sub-01"]


def test_a_label_map_of_fmriprep_is_never_replaced(app: App, tmp_path: Path) -> None:
    foreign = app.output / "sub-01/anat/sub-01_desc-aseg_dseg.nii.gz"
    foreign.parent.mkdir(parents=True)
    foreign.write_bytes(b"of fMRIPrep")
    assert app("--skip-bids-validation", "--freesurfer", str(tmp_path / "subjects")) == 73
    assert foreign.read_bytes() == b"of fMRIPrep"


def test_what_cannot_work_is_refused_before_any_work(app: App, tmp_path: Path) -> None:
    tissues = save_card(tmp_path / "tissues", name="tissues", heads=("FAST",))
    assert app("--skip-bids-validation", "--freesurfer", str(tmp_path / "s"), model=tissues) == 64
    assert app("--skip-bids-validation", "--freesurfer", str(app.bids / "freesurfer")) == 64
    assert not app.fake.segmented and not (tmp_path / "s").exists()


def test_an_image_larger_than_the_usual_grid_is_not_cut() -> None:
    affine = phantoms.grid(2.0, "RAS", (140, 150, 160))
    data = np.zeros((140, 150, 160), np.float32)
    data[0, 0, 0] = data[-1, -1, -1] = 1
    image = Volume(data, affine)
    grid = ConformedGrid.of(image, np.zeros(image.shape, bool))
    assert grid.size == 320
    corners = np.argwhere(grid.labels(image))
    assert (np.ptp(corners, axis=0) >= 2 * (np.array(image.shape)[[0, 2, 1]] - 1)).all()


def test_a_turned_image_has_the_usual_grid_unless_that_cuts_the_brain() -> None:
    affine = phantoms.grid(4.0, "RAS", (64, 64, 64), rotation_degrees=20)
    image, brain = Volume(np.zeros((64, 64, 64), np.float32), affine), np.zeros((64, 64, 64), bool)
    brain[16:48, 16:48, 16:48] = True
    assert ConformedGrid.of(image, brain).size == 256
    brain[:] = False
    brain[0, 0, 0] = True
    grid = ConformedGrid.of(image, brain)
    assert grid.size > 256 and grid.labels(Volume(brain.astype(np.uint8), affine)).any()
