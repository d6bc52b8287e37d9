"""Ownership of an output folder: files of other tools and results of other datasets are never replaced."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import phantoms
import pytest
from fake_model import App, make_app, save_card
from trees import add_result

MASK = "sub-01/anat/sub-01_desc-brain_mask.nii.gz"
PREP = {"Name": "fMRIPrep", "BIDSVersion": "1.4.0", "DatasetType": "derivative"}


@pytest.fixture
def trainer(app: App, monkeypatch: pytest.MonkeyPatch) -> App:
    """An app with the real modules, which the level train imports."""
    for name in app.fake.modules():
        monkeypatch.delitem(sys.modules, name)
    return app


@pytest.fixture
def app(tmp_path: Path, make_bids: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> App:
    return make_app(tmp_path, make_bids(), monkeypatch)


def run(app: App, *words: str, level: str = "participant") -> int:
    return app("--skip-bids-validation", "--n-cpus", "1", *words, level=level)


def write(app: App, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = app.output / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def other_dataset(app: App, place: Path, seed: int = 50, name: str = "Synthetic heads") -> Path:
    """A dataset with the same labels but other images."""
    phantoms.make_bids(place)
    (place / "dataset_description.json").write_text(json.dumps({"Name": name, "BIDSVersion": "1.10.0"}))
    for number, path in enumerate(sorted(place.rglob("*_T1w.nii.gz"))):
        phantoms.save(path, phantoms.noisy_head(phantoms.grid(), seed=seed + number), phantoms.grid())
    return place


def as_written_by_0_9(app: App) -> None:
    """Convert the manifests to those of version 0.9.0, which did not list planned scans."""
    for path in (app.output / "logs").glob("run-*.json"):
        content = json.loads(path.read_text())
        del content["planned"]
        path.write_text(json.dumps(content))


# -- other tools -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["participant", "group"])
@pytest.mark.parametrize(
    "naming",
    [
        {"GeneratedBy": [{"Name": "fMRIPrep", "Version": "23.2"}]},
        {"GeneratedBy": {"Name": "fMRIPrep"}},
        {"PipelineDescription": {"Name": "fMRIPrep"}},
    ],
)
def test_the_folder_of_another_tool(
    naming: dict[str, object], level: str, app: App, capsys: pytest.CaptureFixture[str]
) -> None:
    write(app, {"dataset_description.json": json.dumps(PREP | naming), "sub-01.html": "theirs", MASK: "theirs"})
    add_result(app.output, {"subject": "01"})
    before = app.files("**/*")
    assert run(app, level=level) == 73
    assert "fMRIPrep: choose another OUTPUT_DIR" in capsys.readouterr().err
    assert app.files("**/*") == before


@pytest.mark.parametrize("name", [MASK, "sub-01.html", "README.md", ".bidsignore", "descriptions.tsv"])
@pytest.mark.parametrize("level", ["before", "beside"])
def test_files_that_no_record_claims(name: str, level: str, app: App, capsys: pytest.CaptureFixture[str]) -> None:
    if level == "beside":
        assert run(app, "--participant-label", "02") == 0
        if name not in (MASK, "sub-01.html"):
            return
    write(app, {name: "theirs"})
    before = app.files("**/*")
    assert run(app) == 73
    err = capsys.readouterr().err
    assert name in err and "choose another OUTPUT_DIR" in err
    assert app.files("**/*") == before


def test_a_sidecar_of_another_tool_beside_own_results(app: App) -> None:
    assert run(app) == 0
    write(app, {MASK.replace(".nii.gz", ".json"): '{"Type": "Brain", "RawSources": ["sub-01_T1w.nii.gz"]}'})
    assert run(app, "--overwrite") == 73


def test_files_of_others_beside_own_results(app: App, capsys: pytest.CaptureFixture[str]) -> None:
    """A run claims files without a sidecar only with the name of its model, or the mask that all models share."""
    assert run(app) == 0
    other = save_card(app.card.parent / "other", name="other", heads=("FAST",))
    own, theirs = (f"sub-01/anat/sub-01_seg-FAST_desc-{name}_dseg.nii.gz" for name in ("wholebrain", "other"))
    for name in (own, MASK):
        (app.output / name.replace(".nii.gz", ".json")).unlink()
    write(app, {theirs: "theirs"})
    before = app.files()
    assert app("--skip-bids-validation", model=other) == 73
    assert f"{theirs} exists" in capsys.readouterr().err and app.files() == before
    assert run(app) == 0
    (app.output / theirs).unlink()
    assert app("--skip-bids-validation", model=other) == 0
    (app.output / theirs.replace(".nii.gz", ".json")).unlink()
    assert app("--skip-bids-validation", model=other) == 0


@pytest.mark.parametrize("name", ["group.html", "group_seg-FAST_desc-wholebrain_morph.tsv"])
def test_tables_and_pages_of_another_cohort_tool(name: str, app: App) -> None:
    assert run(app) == 0
    write(app, {name: "theirs\n"})
    assert run(app, level="group") == 73
    (app.output / name).unlink()
    assert run(app, level="group") == 0
    assert run(app, level="group") == 0


def test_group_leaves_pages_of_others_alone(app: App) -> None:
    for number in range(1, 14):
        add_result(app.output, {"subject": f"{number:02}"}, grey_voxels=30 + number)
        write(app, {f"sub-{number:02}.html": "theirs"})
    assert run(app, level="group") == 0
    assert {(app.output / f"sub-{number:02}.html").read_text() for number in range(1, 14)} == {"theirs"}


@pytest.mark.parametrize(
    "content", ["{", '{"GeneratedBy": []}', "[]", '{"GeneratedBy": 3, "DatasetType": "derivative"}']
)
def test_a_description_that_does_not_name_this_program(content: str, app: App) -> None:
    write(app, {"dataset_description.json": content})
    assert run(app) in (64, 73)
    assert app.files("**/*") == {"dataset_description.json": content.encode()}


def test_a_description_as_spreadsheets_save_it_is_read(app: App) -> None:
    assert run(app) == 0
    path = app.output / "dataset_description.json"
    path.write_text(path.read_text(), encoding="utf-16")
    assert run(app) == 0


def test_a_description_that_leads_nowhere_is_refused(app: App, capsys: pytest.CaptureFixture[str]) -> None:
    app.output.mkdir()
    (app.output / "dataset_description.json").symlink_to("gone")
    assert run(app) == 73
    assert "dataset_description.json" in capsys.readouterr().err


def test_a_description_that_cannot_be_decoded_is_named(app: App, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(app) == 0
    path = app.output / "dataset_description.json"
    path.write_bytes(path.read_bytes().replace(b"Synthetic", b"Synth\xe9tic"))
    assert run(app) == 73
    assert str(path) in capsys.readouterr().err


def test_additions_of_users_to_top_level_files_are_kept(app: App) -> None:
    assert run(app) == 0
    path = app.output / "dataset_description.json"
    content = json.loads(path.read_text())
    content |= {"Authors": ["Ada"], "GeneratedBy": [*content["GeneratedBy"], {"Name": "mriqc"}]}
    path.write_text("\ufeff" + json.dumps(content))
    write(app, {"README.md": "My own words.\n", ".bidsignore": "mine\n"})
    assert run(app, "--overwrite") == 0
    content = json.loads(path.read_text())
    assert content["Authors"] == ["Ada"]
    assert [tool["Name"] for tool in content["GeneratedBy"]] == ["bidsseg", "mriqc"]
    assert (app.output / "README.md").read_text() == "My own words.\n"
    assert (app.output / ".bidsignore").read_text().splitlines()[:2] == ["mine", "*.html"]


@pytest.mark.parametrize("lost", ["", "logs", "dataset_description.json", "sidecars"])
def test_own_results_are_recognised(lost: str, app: App) -> None:
    """Results of 0.9.0 are recognised too, although their manifests do not list planned scans."""
    assert run(app) == 0
    as_written_by_0_9(app)
    match lost:
        case "sidecars":  # as a killed run leaves them
            for path in app.output.glob("sub-*/anat/*.json"):
                path.unlink()
        case "logs":
            shutil.rmtree(app.output / "logs")
        case "dataset_description.json":
            (app.output / lost).unlink()
    assert run(app, "--overwrite") == 0
    assert app.fake.segmented == 4


def test_results_of_a_killed_run_are_recognised(app: App) -> None:
    assert run(app) == 0
    for path in app.output.glob("sub-*/anat/*.json"):
        path.unlink()
    assert run(app) == 0
    assert app.fake.segmented == 4


@pytest.mark.parametrize(
    ("name", "content", "hint"),
    [
        ("dataset_description.json", json.dumps(PREP | {"GeneratedBy": [{"Name": "fMRIPrep"}]}), "fMRIPrep"),
        ("models/wholebrain/weights.safetensors", "theirs", "weights.safetensors exists"),
    ],
)
def test_training_among_files_of_others(
    name: str, content: str, hint: str, trainer: App, capsys: pytest.CaptureFixture[str]
) -> None:
    write(trainer, {name: content})
    assert run(trainer, "--labels", f"FAST={trainer.bids}", "--overwrite", level="train") == 73
    assert hint in capsys.readouterr().err
    assert trainer.files("**/*") == {name: content.encode()}


# -- other datasets ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["participant", "group"])
def test_another_dataset_with_the_same_labels(
    level: str, app: App, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(app) == 0
    first, app.bids = app.bids, other_dataset(app, tmp_path / "other")
    before = app.files("**/*")
    for words in ([], ["--overwrite"], ["--dry-run"]):
        assert run(app, *words, level=level) == 73
        err = capsys.readouterr().err
        assert str(first) in err and str(app.bids) in err and "choose another OUTPUT_DIR" in err
    assert app.files("**/*") == before


def test_another_dataset_with_other_labels_and_name(app: App, tmp_path: Path) -> None:
    assert run(app) == 0
    app.bids = other_dataset(app, tmp_path / "other", name="Others")
    for label in ("01", "02"):
        shutil.rmtree(app.bids / f"sub-{label}")
    phantoms.save(
        app.bids / "sub-77/anat/sub-77_T1w.nii.gz", phantoms.noisy_head(phantoms.grid(), seed=7), phantoms.grid()
    )
    assert run(app) == 73


def test_a_dataset_that_was_moved_and_renamed(app: App, tmp_path: Path) -> None:
    assert run(app) == 0
    app.bids = app.bids.rename(tmp_path / "elsewhere")
    (app.bids / "dataset_description.json").write_text('{"Name": "Renamed", "BIDSVersion": "1.10.0"}')
    assert run(app) == 0
    assert app.fake.segmented == 2
    source = json.loads((app.output / "dataset_description.json").read_text())["SourceDatasets"][0]["URL"]
    assert source == app.bids.resolve().as_uri()


def test_a_part_of_the_dataset_at_another_place(app: App, tmp_path: Path) -> None:
    """Jobs may copy a part of the dataset to a local disk."""
    parts = []
    for label, other in (("01", "02"), ("02", "01")):
        parts.append(shutil.copytree(app.bids, tmp_path / label))
        shutil.rmtree(parts[-1] / f"sub-{other}")
    for app.bids in parts:
        assert run(app) == 0
    assert app.fake.segmented == 2


def test_another_dataset_at_the_same_mount_point(app: App, capsys: pytest.CaptureFixture[str]) -> None:
    """In a container every dataset is /bids, and many have the name of a template."""
    assert run(app) == 0
    shutil.rmtree(app.bids)
    other_dataset(app, app.bids)
    assert run(app) == 73
    assert "or give --overwrite" in capsys.readouterr().err
    other_dataset(app, app.bids, name="Others")
    assert run(app, "--overwrite") == 73
    other_dataset(app, app.bids)
    assert run(app, "--overwrite") == 0


def test_one_image_that_was_replaced_is_no_other_dataset(app: App) -> None:
    assert run(app, "--participant-label", "01") == 0
    other_dataset(app, app.bids)
    assert run(app, "--participant-label", "01") == 0
    assert app.fake.segmented == 2


def test_further_masks_of_an_image_are_no_further_images(app: App, tmp_path: Path) -> None:
    grid, drawn = phantoms.grid(), tmp_path / "drawn"
    mask = (phantoms.head(grid, phantoms.SHAPE, phantoms.LABEL) == 4).astype("uint8")
    phantoms.save(drawn / "sub-01/anat/sub-01_label-lesion_mask.nii.gz", mask, grid)
    words = ["--participant-label", "01", "--lesions", str(drawn)]
    assert run(app, *words) == 0
    assert (app.output / "sub-01/anat/sub-01_label-lesion_desc-wholebrain_mask.json").is_file()
    other_dataset(app, app.bids)
    in_space = app.output / MASK.replace("_desc", "_space-MNI_res-2_desc").replace(".nii.gz", ".json")
    shutil.copy(app.output / MASK.replace(".nii.gz", ".json"), in_space)
    assert run(app, *words) == 0
    assert app.fake.segmented == 2


def test_a_doi_identifies_a_dataset_better_than_its_name(app: App, tmp_path: Path) -> None:
    path = app.bids / "dataset_description.json"
    path.write_text('{"Name": "One", "BIDSVersion": "1.10.0", "DatasetDOI": "doi:10.1/2"}')
    assert run(app, "--participant-label", "01") == 0
    app.bids = app.bids.rename(tmp_path / "new")
    shutil.rmtree(app.bids / "sub-01")
    path = app.bids / "dataset_description.json"
    path.write_text('{"Name": "One", "BIDSVersion": "1.10.0", "DatasetDOI": "doi:10.1/3"}')
    assert run(app) == 73
    path.write_text('{"Name": "Two", "BIDSVersion": "1.10.0", "DatasetDOI": "doi:10.1/2"}')
    assert run(app) == 0


def test_two_models_of_one_dataset(app: App) -> None:
    assert run(app) == 0
    other = save_card(app.card.parent / "other", name="other", heads=("FAST",))
    assert app("--skip-bids-validation", model=other) == 0
