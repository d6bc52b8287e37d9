"""Results in the space of a template: positions, names, and missing templates."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import phantoms
import pytest
import SimpleITK as sitk
from fake_model import App, make_app, save_card
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.affines import apply_affine, from_matvec
from nifti import load_nifti
from scipy import ndimage
from scipy.spatial.transform import Rotation

from bidsseg.errors import InputMissing, UsageError
from bidsseg.evaluation.agreement import dice
from bidsseg.image.nifti import write_field
from bidsseg.image.volume import Field, Volume, places
from bidsseg.registration import linear
from bidsseg.registration.demons import deform
from bidsseg.registration.linear import as_text
from bidsseg.registration.spaces import Fit, Space, caches, find_space, labels_at, template_brain
from bidsseg.registration.templateflow import listed

NAME = "MNI152NLin2009cAsym"
TRUTH = from_matvec(
    Rotation.from_rotvec([4, -6, 3], degrees=True).as_matrix() @ np.diag([1.08, 0.94, 1.05]), [5.0, -8.0, 4.0]
)
"""Affine from the scan to the template: a head of another size, in another position."""


@pytest.fixture(scope="module")
def template_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache like TemplateFlow's, with nilearn's MNI template at 3 mm, under another resolution number."""
    datasets = pytest.importorskip("nilearn.datasets")
    home = tmp_path_factory.mktemp("templates") / "templateflow"
    folder = home / f"tpl-{NAME}"
    folder.mkdir(parents=True)
    image, mask = datasets.load_mni152_template(resolution=3), datasets.load_mni152_brain_mask(resolution=3)
    nib.save(image, folder / f"tpl-{NAME}_res-02_T1w.nii.gz")
    mask = nib.Nifti1Image(np.asarray(mask.dataobj).astype(np.uint8), mask.affine)
    nib.save(mask, folder / f"tpl-{NAME}_res-02_desc-brain_mask.nii.gz")
    (folder / f"tpl-{NAME}_res-01_T1w.nii.gz").touch()  # the client creates empty files before it downloads them
    return home


@pytest.fixture
def templates(template_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the cache, which TemplateFlow's client uses."""
    home = tmp_path / "templateflow"
    shutil.copytree(template_cache, home)
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(home))
    listed.cache_clear()
    return home


