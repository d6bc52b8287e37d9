"""Texts that users edit: accepted variants, and one error that names the file for all others."""

import codecs
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from bids_trees import make_tree

from bidsseg import arguments
from bidsseg.app import brainlife
from bidsseg.bids.query import read_filters
from bidsseg.derivative import root
from bidsseg.derivative.results import Result
from bidsseg.errors import BidssegError, DataError, InputMissing, OutputNotWritable, UsageError
from bidsseg.execution.cluster_config import read_config
from bidsseg.labels.protocol import load_protocol
from bidsseg.learning.recipe import load_recipe
from bidsseg.models.card import read_card
from bidsseg.reading import object_or_empty, read_table, read_text

LOOKUP = "index\tname\n0\tBackground\n1\tThalämus\n"
FILTERS = '{"t1w": {"acquisition": "mü"}}'

READERS: dict[str, tuple[str, str, Callable[[Path], object], type[BidssegError]]] = {
    "filters": ("filter.json", FILTERS, read_filters, UsageError),
    "labels": ("people.tsv", "participant_id\tname\nsub-01\tMü\n", lambda p: arguments.labels("sub", [str(p)]),
               UsageError),
    "look-up table": ("seg-Mine_dseg.tsv", LOOKUP, lambda p: load_protocol(str(p)), DataError),
    "cluster": ("cluster.toml", 'queue = "grün"\n', lambda p: read_config(p, "slurm"), UsageError),
    "recipe": ("mine.toml", 'base = "wholebrain"\nname = "mine"  # grün\n', lambda p: load_recipe(str(p)),
               DataError),
    "brainlife": ("config.json", '{"t1": "grün.nii.gz"}', brainlife.read_config, UsageError),
    "card": ("card.json", '{"name": "m", "title": "grün", "inputs": ["T1w"], "network": {}, "spacing_mm": 1.0, '
             '"heads": ["FAST"], "sha256": ""}', lambda p: read_card(p.parent), DataError),
}  # fmt: skip


@pytest.mark.parametrize("what", READERS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_a_byte_order_mark_and_line_ends_do_not_matter(tmp_path: Path, what: str, encoding: str, ending: str) -> None:
    name, text, read, _ = READERS[what]
    path = tmp_path / name
    path.write_bytes(text.encode())
    expected = read(path)
    load_protocol.cache_clear()
    path.write_bytes(text.replace("\n", ending).encode(encoding))
    assert read(path) == expected


@pytest.mark.parametrize("what", READERS)
@pytest.mark.parametrize(
    "content", ["grün".encode("latin-1"), b"\0\1\2", codecs.BOM_UTF16_LE + b"a", b"PK\3\4", b'{"half": '],
    ids=["Latin-1", "binary", "half of a letter", "archive", "cut off"],
)  # fmt: skip
def test_what_is_no_such_text_is_one_error_that_names_the_file(tmp_path: Path, what: str, content: bytes) -> None:
    name, _, read, kind = READERS[what]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(kind, match=name):
        read(path)


@pytest.mark.parametrize("what", READERS)
def test_a_pointer_in_place_of_a_text(tmp_path: Path, what: str) -> None:
    name, _, read, _ = READERS[what]
    (tmp_path / name).write_text("/annex/objects/MD5E-s1--0.tsv\n")
    with pytest.raises(InputMissing, match="was not downloaded, this is a pointer of git-annex"):
        read(tmp_path / name)


def test_paths_that_lead_nowhere(tmp_path: Path) -> None:
    (tmp_path / "annexed").symlink_to(".git/annex/objects/x")
    (tmp_path / "link").symlink_to("nowhere")
    for name, hint in (("none", "no such file"), ("annexed", "a link of git-annex"), ("link", "broken link"),
                       ("x" * 300, "too long"), ("none/x", "no such file")):  # fmt: skip
        with pytest.raises(InputMissing, match=hint):
            read_text(tmp_path / name)
    with pytest.raises(BidssegError, match="Is a directory"):
        read_text(tmp_path)


def test_cells_that_a_row_lacks_are_empty(tmp_path: Path) -> None:
    path = tmp_path / "table.tsv"
    path.write_text('a\tb\n1\n2\t3\t4\n\n"5\t6\n')
    assert read_table(path, quotes=False) == [{"a": "1", "b": ""}, {"a": "2", "b": "3"}, {"a": '"5', "b": "6"}]


@pytest.mark.parametrize("row", ["1", "1\t\t\t\t", "\t", "x\tA", "1.5\tA", "1"])
def test_a_look_up_table_with_a_broken_row(tmp_path: Path, row: str) -> None:
    path = tmp_path / "seg-Broken_dseg.tsv"
    path.write_text(f"index\tname\tabbreviation\tcolor\tmapping\n0\tBackground\n{row}\nz\tz\n")
    with pytest.raises(DataError, match=r"seg-Broken_dseg\.tsv: not a look-up table"):
        load_protocol(str(path))


# -- the output and the input ------------------------------------------------------------------------------------------


def test_descriptions_with_a_byte_order_mark_are_kept(tmp_path: Path) -> None:
    bids_dir, output = make_tree(tmp_path / "bids"), tmp_path / "out"
    output.mkdir()
    table = output / "descriptions.tsv"
    table.write_bytes("desc_id\tdescription\r\ndesc-mine\tgrün\r\n".encode("utf-8-sig"))
    root.write_root_files(output, bids_dir, {"one": "The first"})
    assert "desc-mine\tgrün\n" in table.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "content",
    ["desc_id\tdescription\ndesc-x\tgrün\n".encode("latin-1"), b"id\ttext\nx\ty\n", b"/annex/objects/MD5-s1--0\n"],
    ids=["Latin-1", "other columns", "not fetched"],
)
def test_descriptions_that_cannot_be_read_are_not_replaced(tmp_path: Path, content: bytes) -> None:
    bids_dir, output = make_tree(tmp_path / "bids"), tmp_path / "out"
    output.mkdir()
    (output / "descriptions.tsv").write_bytes(content)
    with pytest.raises(OutputNotWritable, match=r"descriptions\.tsv"):
        root.write_root_files(output, bids_dir, {"one": "The first"})
    assert (output / "descriptions.tsv").read_bytes() == content


