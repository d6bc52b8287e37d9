"""The brainlife launcher: the inputs of the platform and the outputs for it."""

import base64
import io
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import phantoms
import pytest
from fake_model import make_app, save_card
from nifti import load_nifti
from PIL import Image

from bidsseg.app import brainlife
from bidsseg.derivative.volumes import BRAIN_MASK, INTRACRANIAL
from bidsseg.labels import load_protocol

ROOT = Path(__file__).parents[2]


def configure(folder: Path, **config: Any) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of a task with images under the platform's names; the network is fake."""
    make_app(tmp_path, tmp_path, monkeypatch)
    folder = tmp_path / "task"
    shape, affine = (24, 28, 24), phantoms.grid(8.0, "LAS", (24, 28, 24))
    for name in ("t1", "flair"):
        phantoms.save(folder / "input" / f"{name}.nii.gz", phantoms.noisy_head(affine, shape), affine)
    return folder


def test_an_unknown_intracranial_volume_is_not_shown(
    task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = save_card(tmp_path / "other", name="other", heads=("brain", "FAST"))
    configure(task, t1="input/t1.nii.gz", model=str(model), protocol="FAST")
    monkeypatch.setattr("fake_model.INTRACRANIAL_MM3", math.nan)
    assert brainlife.main(task) == 0
    volumes = json.loads((task / "product.json").read_text())["volumes_mm3"]
    assert BRAIN_MASK in volumes and INTRACRANIAL not in volumes


def test_a_segmentation_in_the_forms_of_the_platform(
    task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bidsseg.report.mosaic.PIXELS_PER_MM", 1.25)  # that of tests makes pictures narrower
    model = save_card(tmp_path / "other", name="sick", heads=("brain", "FAST", "BrainCOLOR", "lesion"), lesion="lesion")
    images = {"t1": "input/t1.nii.gz", "flair": "input/flair.nii.gz"}
    inputs = [{"id": "t1", "meta": {"subject": "patient_7", "session": "1"}}]
    configure(task, **images, model=str(model), protocol="FAST", _inputs=inputs)
    assert brainlife.main(task) == 0
    made = task / "output" / "sub-patient7" / "anat"
    labels = load_nifti(task / "parc" / "parc.nii.gz")
    assert np.array_equal(labels.affine, load_nifti(task / "input" / "t1.nii.gz").affine)
    assert (made / "sub-patient7_seg-FAST_desc-sick_dseg.nii.gz").read_bytes() == (
        task / "parc" / "parc.nii.gz"
    ).read_bytes()
    described = json.loads((task / "parc" / "label.json").read_text())
    regions = load_protocol("FAST").regions[1:]
    assert [(entry["voxel_value"], entry["label"], entry["name"]) for entry in described] == [
        (region.index, str(region.index), region.name) for region in regions
    ]
    assert [f"#{entry['r']:02x}{entry['g']:02x}{entry['b']:02x}" for entry in described] == [
        region.color.lower() for region in regions
    ]
    assert set(np.unique(np.asarray(labels.dataobj))) <= {0, *(entry["voxel_value"] for entry in described)}
    keys = (task / "parc" / "key.txt").read_text().splitlines()
    assert keys == [f"{region.index} -> {region.index} == {region.name}" for region in regions]
    assert set(np.unique(np.asarray(load_nifti(task / "mask" / "mask.nii.gz").dataobj))) == {0, 1}

    product = json.loads((task / "product.json").read_text())
    (plot,) = [entry for entry in product["brainlife"] if entry["type"] == "plotly"]
    assert plot["data"][0]["x"][:3] == [region.name for region in regions]
    voxel = 8.0**3
    assert plot["data"][0]["y"][0] == round(int((np.asarray(labels.dataobj) == regions[0].index).sum()) * voxel)
    assert product["volumes_mm3"][regions[1].name] == plot["data"][0]["y"][1]
    (shown,) = [entry for entry in product["brainlife"] if entry["type"] == "image/png"]
    with Image.open(io.BytesIO(base64.b64decode(shown["base64"]))) as image:
        assert image.width == brainlife.PICTURE_PIXELS
    assert (task / "product.json").stat().st_size < 200_000


def test_images_that_are_not_there_are_not_given(task: Path) -> None:
    configure(task, t1="input/t1.nii.gz", flair="input/nothing.nii.gz", model=str(task.parent / "model"))
    assert brainlife.main(task) == 0
    assert not (task / "mask").exists()
    assert json.loads((task / "product.json").read_text())["tags"] == ["BrainCOLOR", "wholebrain"]
    assert (task / "output" / "sub-01.html").is_file()


@pytest.mark.parametrize(
    ("names", "values", "read"),
    [
        (("t1", "t2", "flair"), {"inputs": ("T1w", "FLAIR")}, ["T1w", "FLAIR"]),
        (("t1", "t2"), {"modality": "T2w"}, ["T2w"]),
        (("t2", "flair"), {"modality": "any"}, ["T2w"]),
        (("flair",), {"modality": "any"}, ["FLAIR"]),
    ],
)
def test_the_model_reads_images_of_its_contrasts(
    names: tuple[str, ...], values: dict[str, Any], read: list[str], task: Path
) -> None:
    shutil.copy(task / "input" / "flair.nii.gz", task / "input" / "t2.nii.gz")
    model = save_card(task.parent / "other", **values)
    configure(task, **{name: f"input/{name}.nii.gz" for name in names}, model=str(model), protocol="FAST")
    assert brainlife.main(task) == 0
    sidecar = json.loads((task / "output/sub-01/anat/sub-01_seg-FAST_desc-wholebrain_dseg.json").read_text())
    assert sidecar["Sources"] == [f"bids:raw:sub-01/anat/sub-01_{suffix}.nii.gz" for suffix in read]
    assert (task / "parc" / "parc.nii.gz").is_file()


@pytest.mark.parametrize(
    ("config", "code", "message"),
    [
        ("{}", 64, "give the path of a T1w as 't1'"),
        ("[", 64, "is not JSON"),
        (None, 66, "run in the folder that contains it"),
        ('{"t1": "input/none.nii.gz", "model": "MODEL"}', 66, "no file"),
        ('{"flair": "input/flair.nii.gz", "model": "MODEL"}', 18, "no T1w image"),
        (
            '{"t1": "input/t1.nii.gz", "protocol": "Atropos", "model": "MODEL"}',
            64,
            "not one of BrainCOLOR, FAST, FreeSurfer",
        ),
        ('{"t1": "input/t1.nii.gz", "model": "nonsense"}', 66, "no model 'nonsense'"),
        ('{"t1": "input/t1.nii.gz", "flair": ["a", "b"]}', 64, "the path of one FLAIR"),
        ('{"t1": "config.json", "model": "MODEL"}', 65, "none of the 1 scans can be used"),
    ],
)
def test_mistakes_are_reported(
    task: Path, config: str | None, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if config is not None:
        (task / "config.json").write_text(config.replace("MODEL", str(task.parent / "model")))
    assert brainlife.main(task) == code
    assert message in capsys.readouterr().err
    assert not (task / "product.json").exists()


@pytest.mark.parametrize(
    ("variables", "wanted"),
    [
        ({"PBS_NUM_PPN": "3"}, ["--nprocs", "3"]),
        ({"SLURM_CPUS_PER_TASK": "2", "SLURM_MEM_PER_NODE": "9000"}, ["--n-cpus", "2", "--mem", "9000"]),
        ({}, []),
    ],
)
def test_a_job_takes_its_share_of_the_machine(
    variables: dict[str, str], wanted: list[str], task: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(task, t1="input/t1.nii.gz")
    given: list[list[str]] = []
    for name in ("PBS_NUM_PPN", "SLURM_CPUS_PER_TASK", "SLURM_MEM_PER_NODE"):
        monkeypatch.setenv(name, variables.get(name, ""))

    def run(words: list[str]) -> int:
        given.append(words)
        return 1

    monkeypatch.setattr("bidsseg.app.cli.main", run)
    assert brainlife.main(task) == 1
    (words,) = given
    assert words[6:-4] == wanted


@pytest.mark.data
def test_the_launcher_runs_on_a_real_scan(tmp_path: Path, testdata: Path) -> None:
    """The platform starts a file in a separate folder; the shipped model is used."""
    scan = testdata / "oasis" / "sub-1000" / "anat" / "sub-1000_T1w.nii.gz"
    configure(tmp_path, t1=str(scan), flair="../nothing", _inputs=[{"meta": {"subject": "1000"}}])
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run([ROOT / "main"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = np.asarray(load_nifti(tmp_path / "parc" / "parc.nii.gz").dataobj)
    product = json.loads((tmp_path / "product.json").read_text())
    assert len(np.unique(found)) > 120
    assert 900_000 < sum(product["brainlife"][1]["data"][0]["y"][:-1]) < 1_800_000
    known = {entry["voxel_value"] for entry in json.loads((tmp_path / "parc" / "label.json").read_text())}
    assert set(np.unique(found)) <= {0, *known}


@pytest.mark.parametrize("gpus", ["2", None])
def test_an_image_sees_the_gpus_of_its_job(gpus: str | None, tmp_path: Path) -> None:
    (tmp_path / "singularity").write_text("#!/bin/bash\nenv\n")
    (tmp_path / "singularity").chmod(0o755)
    given = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "BIDSSEG_IMAGE": "b.sif", "SLURM_CPUS_PER_TASK": "4"}
    given |= {} if gpus is None else {"CUDA_VISIBLE_DEVICES": gpus}
    done = subprocess.run(["bash", ROOT / "main"], env=given, capture_output=True, text=True, check=True)
    found = dict(line.split("=", 1) for line in done.stdout.splitlines())
    assert found["SINGULARITYENV_SLURM_CPUS_PER_TASK"] == "4"
    assert found.get("SINGULARITYENV_CUDA_VISIBLE_DEVICES") == gpus
