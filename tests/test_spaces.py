"""Results in the space of a template: where they lie, how they are named, and what happens without the template."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import phantoms
import pytest
import SimpleITK as sitk
from fake_model import App, make_app
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.affines import apply_affine, from_matvec
from scipy import ndimage
from scipy.spatial.transform import Rotation

from bidsseg.errors import InputMissing, UsageError
from bidsseg.image.linear import as_text
from bidsseg.image.template import cache, find_space, labels_in
from bidsseg.image.volume import Volume

NAME = "MNI152NLin2009cAsym"
TRUTH = from_matvec(
    Rotation.from_rotvec([4, -6, 3], degrees=True).as_matrix() @ np.diag([1.08, 0.94, 1.05]), [5.0, -8.0, 4.0]
)
"""Takes a point of the scan to the template: another head, otherwise held."""


@pytest.fixture
def templates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache laid out as TemplateFlow's, with the MNI template that nilearn carries, at 2 mm."""
    datasets = pytest.importorskip("nilearn.datasets")
    home = tmp_path / "templateflow"
    folder = home / f"tpl-{NAME}"
    folder.mkdir(parents=True)
    image, mask = datasets.load_mni152_template(resolution=2), datasets.load_mni152_brain_mask(resolution=2)
    nib.save(image, folder / f"tpl-{NAME}_res-02_T1w.nii.gz")
    mask = nib.Nifti1Image(np.asarray(mask.dataobj).astype(np.uint8), mask.affine)
    nib.save(mask, folder / f"tpl-{NAME}_res-02_desc-brain_mask.nii.gz")
    (folder / f"tpl-{NAME}_res-01_T1w.nii.gz").touch()  # as the client leaves what it has not fetched
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(home))
    return home


