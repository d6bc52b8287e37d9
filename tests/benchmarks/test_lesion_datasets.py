"""Datasets of the benchmarks: synthetic participants with lesions, and tissue classes of another tool."""

from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import phantoms
import pytest
import torch
from nifti import load_nifti
from scripts import script

from bidsseg.image.volume import Volume
from bidsseg.labels import load_protocol
from bidsseg.learning.datasets import load_cases
from bidsseg.settings import Settings, Training

SHAPE = (24, 28, 24)
AFFINE = np.diag([0.5, 0.5, 0.5, 1]) @ phantoms.grid(8.0, "LIA", SHAPE)
HEADS = np.array([0, 24, 3, 2, 25], np.uint8)
"""Values of the protocol head for the classes of the phantom."""


@pytest.fixture
def making(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, with one head of each kind and a template of the size of the phantom."""
    module = script("lesion_datasets")
    for name, heads in (("HEALTHY", ("01",)), ("PATIENTS", ("02",)), ("TESTED", ("03",))):
        monkeypatch.setattr(module, name, heads)
    monkeypatch.setattr(module, "template_frame", lambda: (np.zeros(3), np.array([36.0, 45, 39])))
    return module


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three heads, lesion masks of two patients on a 1 mm grid, and the mask of a patient with images."""
    labels = HEADS[phantoms.head(2 * AFFINE, SHAPE, phantoms.LABEL)]
    for number in (1, 2, 3):
        name = f"sub-0{number}"
        phantoms.save(tmp_path / "heads" / name / "anat" / f"{name}_seg-head_dseg.nii.gz", labels, AFFINE)
    shape, affine = (90, 100, 90), phantoms.grid(1.0, "LAS", (90, 100, 90))
    mask = (phantoms.head(2 * affine, shape, phantoms.LABEL) == 4).astype(np.uint8)
    for name in ("sub-06", "sub-07", "sub-08"):
        stem = f"{name}_space-MNI152_label-lesion_mask.nii.gz"
        phantoms.save(tmp_path / "ms" / "derivatives" / "manual" / name / "anat" / stem, mask, affine)
    (tmp_path / "ms" / "sub-08" / "anat").mkdir(parents=True)
    return tmp_path


def test_three_datasets_that_the_loaders_read(making: ModuleType, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    making.main(data, out)
    labels = {
        "lesion": [out / "lesions" / "derivatives" / "manual"],
        "FAST": [out / "anatomy" / "derivatives" / "fast"],
        "FASTlesion": [out / "both" / "derivatives" / "truth"],
    }
    training = Training(also=[out / "anatomy", out / "both"])
    settings = Settings(out / "lesions", tmp_path / "never", labels=labels, training=training)
    cases = {case.name: case for case in load_cases(settings, settings.report)}
    assert list(cases) == ["anatomy/sub-anatomy01", "both/sub-both03", "lesions/sub-07"]
    spoken = {name: [a.protocol.name for a in case.annotations] for name, case in cases.items()}
    assert list(spoken.values()) == [["FAST"], ["FASTlesion"], ["lesion", "brain"]]
    healthy, both, patient = cases.values()
    for case in cases.values():
        assert case.image is not None
        assert torch.equal(case.image[0] > 0, case.brain)
    assert set(healthy.annotations[0].values.unique().tolist()) == {0, 1, 2, 3}
    assert set(both.annotations[0].values.unique().tolist()) == {0, 1, 2, 3, 4}
    assert healthy.brain.sum() == both.brain.sum()
    expected = 4 / 3 * np.pi * 5 * 6 * 5
    for found in (both.annotations[0].values == 4, patient.annotations[0].values == 1):
        assert found.sum().item() == pytest.approx(expected, rel=0.4)
    place = torch.nonzero(patient.annotations[0].values).float().mean(0) - patient.centre
    assert place.tolist() == pytest.approx([-16, 5, 7.5], abs=4)

    assert (out / "anatomy" / "derivatives" / "fast" / "seg-FAST_dseg.tsv").is_file()
    images = sorted(
        path.relative_to(out).as_posix() for path in out.rglob("*.nii.gz") if "derivatives" not in path.parts
    )
    assert [image.split("_")[-1] for image in images] == ["FLAIR.nii.gz", "T1w.nii.gz"] * 3
    grids = [(load_nifti(out / path).shape, load_nifti(out / path).affine.tolist()) for path in images]
    assert grids[0::2] == grids[1::2]
    before = [(out / path).read_bytes() for path in images]
    making.main(data, out)
    assert [(out / path).read_bytes() for path in images] == before


def test_lesions_are_bright_in_flair_and_darker_than_white_matter_in_t1w(making: ModuleType, tmp_path: Path) -> None:
    names = ["CSF", "Left Cerebral Cortex", "Left Cerebral White Matter"]
    rows = [next(i for i, r in enumerate(making.HEAD.regions) if r.name == name) for name in names]
    values = torch.tensor(rows)[torch.arange(48) // 16].reshape(48, 1, 1).expand(48, 30, 30).contiguous()
    lesions = torch.zeros(values.shape, dtype=torch.bool)
    lesions[38:44, 5:25, 5:25] = True
    contrast = []
    for number in range(6):
        name = f"sub-{number}"
        making.write_images(tmp_path, name, values, lesions=lesions, generator=making.seeded(name))
        for suffix in ("T1w", "FLAIR"):
            image = load_nifti(tmp_path / name / "anat" / f"{name}_{suffix}.nii.gz").get_fdata()
            inner = lesions.numpy()
            white = (values == rows[2]).numpy() & ~inner
            contrast.append((image[inner].mean() - image[white].mean()) * (1 if suffix == "FLAIR" else -1))
    assert min(contrast) > 0.02
    assert max(contrast[1::2]) > 1.5 * min(contrast[1::2])  # some are faint


def test_lesions_outside_of_tissue_are_dropped(making: ModuleType) -> None:
    row = {region.name: i for i, region in enumerate(making.HEAD.regions)}
    values = torch.zeros(30, 12, 12, dtype=torch.uint8)
    values[2:10] = row["CSF"]
    values[10:20] = row["Left Cerebral White Matter"]
    values[20:28] = row["Left Cerebral Cortex"]
    mask = torch.zeros(values.shape, dtype=torch.bool)
    mask[4:24, 4:8, 4:8] = True
    mask[14, 0, 0] = True  # a speck
    kept = making.inside_tissue(mask, values)
    assert torch.nonzero(kept).amin(0).tolist() == [10, 4, 4]
    assert torch.nonzero(kept).amax(0).tolist() == [20, 7, 7]  # the rim of the cortex is one voxel wide


def test_a_mask_follows_the_brain_that_it_is_fitted_to(making: ModuleType) -> None:
    white = next(i for i, r in enumerate(making.HEAD.regions) if r.name == "Left Cerebral White Matter")
    values = torch.zeros(60, 60, 60, dtype=torch.uint8)
    values[10:50, 5:25, 20:40] = white
    data = np.zeros((41, 41, 41), np.uint8)
    data[30:35, 18:23, 18:23] = 1  # 12 mm from the middle along the first axis, which points left
    affine = np.diag([-1.0, 1, 1, 1])
    affine[:3, 3] = [20, -20, -20]
    fitted = making.fitted(Volume(data, affine), (np.zeros(3), np.array([20.0, 20, 20])), values)
    place = torch.nonzero(fitted).float()
    assert place.mean(0).tolist() == pytest.approx([29.5 - 12, 14.5, 29.5], abs=1)
    assert (place.amax(0) - place.amin(0) + 1).tolist() == pytest.approx([5, 2.5, 2.5], abs=1)


def test_open_tissues_are_the_nearest_in_brightness(making: ModuleType) -> None:
    rows = {r.name: i for i, r in enumerate(making.HEAD.regions)}
    names = ["Background", "Brain Stem", "Left Thalamus", "Right White Matter Lesion", "Extra-cerebral Class 502"]
    values = torch.tensor([[[rows[name] for name in names]]], dtype=torch.uint8)
    assert making.in_protocol(values, load_protocol("FAST")).tolist() == [[[0, 3, 2, 2, 0]]]
    assert making.in_protocol(values, load_protocol("FASTlesion")).tolist() == [[[0, 3, 2, 4, 0]]]
    assert making.in_protocol(making.healthy(values), load_protocol("FAST")).tolist() == [[[0, 3, 2, 3, 0]]]


def test_people_to_learn_from_are_not_those_to_be_tested_on() -> None:
    module = script("lesion_datasets")
    kinds = [set(kind) for kind in (module.HEALTHY, module.PATIENTS, module.TESTED)]
    assert sum(map(len, kinds)) == len(set().union(*kinds)) == 20
    folds = [module.roles(fold) for fold in range(3)]
    assert [tuple(map(set, fold)) for fold in folds[:1]] == [(kinds[2], kinds[0], kinds[1])]
    for fold in folds:
        assert [len(heads) for heads in fold] == [8, 6, 6]
        assert len(set().union(*fold)) == 20
    assert len({head for tested, _, _ in folds for head in tested}) == 20


def test_classes_are_numbered_by_brightness() -> None:
    classes = np.array([[[0, 2, 2, 3, 1, 1]]], np.uint8)
    image = np.array([[[0, 10, 12, 90, 50, 51]]], np.float32)
    assert script("tool_labels").by_brightness(classes, image).tolist() == [[[0, 1, 1, 3, 2, 2]]]


def test_a_few_bright_vessels_do_not_widen_the_range_of_brightness() -> None:
    image = np.concatenate([np.linspace(10, 100, 1000), [5000.0] * 5, [-80.0] * 5]).reshape(1, 1, -1)
    clipped = script("tool_labels").within_tails(image, np.ones(image.shape, bool))
    assert 10 <= clipped.min() < 12 and 98 < clipped.max() <= 100
    assert np.array_equal(clipped[..., 20:-30], image[..., 20:-30])


def test_claims_are_not_tested_twice() -> None:
    claims = script("claims")
    runs = claims.ace()
    lesions, joined = next(r for r in runs if r.test is None), next(r for r in runs if r.lesions_of is not None)
    rows = [{"run": run.name, "seed": 0} for run in runs if run is not lesions]
    every, without = pd.DataFrame(rows), pd.DataFrame([row for row in rows if row["run"] != joined.name])
    assert not any(claims.wanted(run, 0, runs, table=every) for run in runs)
    assert all(claims.wanted(run, 1, runs, table=every) for run in runs)
    assert [run for run in runs if claims.wanted(run, 0, runs, table=without)] == [lesions, joined]