def test_the_name_of_the_input_is_read_past_a_byte_order_mark(tmp_path: Path) -> None:
    bids_dir = make_tree(tmp_path / "bids")
    path = bids_dir / "dataset_description.json"
    path.write_bytes(json.dumps({"Name": "Grün", "BIDSVersion": "1.10.1"}, ensure_ascii=False).encode("utf-8-sig"))
    assert root.dataset_description(tmp_path / "out", bids_dir)["Name"] == "bidsseg: segmentation of Grün"
    path.write_bytes('{"Name": "Grün"}'.encode("latin-1"))
    assert root.dataset_description(tmp_path / "out", bids_dir)["Name"] == "bidsseg: segmentation of bids"


def test_tables_and_sidecars_of_results(tmp_path: Path) -> None:
    table = tmp_path / "sub-01_seg-FAST_desc-m_morph.tsv"
    text = "index\tname\tabbreviation\tvoxels\tvolume-mm3\tsoftvolume-mm3\n1\tCSF\tCSF\t1\t2\tn/a\n"
    table.write_bytes(text.encode("utf-8-sig"))
    result = Result({"subject": "01"}, "m", "FAST", table)
    assert [volume.volume_mm3 for volume in result.volumes()] == [2]
    table.write_bytes(text.replace("CSF", "grün").encode("latin-1"))
    with pytest.raises(ValueError, match="UTF-8"):
        result.volumes()
    (tmp_path / "a.json").write_bytes('{"Quality": 1}'.encode("utf-8-sig"))
    (tmp_path / "b.json").write_bytes(b'{"Quality": "\xfc"}')
    assert object_or_empty(tmp_path / "a.json") == {"Quality": 1} and object_or_empty(tmp_path / "b.json") == {}


# -- labels ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("participant_id\tage\nsub-01\t30\nsub-02\tn/a\n", ["01", "02"]),
        ("age\tparticipant_id\n30\tsub-01\n31\tsub-02\n", ["01", "02"]),
        ("participant_id,age\nsub-01,30\n02,31\n", ["01", "02"]),
        ("age;Participant_ID\n30;sub-01\n31;sub-02\n", ["01", "02"]),
        ('"age","participant_id"\n"3,0","sub-01"\n"31","sub-02"\n', ["01", "02"]),
        ("participant_id\tage\nn/a\t3\nsub-01\t30\n\t\nsub-02\n", ["01", "02"]),
        ("participant_id age\nsub-01 30\nsub-02 n/a\n", ["01", "02"]),
        ("sub-01,sub-02", ["01", "02"]),
        ("01, 02\n", ["01", "02"]),
        ("01 02\n", ["01", "02"]),
        ("01\n02\n", ["01", "02"]),
        ("# mine\n01\t30\n02\t31\n", ["01", "02"]),
        ("id,age\nsub-01,30\nsub-02,40\n", ["01", "02"]),
        ("sub-01\nsub-02/\n", ["01", "02"]),
    ],
)
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_files_of_labels(tmp_path: Path, content: str, found: list[str], ending: str) -> None:
    path = tmp_path / "labels.txt"
    path.write_bytes(content.replace("\n", ending).encode("utf-8-sig"))
    assert arguments.labels("sub", [str(path)]) == found


def test_sessions_have_a_column_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "sessions.tsv"
    path.write_text("participant_id\tsession_id\nsub-01\tses-a\nsub-02\tses-b\n")
    assert arguments.labels("ses", [str(path)]) == ["a", "b"]
    assert arguments.labels("sub", [str(path)]) == ["01", "02"]


def test_commas_split_labels() -> None:
    assert arguments.labels("sub", ["sub-01,sub-02", "03,", "04, 05"]) == ["01", "02", "03", "04", "05"]
    assert arguments.labels("ses", ["ses-a,b"]) == ["a", "b"]
    assert len(arguments.labels("sub", [",".join(f"sub-{number:04}" for number in range(2000))])) == 2000
    for word in (",", "01,,02x_", ""):
        with pytest.raises(UsageError, match="letters and digits"):
            arguments.labels("sub", [word])


@pytest.mark.parametrize("content", ["", "\n# none\n", "participant_id\tage\n", "participant_id\nn/a\n"])
def test_a_file_without_labels(tmp_path: Path, content: str) -> None:
    path = tmp_path / "labels.txt"
    path.write_text(content)
    with pytest.raises(UsageError, match="contains no label"):
        arguments.labels("sub", [str(path)])
