"""The reference of the level evaluate: any label derivative, in a protocol with a shipped table or an own one."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import phantoms
import pytest
from fake_model import save_card
from label_maps import AFFINE, add_map, blobs, save
from recording_console import RecordingConsole

from bidsseg.errors import DataError, InputMissing, UsageError
from bidsseg.evaluation.agreement import dice
from bidsseg.evaluation.conversion import conversion, converted
from bidsseg.labels import Protocol, Region, load_protocol
from bidsseg.levels.evaluate import evaluate_level
from bidsseg.settings import Evaluation, Settings

OWN = "index\tname\n5\tWhite Matter\n9\tGray Matter\n"
"""Two regions of FAST, with other values."""
VALUES = np.array([0, 0, 9, 5], np.uint8)
"""Values in this table of the regions of FAST."""


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """An output folder with one label map in FAST of the model ``good``."""
    add_map(tmp_path / "out", {"subject": "01"}, blobs(1, regions=3))
    return tmp_path / "out"


@pytest.fixture
def manual(tmp_path: Path) -> Path:
    """A derivative dataset with one label map in a protocol of its own, and the table."""
    folder = tmp_path / "manual"
    save(folder / "sub-01" / "anat" / "sub-01_desc-mine_dseg.nii.gz", VALUES[blobs(2, regions=3)])
    (folder / "desc-mine_dseg.tsv").write_text(OWN)
    return folder


@pytest.fixture
def model(tmp_path: Path) -> str:
    """The folder of the model ``good`` with the head FAST."""
    return str(save_card(tmp_path / "model", name="good", heads=("FAST",)))


def evaluated(output: Path, manual: Path, *, model: str, name: str = "", **options: Path) -> RecordingConsole:
    """Run the level with a bare ``--labels``."""
    bids, console = output.parent / "bids", RecordingConsole()
    bids.mkdir(exist_ok=True)
    evaluation = Evaluation(**options)  # type: ignore[arg-type]
    labels = {name: [manual]}
    evaluate_level(Settings(bids, output, model=model, n_cpus=1, labels=labels, evaluation=evaluation, report=console))
    return console


def test_a_model_is_compared_by_the_names_of_regions(output: Path, manual: Path, model: str) -> None:
    console = evaluated(output, manual, model=model)
    table = pd.read_csv(output / "group_seg-mine_desc-good_ref-manual_agreement.tsv", sep="\t")
    assert table.name.tolist() == ["White Matter", "Gray Matter"] and table["index"].tolist() == [5, 9]
    expected = dice(VALUES[blobs(1, regions=3)], VALUES[blobs(2, regions=3)], [5, 9])
    np.testing.assert_allclose(table.dice, expected, rtol=1e-4)
    assert "mine: compared with label maps of FAST, converted to its regions" in console.messages
    page = (output / "group_seg-mine_desc-good_ref-manual_agreement.html").read_text()
    assert "converted to the regions of mine" in page


def test_a_reference_of_other_regions_is_refused_in_one_line(output: Path, manual: Path, model: str) -> None:
    (manual / "desc-mine_dseg.tsv").write_text("index\tname\n5\tMy nucleus\n9\tMy tract\n")
    expected = r"--labels .*manual: the model good predicts no regions of mine \(it predicts FAST\): name the regions"
    with pytest.raises(UsageError, match=expected):
        evaluated(output, manual, model=model)


def test_two_raters_of_an_own_protocol(output: Path, manual: Path, tmp_path: Path) -> None:
    second = shutil.copytree(manual, tmp_path / "second")
    evaluated(output, manual, model="wholebrain", against=second)
    table = pd.read_csv(output / "group_seg-mine_desc-second_ref-manual_agreement.tsv", sep="\t")
    assert (table.dice == 1).all() and len(table) == 2
    (second / "desc-mine_dseg.tsv").rename(second / "desc-other_dseg.tsv")
    (path,) = second.glob("sub-01/anat/*_dseg.nii.gz")
    path.rename(path.with_name("sub-01_desc-other_dseg.nii.gz"))
    console = evaluated(tmp_path / "fresh", manual, model="wholebrain", against=second)
    assert any("mean Dice 1.000" in message for message in console.messages)
    with pytest.raises(InputMissing, match=r"--against: .*tables has no label map of mine"):
        (tmp_path / "tables").mkdir()
        evaluated(output, manual, model="wholebrain", against=tmp_path / "tables")


def test_a_folder_with_several_kinds_lists_them(output: Path, manual: Path, model: str) -> None:
    save(manual / "sub-01" / "anat" / "sub-01_desc-other_dseg.nii.gz", VALUES[blobs(2, regions=3)])
    with pytest.raises(UsageError, match=r"several kinds of label maps \(desc-mine_dseg, desc-other_dseg\)"):
        evaluated(output, manual, model=model)
    evaluated(output, manual, model=model, name="mine")


@pytest.mark.parametrize(
    "kind, values, remark",
    [
        ("mask", np.array([0, 255], np.uint8), "the value 255 of the mask is read as 1"),
        ("mask", np.array([0.2, 0.8], np.float32), "probabilities of at least 0.5 are read as labels"),
        ("probseg", np.array([0.2, 0.8], np.float32), "probabilities of at least 0.5 are read as labels"),
    ],
)
def test_masks_are_read_as_in_training(tmp_path: Path, kind: str, values: np.ndarray, remark: str) -> None:
    core, plain, other = blobs(1, regions=1), tmp_path / "plain", tmp_path / "other"
    save(plain / "sub-01" / "anat" / "sub-01_label-core_mask.nii.gz", core)
    phantoms.save(other / "sub-01" / "anat" / f"sub-01_label-core_{kind}.nii.gz", values[core], AFFINE)
    for against, labels in ((plain, other), (other, plain)):
        console = evaluated(tmp_path / "out", labels, model="good", name="core", against=against)
        assert sum(remark in message for message in console.messages) == 1
        stem = f"group_seg-core_desc-{against.name}_ref-{labels.name}_agreement"
        assert pd.read_csv(tmp_path / "out" / f"{stem}.tsv", sep="\t").dice.tolist() == [1]


def test_the_labels_of_freesurfer_are_refused_in_one_line(output: Path, tmp_path: Path, model: str) -> None:
    recon = tmp_path / "freesurfer" / "sub-01" / "mri" / "aseg.mgz"
    recon.parent.mkdir(parents=True)
    recon.touch()
    with pytest.raises(UsageError, match=r"aseg=.*freesurfer: evaluate compares label maps on the grid of the T1w"):
        evaluated(output, tmp_path / "freesurfer", model=model, name="aseg")


def test_conversion_of_values() -> None:
    fast, brain = load_protocol("FAST"), load_protocol("brain")
    assert conversion(fast, fast) == {}
    values = conversion(fast, brain)
    assert values == {0: 0, 1: 1, 2: 1, 3: 1}
    labels = np.array([[[0, 3, 2]]], np.uint8)
    assert converted(labels, values).tolist() == [[[0, 1, 1]]] and converted(labels, {}) is labels
    assert conversion(brain, fast) is None
    tract = Region(1, "My tract", "T", "#ff0000", None)
    assert conversion(fast, Protocol("tract", (fast.regions[0], tract))) is None
    assert conversion(fast, Protocol("nothing", fast.regions[:1])) is None
    with pytest.raises(DataError, match=r"has the values \[4\]"):
        converted(np.array([[[4]]]), values)
    assert converted(np.array([[[0, 2]]]), {0: 0, 2: 70001}).tolist() == [[[0, 70001]]]


@pytest.mark.parametrize("names", [("Left Hippocampus",), ()], ids=["some regions", "all regions"])
def test_given_lesions_are_background_for_a_reference_without_lesions(names: tuple[str, ...], tmp_path: Path) -> None:
    protocol = load_protocol("FreeSurfer").scored()
    regions = [region for region in protocol.regions if region.name in names or not names]
    found = np.full((8, 9, 10), 17, np.uint8)
    found[4:] = 77  # white matter hypointensities, which --lesions adds
    add_map(tmp_path / "out", {"subject": "01"}, found, kind="FreeSurfer")
    save(tmp_path / "manual" / "sub-01" / "anat" / "sub-01_desc-mine_dseg.nii.gz", np.full((8, 9, 10), 17, np.uint8))
    table = "".join(f"{region.index}\t{region.name}\n" for region in regions)
    (tmp_path / "manual" / "desc-mine_dseg.tsv").write_text(f"index\tname\n{table}")
    model = str(save_card(tmp_path / "model", name="good", heads=("FreeSurfer",)))
    evaluated(tmp_path / "out", tmp_path / "manual", model=model)
    rows = pd.read_csv(tmp_path / "out" / "group_seg-mine_desc-good_ref-manual_agreement.tsv", sep="\t")
    assert rows.set_index("index").dice[17] == pytest.approx(2 / 3)
