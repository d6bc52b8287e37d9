"""Label maps of any derivative: which files are taken, and which regions they show."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from bids_trees import make_tree

from bidsseg.bids.annotations import find_annotations
from bidsseg.bids.query import find_scans
from bidsseg.errors import DataError, UsageError
from bidsseg.labels import Protocol, load_protocol
from bidsseg.learning.label_sources import LabelSource, label_sources
from bidsseg.learning.own_heads import with_own_heads
from bidsseg.learning.recipe import load_recipe

OWN = "index\tname\n0\tBackground\n1\tLeft-Claustrum\n2\tRight-Claustrum\n"
ASEG = "index\tname\tcolor\n0\tUnknown\t#000000\n10\tLeft-Thalamus-Proper\t#00760e\n49\tRight-Thalamus\t#00760e\n"
LOST = "3001\twm-lh-bankssts\t#123456\n"


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Label maps ``desc-manual`` of two participants, with a table at the root of the derivative."""
    folder = make_tree(tmp_path / "manual", "sub-01_desc-manual_dseg.nii.gz", "sub-02_desc-manual_dseg.nii.gz")
    (folder / "desc-manual_dseg.tsv").write_text(OWN)
    return folder


@pytest.fixture
def fmriprep(tmp_path: Path) -> Path:
    """Label maps as fMRIPrep writes them, with the tables at the root."""
    names = ("desc-aparcaseg_dseg", "desc-aseg_dseg", "dseg", "desc-brain_mask", "space-MNI152_dseg")
    folder = make_tree(tmp_path / "fmriprep", *(f"sub-01_{name}.nii.gz" for name in names))
    (folder / "desc-aseg_dseg.tsv").write_text(ASEG)
    (folder / "desc-aparcaseg_dseg.tsv").write_text(ASEG + "1028\tctx-lh-superiorfrontal\t#14dca0\n" + LOST)
    return folder


def source(folder: Path, name: str = "") -> LabelSource:
    """Return the label maps of an entry ``NAME=DIR``, or of ``DIR`` alone."""
    (found,) = label_sources({name: [folder]})
    return found


def test_a_derivative_needs_no_name(own: Path) -> None:
    found = source(own)
    assert (found.protocol.name, str(found.wanted)) == ("manual", "desc-manual_dseg")
    assert [region.name for region in found.protocol.regions] == ["Background", "Left-Claustrum", "Right-Claustrum"]
    assert [label_map.key for label_map in found.label_maps()] == ["sub-01", "sub-02"]
    assert source(own, "Claustrum").protocol == Protocol("Claustrum", found.protocol.regions)


@pytest.mark.parametrize("entity, name", [("seg-Mine_dseg", "Mine"), ("atlas-Mine_dseg", "Mine"), ("dseg", "myfolder")])
def test_the_name_is_that_of_the_files_or_of_the_folder(tmp_path: Path, entity: str, name: str) -> None:
    folder = make_tree(tmp_path / "my_folder", f"sub-01_ses-1_{entity}.nii.gz")
    (folder / f"{entity}.tsv").write_text(OWN)
    assert source(folder).protocol.name == name


def test_a_table_beside_the_maps_comes_before_that_at_the_root(own: Path) -> None:
    for number in (1, 2):
        place = own / f"sub-0{number}" / "anat" / f"sub-0{number}_desc-manual_dseg.tsv"
        place.write_text(OWN.replace("Claustrum", "Caudate"))
    assert source(own).protocol.regions[1].name == "Left-Caudate"
    place.write_text(OWN)
    with pytest.raises(DataError, match="name different regions"):
        source(own)


def test_a_missing_table_is_named(own: Path) -> None:
    (own / "desc-manual_dseg.tsv").unlink()
    with pytest.raises(DataError, match=rf"write {own}/desc-manual_dseg\.tsv with the columns index and name"):
        source(own)


@pytest.mark.parametrize("separator", ["\t", ",", ";"])
def test_tables_of_spreadsheets_are_read(own: Path, separator: str) -> None:
    rows = ["Index|Name|color", "1.0|Left-Claustrum|", "2.0|Right-Claustrum|", "||"]
    text = "\ufeff" + "\r\n".join(rows).replace("|", separator)
    (own / "desc-manual_dseg.tsv").write_text(text, encoding="utf-8")
    found = source(own)
    assert found.protocol.indices == (0, 1, 2)
    assert any("the value 0 was added" in note for note in found.notes)
    assert any("indices such as 1.0 are read as integers" in note for note in found.notes)
    assert any("separated by" in note for note in found.notes) == (separator != "\t")


