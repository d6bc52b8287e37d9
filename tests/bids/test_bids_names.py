"""File names: order, round trips, uniqueness, and agreement with pybids and the validator."""

import json
import subprocess
from pathlib import Path

import pytest
from bidsschematools.schema import load_schema
from hypothesis import given, settings
from hypothesis import strategies as st

from bidsseg.bids.names import build_name, entity_names, parse_name, with_extension
from bidsseg.bids.outputs import agreement_paths, group_report, group_table, output_paths, report_path
from bidsseg.bids.scan import Scan
from bidsseg.bids.validator import _program
from bidsseg.derivative.root import dataset_description, write_root_files
from bidsseg.derivative.sidecars import Origin, image_sidecar
from bidsseg.errors import UsageError
from bidsseg.files import write_json_atomic

T1W_ENTITIES = ("session", "acquisition", "ceagent", "reconstruction", "run", "echo", "part", "chunk")
"""Entities of a raw T1w besides its subject, with free labels or numbers."""

labels = st.text("abcXYZ0123456789+", min_size=1, max_size=6)
numbers = st.integers(0, 99).map(str) | st.integers(0, 99).map("{:02}".format)


@st.composite
def sources(draw: st.DrawFn) -> dict[str, str]:
    """Draw the entities of a T1w."""
    entities = {"subject": draw(labels)}
    for name in draw(st.sets(st.sampled_from(T1W_ENTITIES))):
        free = labels if name not in ("run", "echo", "chunk", "part") else numbers
        entities[name] = draw(st.sampled_from(["mag", "phase"]) if name == "part" else free)
    return entities


def scan_of(entities: dict[str, str]) -> Scan:
    return Scan(entities, Path(build_name(entities, "T1w", ".nii.gz")))


def outputs_of(entities: dict[str, str], model: str = "wholebrain") -> list[Path]:
    paths = output_paths(scan_of(entities), model, ["FAST", "BrainCOLOR"], probseg=True, entropy=True, lesion=True)
    return [*paths.files, *paths.figures.values()]


def test_order_of_entities_is_that_of_the_schema() -> None:
    schema = load_schema()
    ordered = [schema.objects.entities[name]["name"] for name in schema.rules.entities]
    written = [build_name({name: "1"}).split("-")[0] for name in entity_names()]
    assert written == [short for short in ordered if short in written]
    assert set(written) == set(ordered)


def test_entities_are_called_as_in_pybids() -> None:
    from bids.layout.models import Config

    known = {name for config in ("bids", "derivatives") for name in Config.load(config).entities}
    unknown_there = {"template", "cohort", "split", "scale"}
    assert set(entity_names()) - known == unknown_there


@given(sources(), labels, labels)
def test_names_can_be_read_back(source: dict[str, str], protocol: str, model: str) -> None:
    entities = {**source, "segmentation": protocol, "desc": model}
    name = build_name(entities, "dseg", ".nii.gz")
    assert parse_name(name) == (entities, "dseg", ".nii.gz")


@settings(deadline=None, max_examples=20)
@given(sources())
def test_pybids_reads_the_names_back(source: dict[str, str]) -> None:
    from bids.layout import parse_file_entities

    for path in outputs_of(source):
        found = parse_file_entities(f"/{path}", config=["bids", "derivatives"])
        parsed = parse_name(path.name)
        assert parsed is not None
        entities, suffix, extension = parsed
        assert {name: str(label) for name, label in found.items() if name in entities} == entities
        assert (found["suffix"], found["extension"]) == (suffix, extension)
        assert source.items() <= entities.items()


@given(sources())
def test_entities_stand_in_order(source: dict[str, str]) -> None:
    order = {name: rank for rank, name in enumerate(entity_names())}
    for path in outputs_of(source):
        parsed = parse_name(path.name)
        assert parsed is not None
        ranks = [order[name] for name in parsed[0]]
        assert ranks == sorted(ranks)


@given(sources(), sources())
def test_no_two_scans_share_an_output(one: dict[str, str], other: dict[str, str]) -> None:
    assert len(set(outputs_of(one))) == len(outputs_of(one))
    if one != other:
        assert not set(outputs_of(one)) & set(outputs_of(other))


@given(labels, labels)
def test_a_desc_of_the_source_is_kept(one: str, other: str) -> None:
    first = outputs_of({"subject": "01", "desc": one})
    assert parse_name(first[0].name)[0]["desc"] == f"{one}wholebrain"  # type: ignore[index]
    if one != other:
        assert not set(first) & set(outputs_of({"subject": "01", "desc": other}))