@pytest.fixture
def app(templates: Path, tmp_path: Path, make_bids: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> App:
    """One participant, whose head is the template's, moved and stretched."""
    bids = make_bids(1)
    template = nib.load(templates / f"tpl-{NAME}" / f"tpl-{NAME}_res-02_T1w.nii.gz")
    shape, affine = (90, 100, 96), phantoms.grid(2.2, "LAS", (90, 100, 96))
    to_template = np.linalg.inv(template.affine) @ TRUTH @ affine
    data = ndimage.affine_transform(template.get_fdata(), to_template[:3, :3], to_template[:3, 3], shape, order=1)
    phantoms.save(bids / "sub-01" / "anat" / "sub-01_T1w.nii.gz", (1000 * data).astype(np.float32), affine)
    return make_app(tmp_path, bids, monkeypatch)


def test_label_maps_lie_on_the_template(app: App, templates: Path) -> None:
    assert app("--output-spaces", f"{NAME}:res-2", "T1w") == 0
    anat = app.output / "sub-01" / "anat"
    template = nib.load(templates / f"tpl-{NAME}" / f"tpl-{NAME}_res-02_T1w.nii.gz")
    native = nib.load(anat / "sub-01_seg-FAST_desc-wholebrain_dseg.nii.gz")
    found = nib.load(anat / f"sub-01_space-{NAME}_seg-FAST_res-2_desc-wholebrain_dseg.nii.gz")
    assert found.shape == template.shape and np.array_equal(found.affine, template.affine)
    labels = np.asarray(found.dataobj)
    assert labels.dtype.kind == "u" and set(np.unique(labels)) == set(np.unique(np.asarray(native.dataobj)))
    share = template.get_fdata() / template.get_fdata().max()
    expected = np.digitize(share, (0.2, 0.4, 0.7))  # as the fake model tells classes
    for least, part, whole in ((0.95, labels > 0, expected > 0), (0.85, labels == 3, expected == 3)):
        assert 2 * (part & whole).sum() / (part.sum() + whole.sum()) > least
    sidecar = json.loads((anat / f"sub-01_space-{NAME}_seg-FAST_res-2_desc-wholebrain_dseg.json").read_text())
    assert sidecar["SpatialReference"].endswith(f"/tpl-{NAME}_res-02_T1w.nii.gz")
    assert "2" in sidecar["Resolution"]
    assert (anat / f"sub-01_space-{NAME}_seg-FAST_res-2_desc-wholebrain_dseg.tsv").is_file()
    assert (anat / f"sub-01_space-{NAME}_res-2_desc-brain_mask.nii.gz").is_file()
    transform = sitk.ReadTransform(str(anat / f"sub-01_from-T1w_to-{NAME}_mode-image_xfm.txt"))
    lps = np.diag([-1.0, -1, 1, 1])
    for point in ([30.0, 20, 10], [-40, -50, 30], [0, 0, 0]):
        source = apply_affine(np.linalg.inv(TRUTH), np.array(point))
        there = apply_affine(lps, np.array(transform.TransformPoint(apply_affine(lps, np.array(point)).tolist())))
        assert np.linalg.norm(there - source) < 3


def test_the_space_is_part_of_what_is_done_and_valid_bids(app: App) -> None:
    assert app() == 0
    assert app("--output-spaces", f"{NAME}:res-2") == 0
    assert set(app.fates.values()) == {"done"}
    assert app("--output-spaces", f"{NAME}:res-02") == 0
    assert set(app.fates.values()) == {"skipped"}
    assert app() == 0
    assert set(app.fates.values()) == {"skipped"}
    validator = Path(sys.executable).with_name("bids-validator-deno")
    if not validator.is_file():
        pytest.skip("the BIDS validator is not installed")
    done = subprocess.run([validator, app.output, "--format", "json"], capture_output=True, text=True)
    issues = json.loads(done.stdout)["issues"]["issues"]
    assert [issue for issue in issues if issue["severity"] == "error"] == []


@pytest.mark.parametrize(
    ("word", "code", "message"),
    [
        (NAME, 66, "TEMPLATEFLOW_HOME"),  # resolution 1 is an empty file
        ("Nowhere", 66, "tpl-Nowhere_res-01_T1w.nii.gz is not there"),
        (f"{NAME}:2", 64, "give TEMPLATE or TEMPLATE:res-NUMBER"),
        ("../etc", 64, "give TEMPLATE"),
    ],
)
def test_a_template_that_is_not_there_is_told_at_the_start(
    word: str, code: int, message: str, app: App, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []
    monkeypatch.setattr("bidsseg.image.template.fetch", lambda template, _: asked.append(template))
    assert app("--output-spaces", word) == code
    assert message in capsys.readouterr().err
    assert asked == ([word] if code == 66 else [])
    assert not app.output.exists() and app.fake.segmented == 0


def test_words_for_spaces(templates: Path) -> None:
    space = find_space(f"{NAME}:res-02")
    assert (space.template, space.resolution) == (NAME, "2")
    assert space.entities == {"space": NAME, "res": "2"}
    with pytest.raises(UsageError):
        find_space(f"{NAME}:res-0")


def test_the_image_has_templates_of_its_own(templates: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("TEMPLATEFLOW_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache() == tmp_path / "home" / ".cache" / "templateflow"
    monkeypatch.setattr(sys, "prefix", str(templates.parent))
    assert find_space(f"{NAME}:res-2").image.parent.parent == templates


def test_a_client_that_fails_changes_nothing(templates: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "templateflow", None)
    with pytest.raises(InputMissing):
        find_space(NAME)


@settings(max_examples=25, deadline=None)
@given(
    angles=st.tuples(*[st.floats(-40, 40)] * 3),
    scales=st.tuples(*[st.floats(0.7, 1.4)] * 3),
    shift=st.tuples(*[st.floats(-10, 10)] * 3),
    orientation=st.sampled_from(["RAS", "LPS", "PSR", "SAL"]),
)
def test_every_label_lies_where_the_motion_takes_it(
    angles: tuple[float, ...], scales: tuple[float, ...], shift: tuple[float, ...], orientation: str
) -> None:
    """Against the nearest label of each voxel, which the highest probability differs from at borders alone."""
    motion = from_matvec(Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ np.diag(scales), shift)
    shape, affine = (22, 24, 20), phantoms.grid(4.0, orientation, (22, 24, 20))
    labels = np.kron(np.arange(1, 9).reshape(2, 2, 2), np.ones((6, 7, 5))).astype(np.uint16) * 20
    labels = np.pad(labels, [(5, 5), (5, 5), (5, 5)])
    grid = Volume(np.zeros((30, 28, 26), np.uint8), phantoms.grid(3.5, "RAS", (30, 28, 26)))
    found = labels_in(grid, labels, affine, motion)
    matrix = np.linalg.inv(affine) @ np.linalg.inv(motion) @ grid.affine
    nearest = ndimage.affine_transform(labels, matrix[:3, :3], matrix[:3, 3], grid.shape, order=0, mode="constant")
    inner = ndimage.affine_transform(
        np.where(ndimage.minimum_filter(labels, 3) == ndimage.maximum_filter(labels, 3), 1, 0),
        matrix[:3, :3], matrix[:3, 3], grid.shape, order=0, mode="constant", cval=1,
    )  # fmt: skip
    assert labels.shape == shape
    assert (found != nearest)[inner == 1].mean() < 0.002
    assert (found != nearest).mean() < 0.1


def test_a_transform_as_text_is_what_simpleitk_reads(tmp_path: Path) -> None:
    path = tmp_path / "motion_xfm.txt"
    path.write_text(as_text(TRUTH))
    lps = np.diag([-1.0, -1, 1, 1])
    point = np.array([10.0, -20.0, 30.0])
    there = sitk.ReadTransform(str(path)).TransformPoint(apply_affine(lps, point).tolist())
    assert apply_affine(lps, np.array(there)) == pytest.approx(apply_affine(np.linalg.inv(TRUTH), point))
