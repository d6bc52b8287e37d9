"""The dataset of `make demo`, and the notebook of docs/how-to, which segments one of its scans."""

import json
import runpy
from pathlib import Path

import nibabel as nib
import numpy as np
import phantoms
import pytest
from nifti import load_nifti

from bidsseg.bids.query import find_scans
from bidsseg.bids.validator import validate
from bidsseg.image.nifti import read_image

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "docs" / "how-to" / "python.ipynb"


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dataset, which no test changes."""
    pytest.importorskip("nilearn")
    folder = tmp_path_factory.mktemp("demo") / "bids"
    runpy.run_path(str(ROOT / "benchmarks" / "demo_dataset.py"))["main"](folder)
    return folder


def code_cells() -> list[str]:
    """Return the source of every code cell of the notebook."""
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def test_the_dataset_is_valid_and_both_scans_show_the_same_head(demo: Path) -> None:
    scans = find_scans(demo)
    assert [scan.key for scan in scans] == ["sub-template", "sub-tilted"]
    assert validate(demo, scans) == []
    volumes_mm3, centres = [], []
    for scan in scans:
        image, findings = read_image(scan.t1w)
        assert findings == []
        brain = image.data > 0.2 * image.data.max()
        volumes_mm3.append(brain.sum() * image.voxel_volume_mm3)
        centres.append(nib.affines.apply_affine(image.affine, np.argwhere(brain).mean(axis=0)))
    np.testing.assert_allclose(volumes_mm3[0], volumes_mm3[1], rtol=0.05)
    np.testing.assert_allclose(centres[0], centres[1], atol=2)


def test_the_notebook_is_stored_without_outputs() -> None:
    content = json.loads(NOTEBOOK.read_text())
    assert content["nbformat"] == 4
    for cell in content["cells"]:
        assert not cell.get("outputs") and cell.get("execution_count") is None
    assert len({cell["id"] for cell in content["cells"]}) == len(content["cells"])


def test_the_notebook_runs_on_the_demo_dataset(demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its scan has every second voxel along each axis: most of the time is spent on voxels of the scan."""
    (path,) = demo.glob("sub-template/anat/*_T1w.nii.gz")
    image = load_nifti(path)
    coarse = image.slicer[::2, ::2, ::2]
    phantoms.save(tmp_path / "demo" / "bids" / path.relative_to(demo), np.asarray(coarse.dataobj), coarse.affine)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for number, cell in enumerate(code_cells()):
        exec(compile(cell, f"{NOTEBOOK.name}, code cell {number}", "exec"), names)
    (saved,) = (tmp_path / "segmented").glob("*_seg-FreeSurfer_*_dseg.nii.gz")
    scan = load_nifti(tmp_path / str(names["scan"]))
    assert (load_nifti(saved).affine == scan.affine).all()
    agreement = names["agreement"]
    assert (agreement["dice"] == 1).all()  # type: ignore[index]