def test_several_kinds_are_listed_to_choose_from(fmriprep: Path) -> None:
    with pytest.raises(UsageError) as caught:
        source(fmriprep)
    assert "(desc-aparcaseg_dseg, desc-aseg_dseg, dseg): choose one, e.g. --labels aparcaseg=" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_label_maps_of_fmriprep(fmriprep: Path, tmp_path: Path) -> None:
    aseg = source(fmriprep, "aseg")
    assert aseg.protocol == load_protocol("aseg")
    (scan,) = find_scans(make_tree(tmp_path / "bids", "sub-01_T1w.nii.gz"))
    assert [path.name for path in aseg.find(scan, [scan])] == ["sub-01_desc-aseg_dseg.nii.gz"]
    for name in ("aparcaseg", "DesikanKilliany"):
        cortex = source(fmriprep, name)
        assert str(cortex.wanted) == "desc-aparcaseg_dseg"
    cortex = source(fmriprep, "aparcaseg")
    assert cortex.protocol.scored() == load_protocol("DesikanKilliany").scored()
    assert cortex.protocol.region(3001).scored is False
    assert source(fmriprep, "brain").wanted == "brain"


def test_a_name_stands_for_one_protocol(fmriprep: Path, own: Path, tmp_path: Path) -> None:
    first, second = label_sources({"aparcaseg": [fmriprep], "DesikanKilliany": [fmriprep]})
    assert first.protocol == second.protocol and 3001 in first.protocol.indices
    other = make_tree(tmp_path / "other", "sub-03_desc-manual_dseg.nii.gz")
    (other / "desc-manual_dseg.tsv").write_text(OWN)
    assert len(label_sources({"": [own, other]})) == 2
    (other / "desc-manual_dseg.tsv").write_text(OWN.replace("Claustrum", "Caudate"))
    with pytest.raises(UsageError, match="the same name, manual, with other regions"):
        label_sources({"": [own, other]})


def test_a_shipped_protocol_takes_no_labels_of_another(fmriprep: Path) -> None:
    for path in (fmriprep / "sub-01" / "anat").glob("*_dseg.nii.gz"):
        if "aparcaseg" not in path.name:
            path.unlink()
    assert source(fmriprep, "lesion").wanted == "lesion"


@pytest.mark.parametrize("name", ["FAST", "Atropos"])
def test_tissues_in_the_order_of_bids_are_no_labels_of_fsl(tmp_path: Path, name: str) -> None:
    folder = make_tree(tmp_path / "fmriprep", "sub-01_dseg.nii.gz", "sub-01_desc-brain_mask.nii.gz")
    with pytest.raises(
        DataError, match=rf"write {folder}/dseg\.tsv .*1, 2, 3 are GM, WM, CSF in BIDS, not as in {name}"
    ):
        source(folder, name)
    tissues = load_protocol(name).regions[1:4]
    (folder / "dseg.tsv").write_text("index\tname\n" + "".join(f"{each.index}\t{each.name}\n" for each in tissues))
    assert source(folder, name).protocol.name == name


def test_a_table_that_contradicts_the_shipped_protocol_is_refused(fmriprep: Path) -> None:
    (fmriprep / "desc-aseg_dseg.tsv").write_text(OWN.replace("1\t", "10\t").replace("2\t", "49\t"))
    with pytest.raises(DataError, match=r"10 is 'Left-Claustrum', but 'Left Thalamus' in the shipped protocol aseg"):
        source(fmriprep, "aseg")


@pytest.fixture
def subjects_dir(tmp_path: Path) -> Path:
    """Folders of FreeSurfer, one of them with the files of FastSurfer."""
    volumes = {
        "sub-01": ("aseg", "aparc+aseg", "aparc.DKTatlas+aseg.deep"),
        "sub-02_ses-1": ("aseg", "aparc+aseg", "aparc.DKTatlas+aseg"),
        "fsaverage": ("aseg", "aparc+aseg"),
    }
    for name, files in volumes.items():
        (tmp_path / "recons" / name / "mri").mkdir(parents=True)
        for file in files:
            (tmp_path / "recons" / name / "mri" / f"{file}.mgz").touch()
    return tmp_path / "recons"


def test_a_subjects_dir_is_a_derivative(subjects_dir: Path, tmp_path: Path) -> None:
    scans = find_scans(make_tree(tmp_path / "bids", "sub-01_T1w.nii.gz", "sub-02_ses-1_T1w.nii.gz"))
    names = {"aseg": "aseg", "DK": "DesikanKilliany", "DKT": "DKT"}
    found = {name: source(subjects_dir, name) for name in names}
    assert {name: each.protocol for name, each in found.items()} == {n: load_protocol(p) for n, p in names.items()}
    files = [path.relative_to(subjects_dir).as_posix() for scan in scans for path in found["DKT"].find(scan, scans)]
    assert files == ["sub-01/mri/aparc.DKTatlas+aseg.deep.mgz", "sub-02_ses-1/mri/aparc.DKTatlas+aseg.mgz"]
    assert [each.key for each in found["aseg"].label_maps()] == ["sub-01", "sub-02_ses-1"]
    with pytest.raises(UsageError, match=r"choose --labels aseg=.* or DesikanKilliany=.* or DKT="):
        source(subjects_dir)


