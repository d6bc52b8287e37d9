"""Training datasets: participants, annotations and brain masks."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import phantoms
import pytest
import torch
from recording_console import RecordingConsole

from bidsseg.errors import DataError, InputMissing, NothingSelected
from bidsseg.image.grid import whole_grid
from bidsseg.image.volume import Volume
from bidsseg.labels import load_protocol
from bidsseg.learning import case_reading
from bidsseg.learning.case_reading import is_stripped
from bidsseg.learning.cases import Case
from bidsseg.learning.datasets import load_cases
from bidsseg.learning.folds import person, split
from bidsseg.models.library import Model
from bidsseg.segmentation.locate import Brain
from bidsseg.settings import Settings, Training

FAST = load_protocol("FAST")


def named(names: Sequence[str]) -> list[Case]:
    return [Case(name, None, (), torch.ones(2, 2, 2, dtype=torch.bool)) for name in names]


def test_a_participant_is_never_on_both_sides() -> None:
    names = [
        f"{dataset}/sub-{person:02}_ses-{session}"
        for dataset in ("one", "an_other", "a-third_set")
        for person in range(11)
        for session in (1, 2)
    ]
    held_once: list[str] = []
    for fold in range(4):
        seen, unseen = split(named(names), 4, fold)
        assert sorted(c.name for c in [*seen, *unseen]) == sorted(names)
        assert not {person(c.name) for c in seen} & {person(c.name) for c in unseen}
        assert len({person(c.name).split("/")[0] for c in unseen}) == 3
        held_once += [c.name for c in unseen]
    assert sorted(held_once) == sorted(names)


def test_people_of_different_datasets_are_different() -> None:
    assert [person(name) for name in ("a_b/sub-01_ses-1", "a/sub-01", "heads/sub-01_run-2")] == [
        "a_b/sub-01", "a/sub-01", "heads/sub-01",
    ]  # fmt: skip


def save_labels(folder: Path, stem: str, spacing_mm: float = 4.0, shape: tuple[int, int, int] = (24, 28, 24)) -> Path:
    """Write tissues of the phantom on the grid of `phantoms.make_bids`, with the lesion as grey matter."""
    affine = phantoms.grid(spacing_mm, "LAS", shape)
    tissue = np.array([0, 1, 2, 3, 2], np.uint8)[phantoms.head(affine, shape, phantoms.LABEL)]
    place = folder.joinpath(*(part for part in stem.split("_") if part.startswith(("sub-", "ses-"))), "anat")
    return phantoms.save(place / f"{stem}_seg-FAST_dseg.nii.gz", tissue, affine)


@pytest.fixture
def tissues(tmp_path: Path) -> Settings:
    """Three participants with T1w and tissue, one without annotation, and an annotation without image."""
    bids = phantoms.make_bids(tmp_path / "my_data", 4, spacing_mm=8.0, shape=(24, 28, 24))
    folder = tmp_path / "derivatives" / "fast"
    for number in (1, 2, 3, 5):
        save_labels(folder, f"sub-{number:02}", 8.0)
    return Settings(bids, tmp_path / "out", labels={"FAST": [folder]})


def test_cases_of_a_dataset(tissues: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    warnings: list[str] = []
    report = tissues.report
    monkeypatch.setattr(report, "warn", warnings.append)
    cases = load_cases(tissues, report)
    assert [(c.name, c.image is not None) for c in cases] == [
        ("my_data/sub-01", True), ("my_data/sub-02", True), ("my_data/sub-03", True), ("my_data/sub-05", False),
    ]  # fmt: skip
    (warning,) = warnings
    assert "sub-04_T1w.nii.gz: no annotation (seg-" in warning and "skipped" in warning
    first = cases[0]
    assert first.image is not None
    assert first.image.shape[1:] == first.brain.shape == first.annotations[0].values.shape
    assert all(n in (192, 224) for n in first.brain.shape)
    (image,) = first.image
    assert image[first.brain].mean() > 2 * image[~first.brain].mean()
    assert torch.equal(first.brain, first.annotations[0].values > 0)


def test_the_flair_is_read_with_the_t1w(tissues: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """One FLAIR is on the grid of the T1w, one on another grid, and one is missing."""
    anat = {number: tissues.bids_dir / f"sub-0{number}" / "anat" for number in (1, 2, 3)}
    affine, thick = phantoms.grid(8.0, "LAS", (24, 28, 24)), phantoms.grid((8, 4, 8), "PSR", (28, 50, 24))
    for number, where, shape in ((1, affine, (24, 28, 24)), (2, thick, (28, 50, 24))):
        bright = phantoms.head(where, shape, phantoms.FLAIR_INTENSITY)
        phantoms.save(anat[number] / f"sub-0{number}_FLAIR.nii.gz", bright, where)
    details: list[str] = []
    monkeypatch.setattr(tissues.report, "detail", details.append)
    cases = load_cases(tissues, tissues.report, ("T1w", "FLAIR"))
    assert [None if c.image is None else len(c.image) for c in cases] == [2, 2, 2, None]
    for known in cases[:2]:
        assert known.image is not None
        grey, white = (known.image[:, known.annotations[0].values == value].mean(1) for value in (2, 3))
        assert grey[0] < white[0] and grey[1] > white[1]
    assert cases[2].image is not None and not cases[2].image[1].any()
    assert any(line.startswith("my_data/sub-02: FLAIR moved by") for line in details)
    assert "my_data/sub-03: has no FLAIR" in details
    assert not any(line.startswith("my_data/sub-01: ") for line in details)


def test_participants_that_are_not_asked_for_are_not_synthesised(tissues: Settings) -> None:
    found = {}
    for labels_asked in (("01",), ("02", "05")):
        asked = replace(tissues, participants=labels_asked)
        found[labels_asked] = [(c.name, c.image is not None) for c in load_cases(asked, asked.report)]
    assert found == {
        ("01",): [("my_data/sub-01", True)],
        ("02", "05"): [("my_data/sub-02", True), ("my_data/sub-05", False)],
    }


def test_participants_and_sessions_that_no_dataset_has_are_named(tissues: Settings, tmp_path: Path) -> None:
    other = phantoms.make_bids(tmp_path / "other", 1, spacing_mm=8.0, shape=(24, 28, 24))
    (other / "sub-01").rename(other / "sub-02")
    report = RecordingConsole()
    asked = replace(tissues, participants=("01", "05", "77"), training=Training(also=[other]))
    load_cases(asked, report)
    assert report.warnings == [f"sub-77: nothing to train on in {tissues.bids_dir} or {other}"]


def test_scans_that_a_filter_leaves_out_are_not_synthesised(tissues: Settings) -> None:
    (folder,) = tissues.labels["FAST"]
    raw = tissues.bids_dir / "sub-01" / "anat"
    (raw / "sub-01_T1w.nii.gz").rename(raw / "sub-01_acq-fast_T1w.nii.gz")
    save_labels(folder, "sub-01_acq-fast", 8.0)
    (folder / "sub-01" / "anat" / "sub-01_seg-FAST_dseg.nii.gz").unlink()
    asked = replace(tissues, filters={"t1w": {"acquisition": "fast"}})
    assert [(c.name, c.image is not None) for c in load_cases(asked, asked.report)] == [
        ("my_data/sub-01_acq-fast", True), ("my_data/sub-05", False),
    ]  # fmt: skip


def test_each_dataset_has_its_own_folder_of_a_protocol(tmp_path: Path) -> None:
    """Both datasets have a participant 01; only the second has an annotation of it."""
    datasets = [phantoms.make_bids(tmp_path / name, 2, spacing_mm=8.0, shape=(24, 28, 24)) for name in ("one", "two")]
    folders = [dataset / "derivatives" / "fast" for dataset in datasets]
    save_labels(folders[0], "sub-02", 8.0)
    paths = [save_labels(folders[1], f"sub-0{number}", 8.0) for number in (1, 2)]
    training = Training(also=datasets[1:])
    asked = Settings(datasets[0], tmp_path / "out", labels={"FAST": folders}, training=training)
    assert [case.name for case in load_cases(asked, asked.report)] == ["one/sub-02", "two/sub-01", "two/sub-02"]
    elsewhere = [save_labels(tmp_path / "other", "sub-01", 8.0), paths[0]]
    both = replace(asked, labels={"FAST": [tmp_path / "other", folders[1]]})
    with pytest.raises(DataError) as caught:
        load_cases(both, both.report)
    assert str(caught.value) == f"{elsewhere[0]} and {elsewhere[1]} both annotate two/sub-01: give one folder"


def test_label_maps_outside_of_all_datasets_annotate_one_of_them(tmp_path: Path) -> None:
    """The participant 01 of the second dataset is another person."""
    one, two = (phantoms.make_bids(tmp_path / name, 1, spacing_mm=8.0, shape=(24, 28, 24)) for name in ("one", "two"))
    path = save_labels(tmp_path / "labels", "sub-01", 8.0)
    asked = Settings(one, tmp_path / "out", labels={"FAST": [tmp_path / "labels"]}, training=Training(also=[two]))
    with pytest.raises(DataError) as caught:
        load_cases(asked, asked.report)
    assert str(caught.value).startswith(f"{path}: fits participants of two datasets, {one} and {two}: move each folder")
    with pytest.raises(NothingSelected):  # without the participant, the label map is not used
        load_cases(replace(asked, participants=["02"]), asked.report)
    (two / "sub-01").rename(two / "sub-02")
    (image,) = two.glob("sub-02/anat/*_T1w.nii.gz")
    image.rename(image.with_name("sub-02_T1w.nii.gz"))
    assert [case.name for case in load_cases(asked, asked.report)] == ["one/sub-01"]


def test_label_maps_alone_are_cases(tissues: Settings, tmp_path: Path) -> None:
    heads = tmp_path / "heads"
    save_labels(heads, "sub-07", 8.0)
    empty = tmp_path / "empty"
    empty.mkdir()
    asked = replace(tissues, bids_dir=empty, labels={"FAST": [heads]})
    (found,) = load_cases(asked, asked.report)
    assert found.name == "heads/sub-07"
    assert found.image is None


def test_label_maps_alone_are_named_where_no_images_are_made(tissues: Settings) -> None:
    report = RecordingConsole()
    found = load_cases(tissues, report, synthetic=False)
    assert found and all(case.image is not None for case in found)
    (warned,) = [line for line in report.warnings if "no matching image" in line]
    assert "sub-05_seg-FAST_dseg.nii.gz" in warned
    nobody = replace(tissues, participants=("05",))
    with pytest.raises(NothingSelected, match="no scan has an annotation"):
        load_cases(nobody, nobody.report, synthetic=False)


def test_an_annotation_that_is_not_of_integers_is_named(tissues: Settings) -> None:
    affine = phantoms.grid(8.0, "LAS", (24, 28, 24))
    path = tissues.labels["FAST"][0] / "sub-02" / "anat" / "sub-02_seg-FAST_dseg.nii.gz"
    phantoms.save(path, np.full((24, 28, 24), 1.5, np.float32), affine)
    with pytest.raises(DataError, match="integer") as caught:
        load_cases(tissues, tissues.report)
    assert str(path) in str(caught.value)


def test_an_annotation_on_another_grid_is_named(tissues: Settings) -> None:
    path = save_labels(tissues.labels["FAST"][0], "sub-01", 7.9)
    with pytest.raises(
        DataError, match=r"sub-01_seg-FAST_dseg\.nii\.gz: not on the grid of sub-01_T1w\.nii\.gz"
    ) as caught:
        load_cases(tissues, tissues.report)
    assert str(path) in str(caught.value)


def test_an_annotation_with_foreign_values_is_named(tissues: Settings) -> None:
    affine = phantoms.grid(8.0, "LAS", (24, 28, 24))
    path = tissues.labels["FAST"][0] / "sub-02" / "anat" / "sub-02_seg-FAST_dseg.nii.gz"
    phantoms.save(path, phantoms.head(affine, (24, 28, 24), phantoms.LABEL), affine)
    with pytest.raises(DataError, match=r"\[4\] are not in the protocol FAST") as caught:
        load_cases(tissues, tissues.report)
    assert str(path) in str(caught.value)


def test_nothing_to_learn_from(tissues: Settings, tmp_path: Path) -> None:
    other = replace(tissues, labels={"FreeSurfer": tissues.labels["FAST"]})
    with pytest.raises(NothingSelected, match=r"/fast \(seg-FreeSurfer_dseg or label-FreeSurfer_mask\)"):
        load_cases(other, other.report)
    lost = replace(tissues, labels={"FAST": [tmp_path / "lost"]})
    with pytest.raises(InputMissing, match="lost"):
        load_cases(lost, lost.report)


@pytest.fixture
def lesions(tissues: Settings, tmp_path: Path) -> Settings:
    """A dataset with only the lesions of one participant."""
    affine = phantoms.grid(8.0, "LAS", (24, 28, 24))
    values = (phantoms.head(affine, (24, 28, 24), phantoms.LABEL) == 4).astype(np.uint8)
    phantoms.save(tmp_path / "manual" / "sub-01" / "anat" / "sub-01_label-lesion_mask.nii.gz", values, affine)
    return replace(tissues, labels={"lesion": [tmp_path / "manual"]})


def test_the_brain_of_a_stripped_scan_with_lesions_alone_is_what_is_left_of_it(lesions: Settings) -> None:
    affine = np.diag([0.5, 0.5, 0.5, 1]) @ phantoms.grid(8.0, "LAS", (24, 28, 24))
    values = phantoms.head(2 * affine, (24, 28, 24), phantoms.LABEL)
    anat = lesions.bids_dir / "sub-01" / "anat"
    phantoms.save(anat / "sub-01_T1w.nii.gz", values.astype(np.int16) * 100, affine)
    mask = lesions.labels["lesion"][0] / "sub-01" / "anat" / "sub-01_label-lesion_mask.nii.gz"
    phantoms.save(mask, (values == 4).astype(np.uint8), affine)
    (found,) = load_cases(lesions, lesions.report)
    assert found.image is not None
    assert torch.equal(found.brain, found.image[0] != 0)
    assert 1 < found.brain.sum().item() / (64 * (values > 0).sum()) < 1.3  # 4 mm voxels are interpolated
    assert [a.protocol.name for a in found.annotations] == ["lesion", "brain"]
    assert torch.equal(found.annotations[1].values > 0, found.brain)


@pytest.mark.parametrize("empty, litres, stripped", [(0.8, 1.3, True), (0.6, 2.5, False), (0.1, 1.3, False)])
def test_a_head_without_air_is_not_taken_for_a_brain(empty: float, litres: float, stripped: bool) -> None:
    image = torch.zeros(round(litres * 1e6 / (1 - empty)))
    image[: round(litres * 1e6)] = 1
    assert is_stripped(image) == stripped


def test_the_locator_finds_the_brain_of_a_head_with_lesions_alone(
    lesions: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find(images: dict[str, Volume], model: object, engine: object) -> Brain:
        grid = whole_grid(images["T1w"], 4.0)
        half = torch.arange(grid.shape[0]) < grid.shape[0] // 2
        return Brain(grid, torch.ones(grid.shape) * half[:, None, None])

    monkeypatch.setattr(case_reading, "find_brain", find)
    (found,) = load_cases(lesions, lesions.report)
    half = len(found.brain) // 2
    assert found.brain[: half - 4].all() and not found.brain[half + 4 :].any()


@pytest.mark.parametrize(("suffix", "named"), [("T1w", "locator"), ("UNIT1", "locator"), ("T2w", "openlocator")])
def test_the_brain_is_found_by_the_locator_for_the_contrast(
    lesions: Settings, monkeypatch: pytest.MonkeyPatch, suffix: str, named: str
) -> None:
    used: list[str] = []

    def find(images: dict[str, Volume], model: Model, engine: object) -> Brain:
        used.append(model.card.name)
        grid = whole_grid(images["T1w"], 4.0)
        return Brain(grid, torch.ones(grid.shape))

    monkeypatch.setattr(case_reading, "find_brain", find)
    t1w = lesions.bids_dir / "sub-01" / "anat" / "sub-01_T1w.nii.gz"
    t1w.rename(t1w.with_name(f"sub-01_{suffix}.nii.gz"))
    given = replace(lesions, filters=lesions.queries(suffix))
    assert len(load_cases(given, given.report)) == 1
    assert used == [named]


def test_lesions_alone_do_not_say_where_the_brain_is(lesions: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def find(*_: object) -> None:
        raise DataError("no brain found in the image")

    monkeypatch.setattr(case_reading, "find_brain", find)
    with pytest.raises(DataError, match=r"my_data/sub-01: no brain found"):
        load_cases(lesions, lesions.report)
    (lesions.bids_dir / "sub-01" / "anat" / "sub-01_T1w.nii.gz").unlink()
    with pytest.raises(NothingSelected, match=r"no scan has an annotation"):
        load_cases(lesions, lesions.report)