def test_the_usual_names() -> None:
    scan = scan_of({"subject": "01", "session": "1", "acquisition": "mprage", "run": "02"})
    paths = output_paths(scan, "wholebrain", ["FAST"], probseg=True, entropy=True, lesion=True)
    folder, stem = Path("sub-01/ses-1/anat"), "sub-01_ses-1_acq-mprage_run-02"
    assert paths.dseg["FAST"] == folder / f"{stem}_seg-FAST_desc-wholebrain_dseg.nii.gz"
    assert paths.morph["FAST"] == folder / f"{stem}_seg-FAST_desc-wholebrain_morph.tsv"
    assert paths.probseg["FAST"] == folder / f"{stem}_seg-FAST_desc-wholebrain_probseg.nii.gz"
    assert paths.entropy["FAST"] == folder / f"{stem}_seg-FAST_desc-wholebrainentropy_probseg.nii.gz"
    assert paths.brain == folder / f"{stem}_desc-brain_mask.nii.gz"
    assert paths.lesion == folder / f"{stem}_label-lesion_desc-wholebrain_mask.nii.gz"
    assert paths.figures["FAST"] == Path("sub-01/figures") / f"{stem}_seg-FAST_desc-wholebrain_dseg.png"
    assert paths.report == report_path(scan) == Path("sub-01_ses-1.html")
    assert with_extension(paths.dseg["FAST"], ".tsv") in paths.files
    assert group_table("wholebrain", "FAST") == Path("group_seg-FAST_desc-wholebrain_morph.tsv")


def test_names_of_the_tables_of_an_evaluation() -> None:
    paths = agreement_paths("FAST", "my model", "manual+rater_2")
    assert paths.table == Path("group_seg-FAST_desc-mymodel_ref-manual+rater2_agreement.tsv")
    assert paths.summary == Path("group_seg-FAST_desc-mymodel_ref-manual+rater2_summary.tsv")
    assert paths.page == paths.table.with_suffix(".html")


def test_only_what_is_asked_for() -> None:
    paths = output_paths(scan_of({"subject": "01"}), "wholebrain", ["FAST"])
    assert paths.lesion is None
    assert not paths.probseg and not paths.entropy
    assert sorted(path.name.removeprefix("sub-01_") for path in paths.files) == [
        "desc-brain_mask.json",
        "desc-brain_mask.nii.gz",
        "seg-FAST_desc-wholebrain_dseg.json",
        "seg-FAST_desc-wholebrain_dseg.nii.gz",
        "seg-FAST_desc-wholebrain_dseg.tsv",
        "seg-FAST_desc-wholebrain_morph.json",
        "seg-FAST_desc-wholebrain_morph.tsv",
    ]


@pytest.mark.parametrize(
    "name",
    ["T1w.", "sub-01_x-_T1w.nii", "sub-01_foo_T1w.nii.gz", "sub-ä_T1w.nii", "sub-01_run-1_run-2_T1w.nii", "a b.nii"],
)
def test_what_is_no_bids_name(name: str) -> None:
    parsed = parse_name(name)
    assert parsed is None or not parsed[0]


@pytest.mark.parametrize("model", ["whole-brain", "whole_brain", "", "ä", "../x"])
def test_labels_that_cannot_stand_in_a_name(model: str) -> None:
    with pytest.raises(UsageError):
        output_paths(scan_of({"subject": "01"}), model, ["FAST"])
    with pytest.raises(UsageError):
        group_table(model, "FAST")


def test_unknown_entities_are_carried() -> None:
    parsed = parse_name("sub-01_foo-bar_T1w.nii.gz")
    assert parsed == ({"subject": "01", "foo": "bar"}, "T1w", ".nii.gz")
    assert outputs_of(parsed[0])[0].name.startswith("sub-01_foo-bar_seg-FAST")


def test_the_validator_accepts_every_name(tmp_path: Path) -> None:
    program = _program()
    assert program is not None
    bids_dir, output = tmp_path / "bids", tmp_path / "derivatives" / "bidsseg"
    bids_dir.mkdir()
    every = dict.fromkeys(T1W_ENTITIES, "1") | {"subject": "01", "part": "mag"}
    for source in ({"subject": "02"}, {"subject": "02", "run": "2"}, {"subject": "03", "session": "1"}, every):
        for path in outputs_of(source):
            content = b"1"
            if path.suffix == ".json":
                write_json_atomic(output / path, image_sidecar("x", Origin([bids_dir / "T1w.nii.gz"], bids_dir)))
                continue
            if path.name.endswith("dseg.tsv"):
                content = b"index\tname\n0\tbackground\n"
            (output / path).parent.mkdir(parents=True, exist_ok=True)
            (output / path).write_bytes(content)
        (output / report_path(scan_of(source))).write_text("<html></html>", encoding="utf-8")
    table, agreement = group_table("wholebrain", "FAST"), agreement_paths("FAST", "wholebrain", "manual+fast")
    others = ["logs/run-1.json", "models/x/card.json", "folds/fold-0/models/x/card.json"]
    tables = [table, agreement.table, agreement.summary]
    sidecars = [with_extension(path, ".json") for path in tables]
    for path in (*tables, *sidecars, agreement.page, group_report(), *map(Path, others)):
        (output / path).parent.mkdir(parents=True, exist_ok=True)
        (output / path).write_text("{}", encoding="utf-8")
    write_root_files(output, bids_dir, {"wholebrain": "A model"})
    command = [program, str(output), "--format", "json", "--ignoreNiftiHeaders"]
    report = json.loads(subprocess.run(command, capture_output=True, check=False).stdout)
    assert not [issue for issue in report["issues"]["issues"] if issue["severity"] == "error"]
    assert dataset_description(output, bids_dir)["GeneratedBy"][0]["Name"] == "bidsseg"