@pytest.fixture
def app(templates: Path, tmp_path: Path, make_bids: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> App:
    """An app with one participant, whose head is the moved and stretched template; fewer voxels are compared."""
    monkeypatch.setattr(linear, "SAMPLES", 10_000)
    bids = make_bids(1)
    template = load_nifti(templates / f"tpl-{NAME}" / f"tpl-{NAME}_res-02_T1w.nii.gz")
    shape, affine = (90, 100, 96), phantoms.grid(2.2, "LAS", (90, 100, 96))
    to_template = np.linalg.inv(template.affine) @ TRUTH @ affine
    data = ndimage.affine_transform(template.get_fdata(), to_template[:3, :3], to_template[:3, 3], shape, order=1)
    phantoms.save(bids / "sub-01" / "anat" / "sub-01_T1w.nii.gz", (1000 * data).astype(np.float32), affine)
    return make_app(tmp_path, bids, monkeypatch)


@pytest.mark.parametrize(("way", "ending"), [("", "nii.gz"), (":affine", "txt")])
def test_label_maps_lie_on_the_template(way: str, ending: str, app: App, templates: Path) -> None:
    assert app("--output-spaces", f"{NAME}:res-2{way}", "T1w") == 0
    anat = app.output / "sub-01" / "anat"
    template = load_nifti(templates / f"tpl-{NAME}" / f"tpl-{NAME}_res-02_T1w.nii.gz")
    native = load_nifti(anat / "sub-01_seg-FAST_desc-wholebrain_dseg.nii.gz")
    found = load_nifti(anat / f"sub-01_space-{NAME}_seg-FAST_res-2_desc-wholebrain_dseg.nii.gz")
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
    transform = transform_in(anat / f"sub-01_from-T1w_to-{NAME}_mode-image_desc-wholebrain_xfm.{ending}")
    lps = np.diag([-1.0, -1, 1, 1])
    for point in ([30.0, 20, 10], [-40, -50, 30], [0, 0, 0]):
        source = apply_affine(np.linalg.inv(TRUTH), np.array(point))
        there = apply_affine(lps, np.array(transform.TransformPoint(apply_affine(lps, np.array(point)).tolist())))
        assert np.linalg.norm(there - source) < 3


def transform_in(path: Path) -> sitk.Transform:
    """Return a transform as ITK and ANTs read it."""
    if path.suffix == ".txt":
        transform: sitk.Transform = sitk.ReadTransform(str(path))
        return transform
    return sitk.DisplacementFieldTransform(sitk.ReadImage(str(path), sitk.sitkVectorFloat64))


@pytest.fixture
def no_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip registration: scans are already aligned with the template."""

    def fit_to(space: Space, t1w: Volume, brain: np.ndarray) -> Fit:
        still = Field(np.zeros((*t1w.shape, 3), np.float32), t1w.affine)
        return Fit(template_brain(space)[0], np.eye(4), None if space.affine else still)

    monkeypatch.setattr("bidsseg.derivative.job.fit_to", fit_to)


@pytest.mark.usefixtures("no_search")
def test_labels_beyond_16_bits_remain_in_a_space(app: App) -> None:
    rows = ["index\tname", *(f"{index}\tRegion {index}" for index in (0, 70001, 70002, 70003))]
    (app.card / "seg-Own_dseg.tsv").write_text("\n".join(rows) + "\n")
    save_card(app.card, heads=("brain", "Own"))
    assert app("--output-spaces", f"{NAME}:res-2") == 0
    found = app.voxels(f"sub-01/anat/sub-01_space-{NAME}_seg-Own_res-2_desc-wholebrain_dseg.nii.gz")
    assert np.unique(found).tolist() == [0, 70001, 70002, 70003]


@pytest.mark.usefixtures("no_search")
def test_a_space_that_is_written_again_is_not_lost(app: App, capsys: pytest.CaptureFixture[str]) -> None:
    t1w = load_nifti(app.bids / "sub-01/anat/sub-01_T1w.nii.gz")
    bright = np.asarray(t1w.dataobj) > 0.7 * np.asarray(t1w.dataobj).max()
    mask = np.zeros(t1w.shape, np.uint8)
    mask[tuple(axis[:40] for axis in np.nonzero(bright))] = 1
    phantoms.save(app.output.parent / "drawn/sub-01/anat/sub-01_label-lesion_mask.nii.gz", mask, t1w.affine)
    lesions = ("--lesions", str(app.output.parent / "drawn"))
    assert app(*lesions, "--output-spaces", f"{NAME}:res-2") == 0
    of_lesions = f"sub-01/anat/sub-01_space-{NAME}_res-2_label-lesion_*"
    assert len(app.files(of_lesions)) == 2
    assert app("--output-spaces", f"{NAME}:res-2") == 0
    assert not app.files(of_lesions)
    assert app(*lesions, "--output-spaces", f"{NAME}:res-2:affine") == 0
    assert "without --output-spaces" not in capsys.readouterr().err
    assert app() == 0
    assert not app.files("sub-01/anat/*_space-*") and not app.files("sub-01/anat/*_xfm.*")
    assert capsys.readouterr().err.count(f"recomputed without --output-spaces {NAME}:res-2: the files") == 1


@pytest.mark.usefixtures("no_search")
def test_another_way_to_the_template_is_another_result(app: App) -> None:
    def transforms() -> list[str]:
        return [path.name.partition("_xfm")[2] for path in app.output.glob("sub-01/anat/*_xfm.*")]

    for way, ending, fate in (("", ".nii.gz", "done"), (":affine", ".txt", "done"), ("", ".nii.gz", "done")):
        assert app("--output-spaces", f"{NAME}:res-2{way}") == 0
        assert (transforms(), set(app.fates.values())) == ([ending], {fate})
    assert app("--output-spaces", f"{NAME}:res-2") == 0
    assert set(app.fates.values()) == {"skipped"}


@pytest.mark.usefixtures("no_search")
def test_results_in_a_space_belong_to_the_job_and_are_valid_bids(app: App) -> None:
    assert app() == 0
    assert app("--output-spaces", f"{NAME}:res-2") == 0
    assert set(app.fates.values()) == {"done"}
    assert app("--output-spaces", f"{NAME}:res-02") == 0
    assert set(app.fates.values()) == {"skipped"}
    assert app() == 0
    assert set(app.fates.values()) == {"skipped"}
    name = "sub-01/anat/sub-01_seg-FAST_desc-wholebrain_dseg.nii.gz"
    labels = load_nifti(app.output / name)
    corrections = app.output.parent / "corrected"
    phantoms.save(corrections / name, np.minimum(labels.dataobj, 1).astype(np.uint8), labels.affine)
    assert app("--output-spaces", f"{NAME}:res-2", "--corrections", str(corrections)) == 0
    in_space = app.output / f"sub-01/anat/sub-01_space-{NAME}_seg-FAST_res-2_desc-wholebrain_dseg.nii.gz"
    assert set(np.unique(load_nifti(in_space).dataobj)) == {0, 1}
    sidecar = json.loads(Path(str(in_space).replace(".nii.gz", ".json")).read_text())
    assert sidecar["Manual"] and sidecar["Sources"][-1] == f"bids:corrections:{name}"
    validator = Path(sys.executable).with_name("bids-validator-deno")
    done = subprocess.run([validator, app.output, "--format", "json"], capture_output=True, text=True)
    issues = json.loads(done.stdout)["issues"]["issues"]
    assert [issue for issue in issues if issue["severity"] == "error"] == []


@pytest.mark.parametrize(
    ("word", "code", "message"),
    [
        (NAME, 66, "TEMPLATEFLOW_HOME"),  # resolution 1 is an empty file
        ("NKI", 66, "tpl-NKI_res-01_T1w.nii.gz is missing; download it"),
        ("Nowhere", 64, "TemplateFlow has no template Nowhere: give one of MNI152Lin, "),
        ("MNI152NLin2009casym", 64, f"no template MNI152NLin2009casym: give one of {NAME}, "),
        ("MNI152", 64, "no template MNI152: give one of MNI152Lin, "),
        (f"{NAME}:res-3", 64, f"no resolution 3 of {NAME}: give {NAME}:res-1 or {NAME}:res-2"),
        ("RESILIENT", 64, "RESILIENT is not a volume template with a T1w and a brain mask: give one of"),
        ("anat", 64, "anat is not a volume template: results on the grid of the scan are always written"),
        ("fsaverage", 64, "fsaverage is a surface template, not a volume: give one of"),
        ("fsLR:res-2", 64, "fsLR is a surface template, not a volume"),
        (f"{NAME}:2", 64, "give TEMPLATE[:res-NUMBER]"),
        (f"{NAME}:warped", 64, "[:affine]"),
        ("../etc", 64, "give TEMPLATE"),
    ],
)
def test_a_missing_template_is_reported_at_the_start(
    word: str, code: int, message: str, app: App, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []
    monkeypatch.setattr("bidsseg.registration.spaces.fetch", lambda template, _: asked.append(template))
    assert app("--output-spaces", word, "--dry-run") == code
    assert message in capsys.readouterr().err
    assert app("--output-spaces", word) == code
    assert message in capsys.readouterr().err
    assert asked == ([word, word] if code == 66 else [])
    assert not app.output.exists() and app.fake.segmented == 0


def test_words_for_spaces(templates: Path) -> None:
    space = find_space(f"{NAME}:res-02")
    assert (space.template, space.resolution) == (NAME, "2")
    assert space.words == {"space": NAME, "res": "2", "transform": ".nii.gz"}
    assert find_space(f"{NAME}:res-2:affine").words["transform"] == ".txt"
    with pytest.raises(UsageError):
        find_space(f"{NAME}:res-0")


def test_templates_of_the_user_and_resolutions_of_one_digit(templates: Path) -> None:
    for path in (templates / f"tpl-{NAME}").glob("*_res-02_*"):
        for name, number in (("Mine", "02"), ("MNI152NLin2009aAsym", "1")):
            other = templates / f"tpl-{name}" / path.name.replace(NAME, name).replace("res-02", f"res-{number}")
            other.parent.mkdir(exist_ok=True)
            shutil.copy(path, other)
    assert find_space("Mine:res-2").image.name == "tpl-Mine_res-02_T1w.nii.gz"
    assert find_space("MNI152NLin2009aAsym").reference.endswith("/tpl-MNI152NLin2009aAsym_res-1_T1w.nii.gz")
    with pytest.raises(InputMissing):  # it may have come after the client
        find_space("Mine:res-1")


def test_without_a_list_no_name_is_refused(templates: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bidsseg.registration.templateflow.listed", dict)
    monkeypatch.setattr("bidsseg.registration.spaces.fetch", lambda *_: None)
    with pytest.raises(InputMissing, match="download it"):
        find_space("Nowhere")


def test_the_image_has_templates_of_its_own(templates: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("TEMPLATEFLOW_HOME")
    usual = tmp_path / "home" / ".cache" / "templateflow"
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(sys, "prefix", str(templates.parent))
    assert caches() == [templates, usual]
    assert find_space(f"{NAME}:res-2").image.parent.parent == templates
    other = templates / f"tpl-{NAME}"
    shutil.copytree(other, usual / "tpl-Other")
    for path in (usual / "tpl-Other").iterdir():
        path.rename(path.with_name(path.name.replace(NAME, "Other")))
    assert find_space("Other:res-2").image.parent.parent == usual, "what is not in the image is where it usually is"


def test_conflicts_and_missing_packages_of_spaces_are_reported_at_the_start(
    app: App, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app("--output-spaces", f"{NAME}:res-2", f"{NAME}:res-2:affine") == 64
    assert f"give {NAME} with :affine or without, not both" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    assert app("--output-spaces", f"{NAME}:res-2") == 64
    assert 'needs SimpleITK: pip install "bidsseg[spaces]"' in capsys.readouterr().err
    assert not app.output.exists() and app.fake.segmented == 0


def test_two_resolutions_have_one_fit(app: App, templates: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (templates / f"tpl-{NAME}").glob("*_res-02_*"):
        shutil.copy(path, path.with_name(path.name.replace("res-02", "res-03")))
    asked: list[Space] = []

    def fit_to(space: Space, t1w: Volume, brain: np.ndarray) -> Fit:
        asked.append(space)
        return Fit(template_brain(space)[0], TRUTH, None)

    monkeypatch.setattr("bidsseg.derivative.job.fit_to", fit_to)
    assert app("--output-spaces", *(f"{NAME}:res-{number}:affine" for number in (2, 3, "02"))) == 0
    assert [space.resolution for space in asked] == ["2"]
    anat = app.output / "sub-01" / "anat"
    maps = [load_nifti(anat / f"sub-01_space-{NAME}_seg-FAST_res-{n}_desc-wholebrain_dseg.nii.gz") for n in (2, 3)]
    assert np.array_equal(maps[0].get_fdata(), maps[1].get_fdata()) and maps[0].get_fdata().any()
    assert len(list(anat.glob("*_xfm.*"))) == 1
    assert app("--output-spaces", *(f"{NAME}:res-{number}:affine" for number in (2, 3))) == 0
    assert set(app.fates.values()) == {"skipped"}


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
def test_every_label_is_where_the_motion_moves_it(
    angles: tuple[float, ...], scales: tuple[float, ...], shift: tuple[float, ...], orientation: str
) -> None:
    """The nearest label of each voxel is the reference; the most probable label differs only at borders."""
    motion = from_matvec(Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ np.diag(scales), shift)
    shape, affine = (22, 24, 20), phantoms.grid(4.0, orientation, (22, 24, 20))
    labels = np.kron(np.arange(1, 9).reshape(2, 2, 2), np.ones((6, 7, 5))).astype(np.uint16) * 20
    labels = np.pad(labels, [(5, 5), (5, 5), (5, 5)])
    grid = Volume(np.zeros((30, 28, 26), np.uint8), phantoms.grid(3.5, "RAS", (30, 28, 26)))
    found = labels_at(labels, affine, Fit(grid, motion, None).points)
    matrix = np.linalg.inv(affine) @ np.linalg.inv(motion) @ grid.affine
    nearest = ndimage.affine_transform(labels, matrix[:3, :3], matrix[:3, 3], grid.shape, order=0, mode="constant")
    inner = ndimage.affine_transform(
        np.where(ndimage.minimum_filter(labels, 3) == ndimage.maximum_filter(labels, 3), 1, 0),
        matrix[:3, :3], matrix[:3, 3], grid.shape, order=0, mode="constant", cval=1,
    )  # fmt: skip
    assert labels.shape == shape
    assert (found != nearest)[inner == 1].mean() < 0.002
    assert (found != nearest).mean() < 0.1


def test_a_text_transform_equals_the_one_that_simpleitk_reads(tmp_path: Path) -> None:
    path = tmp_path / "motion_xfm.txt"
    path.write_text(as_text(TRUTH))
    lps = np.diag([-1.0, -1, 1, 1])
    point = np.array([10.0, -20.0, 30.0])
    there = sitk.ReadTransform(str(path)).TransformPoint(apply_affine(lps, point).tolist())
    assert apply_affine(lps, np.array(there)) == pytest.approx(apply_affine(np.linalg.inv(TRUTH), point))


def test_the_likeliest_label_against_sums_of_interpolated_masks() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, (6, 7, 8)).astype(np.uint16)
    affine = phantoms.grid(2.0, "LAS", labels.shape)
    points = apply_affine(affine, rng.uniform(-1, 8, (9, 10, 11, 3)))
    index = np.moveaxis(apply_affine(np.linalg.inv(affine), points), -1, 0)
    masks = [(np.pad(labels, 1) == label).astype(float) for label in range(5)]
    masks[0] = np.pad(np.pad(labels, 1) == 0, 20, constant_values=True)[19:-19, 19:-19, 19:-19].astype(float)
    chance = [
        ndimage.map_coordinates(mask, index + offset, order=1, mode="grid-constant", cval=float(label == 0))
        for label, (mask, offset) in enumerate(zip(masks, [2, 1, 1, 1, 1], strict=True))
    ]
    np.testing.assert_array_equal(labels_at(labels, affine, points), np.argmax(chance, 0))


def test_demons_find_a_smooth_displacement() -> None:
    shape, affine = (72, 72, 72), phantoms.grid(3.0, "LAS", (72, 72, 72))
    fixed, labels = Volume(phantoms.head(affine, shape), affine), phantoms.head(affine, shape, phantoms.LABEL)
    here = places(shape, affine)
    bent = np.moveaxis(apply_affine(np.linalg.inv(affine), here - 6 * np.sin(here[..., [1, 2, 0]] / 25)), -1, 0)
    moving = Volume(ndimage.map_coordinates(fixed.data, bent, order=1).astype(np.float32), affine)
    bent_labels = ndimage.map_coordinates(labels, bent, order=0).astype(np.uint16)
    found = deform(moving, fixed, np.eye(4))
    assert found.vectors.shape == (*shape, 3) and np.array_equal(found.affine, affine)
    back = labels_at(bent_labels, affine, here + found.vectors)
    before, after = (np.mean(dice(given, labels, range(1, labels.max() + 1))) for given in (bent_labels, back))
    assert before < 0.6 and after > 0.85
    size = np.linalg.det(np.stack(np.gradient(here + found.vectors, 3.0, axis=(0, 1, 2)), -1))
    assert ((size < 0).mean() if np.median(size) > 0 else (size > 0).mean()) < 0.001, "nothing is folded"


def test_the_same_brains_give_the_same_displacement() -> None:
    shape, affine = (32, 32, 32), phantoms.grid(7.0, "LAS", (32, 32, 32))
    fixed, moving = (Volume(phantoms.noisy_head(affine, shape, seed=seed), affine) for seed in (0, 1))
    one, other = (deform(moving, fixed, np.eye(4)).vectors for _ in range(2))
    assert np.array_equal(one, other) and one.any()


def test_a_displacement_field_equals_the_one_that_simpleitk_reads(tmp_path: Path) -> None:
    affine = phantoms.grid(3.0, "LAS", (7, 8, 9))
    vectors = np.random.default_rng(0).normal(size=(7, 8, 9, 3))
    write_field(tmp_path / "x_xfm.nii.gz", Field(vectors, affine))
    lps = np.diag([-1.0, -1, 1, 1])
    point = apply_affine(affine, [3, 4, 5])
    transform = transform_in(tmp_path / "x_xfm.nii.gz")
    there = apply_affine(lps, np.array(transform.TransformPoint(apply_affine(lps, point).tolist())))
    assert there == pytest.approx(point + vectors[3, 4, 5], abs=1e-4)
