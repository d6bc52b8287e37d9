"""The notebook of docs/how-to runs, cell after cell, and is stored without outputs."""

import json
import runpy
from pathlib import Path

import pytest
from nifti import load_nifti

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "docs" / "how-to" / "python.ipynb"


def code_cells() -> list[str]:
    """Return the source of every code cell."""
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def test_the_notebook_is_stored_without_outputs() -> None:
    content = json.loads(NOTEBOOK.read_text())
    assert content["nbformat"] == 4
    for cell in content["cells"]:
        assert not cell.get("outputs") and cell.get("execution_count") is None
    assert len({cell["id"] for cell in content["cells"]}) == len(content["cells"])


def test_the_notebook_runs_on_the_demo_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("nilearn")
    runpy.run_path(str(ROOT / "benchmarks" / "demo_dataset.py"))["main"](tmp_path / "demo" / "bids")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for number, cell in enumerate(code_cells()):
        exec(compile(cell, f"{NOTEBOOK.name}, code cell {number}", "exec"), names)
    (saved,) = (tmp_path / "segmented").glob("*_seg-FreeSurfer_*_dseg.nii.gz")
    scan = load_nifti(tmp_path / str(names["scan"]))
    assert (load_nifti(saved).affine == scan.affine).all()
    agreement = names["agreement"]
    assert (agreement["dice"] == 1).all()  # type: ignore[index]