def test_a_folder_of_freesurfer_belongs_to_one_scan(subjects_dir: Path, tmp_path: Path) -> None:
    once = find_scans(make_tree(tmp_path / "once", "sub-01_ses-1_run-1_T1w.nii.gz"))
    twice = find_scans(make_tree(tmp_path / "twice", "sub-01_ses-1_T1w.nii.gz", "sub-01_ses-2_T1w.nii.gz"))
    found = source(subjects_dir, "aseg")
    assert len(found.find(once[0], once)) == 1
    assert [found.find(scan, twice) for scan in twice] == [[], []]
    runs = find_scans(make_tree(tmp_path / "runs", "sub-03_run-01_T1w.nii.gz", "sub-03_run-10_T1w.nii.gz"))
    (subjects_dir / "sub-02_ses-1").rename(subjects_dir / "sub-03_run-1")
    assert [len(found.find(scan, runs)) for scan in runs] == [1, 0], "zeros before the number do not matter"


def test_a_mask_needs_no_table(tmp_path: Path) -> None:
    folder = make_tree(tmp_path / "masks", "sub-01_label-WMH_mask.nii.gz", "sub-01_desc-brain_mask.nii.gz")
    found = source(folder)
    assert [(region.index, region.name) for region in found.protocol.regions] == [(0, "Background"), (1, "WMH")]
    lesions = source(folder, "lesion")
    assert lesions.protocol == load_protocol("lesion") and str(lesions.wanted) == "label-WMH_mask"
    assert "takes the files *_label-WMH_mask" in lesions.notes[0]


def test_a_label_map_of_freesurfer_in_a_bids_derivative(tmp_path: Path) -> None:
    folder = make_tree(tmp_path / "labels", "sub-01_seg-FAST_dseg.mgz")
    (scan,) = find_scans(make_tree(tmp_path / "bids", "sub-01_T1w.nii.gz"))
    assert find_annotations(folder, scan, "FAST") == folder / "sub-01" / "anat" / "sub-01_seg-FAST_dseg.mgz"


def test_a_folder_without_label_maps_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no label maps"):
        source(make_tree(tmp_path, "sub-01_T1w.nii.gz"))


Heads = Callable[..., Sequence[str]]


@pytest.fixture
def heads() -> Heads:
    """Return a function for the heads of a recipe for labels of some protocols."""

    def names(*labels: Protocol, recipe: str = "wholebrain", is_file: bool = False) -> Sequence[str]:
        base = load_recipe(recipe)
        adapted, protocols = with_own_heads(base, [load_protocol(n) for n in base.heads], labels, is_file=is_file)
        assert list(adapted.heads) == [protocol.name for protocol in protocols]
        assert (adapted == base) == (set(adapted.heads) == set(base.heads))
        return list(adapted.heads)

    return names


def part_of_braincolor() -> Protocol:
    table = load_protocol("BrainCOLOR")
    return Protocol("Part", tuple(region for region in table.regions if region.index in (0, 47, 48)))


def test_an_unknown_protocol_becomes_a_head(own: Path, heads: Heads) -> None:
    manual = source(own).protocol
    assert heads(manual) == ["brain", "manual"]
    assert heads(manual, load_protocol("FAST")) == ["FAST", "brain", "manual"]
    assert heads(manual, is_file=True) == ["BrainCOLOR", "FAST", "FreeSurfer", "brain", "manual"]
    assert heads(load_protocol("aseg")) == ["brain", "aseg"]
    assert heads(load_protocol("lesion")) == ["brain", "lesion"]


def test_labels_of_a_part_of_a_head_are_further_labels_of_it(heads: Heads) -> None:
    whole = ["BrainCOLOR", "FAST", "FreeSurfer", "brain"]
    part = part_of_braincolor()
    assert heads(part) == ["brain", "Part"]
    assert heads(part, load_protocol("BrainCOLOR")) == whole
    assert heads(part, is_file=True) == whole
    assert heads(load_protocol("DKT"), load_protocol("BrainCOLOR")) == whole
    assert heads(load_protocol("head")) == heads(load_protocol("FAST")) == whole


def test_the_model_is_named_after_its_own_protocol(own: Path) -> None:
    base = load_recipe("wholebrain", small=True)
    adapted, _ = with_own_heads(base, [], [source(own).protocol], is_file=False)
    assert (adapted.name, adapted.title, adapted.licence) == ("manual", "manual from a T1w", "unknown")
