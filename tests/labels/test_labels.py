"""Protocols, relations between them, and their tables."""

import re
from pathlib import Path

import numpy as np
import pytest

from bidsseg.errors import DataError
from bidsseg.labels import Protocol, Region, Relation, load_protocol, load_relation, shipped_protocols
from bidsseg.labels.protocol import read_protocol
from bidsseg.labels.relation import FOLDER, closed_background, identity, open_background, read_relation

TABLES = sorted(path.stem for path in FOLDER.glob("*.tsv"))
GENERIC = {"WM": 2, "CSF": 3}


def protocol(name: str, *indices: int, unscored: tuple[int, ...] = ()) -> Protocol:
    """Return a protocol with the background and regions with these indices."""
    return Protocol(name, tuple(Region(i, f"region {i}", f"r{i}", "#808080", None, i not in unscored) for i in indices))


def write(path: Path, *rows: str) -> Path:
    """Write a table from rows with blanks instead of tabs."""
    path.write_text("\n".join(rows).replace(" ", "\t") + "\n", encoding="utf-8")
    return path


def shipped(table: str) -> Relation:
    """Return the relation of a shipped table to the scored regions of its head."""
    annotation, head = table.split("_")
    relation = load_relation(load_protocol(annotation), load_protocol(head).scored())
    assert relation is not None
    return relation


# -- protocols ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", shipped_protocols())
def test_shipped_protocols_are_complete_look_up_tables(name: str) -> None:
    table = load_protocol(name)
    assert table.name == name
    assert table.regions[0].index == 0
    assert list(table.indices) == sorted(set(table.indices))
    for labels in ([r.name for r in table.regions], [r.abbreviation for r in table.regions]):
        assert all(labels)
        assert len(set(labels)) == len(labels)
    assert all(re.fullmatch("#[0-9a-f]{6}", region.color) for region in table.regions)
    assert all(region.mapping in (None, *range(12)) for region in table.regions)


def test_the_protocols_that_the_models_speak_are_shipped() -> None:
    assert set(shipped_protocols()) >= {"BrainCOLOR", "FAST", "FreeSurfer", "brain", "head", "lesion"}


def test_braincolor_has_134_scored_regions() -> None:
    table = load_protocol("BrainCOLOR")
    assert len(table.scored().regions) == 134 + 1
    assert all(region.scored for region in table.scored().regions)
    assert len(table.regions) > 135


def test_fast_counts_as_fsl_does() -> None:
    assert [(r.index, r.abbreviation) for r in load_protocol("FAST").regions] == [
        (0, "BG"), (1, "CSF"), (2, "GM"), (3, "WM"),
    ]  # fmt: skip


@pytest.mark.parametrize("name", shipped_protocols())
@pytest.mark.parametrize("scored", [False, True])
def test_partners_exchange_left_and_right(name: str, scored: bool) -> None:
    table = load_protocol(name).scored() if scored else load_protocol(name)
    partners = table.partners()
    assert [partners[i] for i in partners] == list(range(len(table.regions)))
    for region, partner in zip(table.regions, (table.regions[i] for i in partners), strict=True):
        swapped = re.sub("^(Left|Right) ", lambda m: "Left " if m[1] == "Right" else "Right ", region.name)
        assert partner.name == swapped
        assert (partner.mapping, partner.color) == (region.mapping, region.color)


@pytest.mark.parametrize("name", shipped_protocols())
def test_a_protocol_survives_its_table(name: str, tmp_path: Path) -> None:
    table = load_protocol(name).scored()
    path = tmp_path / f"seg-{name}_dseg.tsv"
    path.write_text(table.to_tsv(), encoding="utf-8")
    assert load_protocol(str(path)) == table


def test_a_table_needs_only_index_and_name(tmp_path: Path) -> None:
    path = write(tmp_path / "few.tsv", "name index", "Second 7", "Background 0", "First 3")
    table = load_protocol(str(path))
    assert table.name == "few"
    assert table.indices == (0, 3, 7)
    assert table.region(7) == Region(7, "Second", "Second", "#808080", None)
    with pytest.raises(DataError, match="few has no region with index 5"):
        table.region(5)


def test_a_cell_that_is_not_available_is_as_a_missing_one(tmp_path: Path) -> None:
    title = "index name abbreviation color mapping hemi partner scored"
    path = write(tmp_path / "few.tsv", title, *(f"{i} Region{i}{' n/a' * 6}" for i in range(2)))
    assert load_protocol(str(path)).regions == tuple(
        Region(i, f"Region{i}", f"Region{i}", "#808080", None) for i in range(2)
    )


@pytest.mark.parametrize(
    "written, color",
    [("#Ff8000", "#Ff8000"), ("ff8000", "#ff8000"), *((odd, "#808080") for odd in ("#abc", "red", "#ff8000ff"))],
)
def test_a_colour_in_an_odd_notation_is_grey(written: str, color: str, tmp_path: Path) -> None:
    table = load_protocol(str(write(tmp_path / "few.tsv", "index name color", f"0 Background {written}")))
    assert table.region(0).color == color
    assert len(table.region(0).rgb) == 3


@pytest.mark.parametrize(
    "rows, reason",
    [
        (["value name", "0 Background"], "index"),
        (["index label", "0 Background"], "name"),
        (["index name", "0 Background", "one First"], "one"),
        (["index name mapping", "0 Background grey"], "grey"),
        (["index name", "1.5 First"], "1.5 is not an integer"),
        (["index name", "0 Background", "2 First", "2 Second"], "unique"),
        (["index name", "0 Background", "-1 First"], "negative|background"),
        (["index name"], "background"),
    ],
)
def test_a_table_that_is_none_is_named(rows: list[str], reason: str, tmp_path: Path) -> None:
    path = write(tmp_path / "odd_dseg.tsv", *rows)
    with pytest.raises(DataError, match=reason) as caught:
        load_protocol(str(path))
    assert str(path) in str(caught.value)


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "binary.tsv"
    path.write_bytes(b"\x1f\x8b\x08\x00\xff\xfe")
    with pytest.raises(DataError, match=r"binary\.tsv"):
        load_protocol(str(path))


def test_an_unknown_protocol_is_answered_with_the_known_ones() -> None:
    with pytest.raises(DataError, match=r"'Brodmann'.*BrainCOLOR, DKT, .*FAST, FASTlesion, FreeSurfer"):
        load_protocol("Brodmann")


# -- relations ---------------------------------------------------------------------------------------------------------


def test_identity_opens_what_is_not_scored() -> None:
    annotation, head = protocol("p", 0, 2, 5, 9, unscored=(5,)), protocol("p", 0, 2, 9)
    assert identity(annotation, head).allowed.tolist() == [
        [True, False, False], [False, True, False], [True, True, True], [False, False, True],
    ]  # fmt: skip
    same = load_relation(annotation, annotation.scored())
    assert same is not None
    assert np.array_equal(same.allowed, identity(annotation, head).allowed)


def test_open_background_may_be_all_that_is_not_named() -> None:
    lesion, head = protocol("lesion", 0, 3), protocol("tissues", 0, 1, 2, 3)
    assert open_background(lesion, head).allowed.tolist() == [[True, True, True, False], [False, False, False, True]]


def test_open_background_names_only_regions_of_the_head() -> None:
    with pytest.raises(DataError, match=r"lesion names regions that tissues lacks: region 7"):
        open_background(protocol("lesion", 0, 7), protocol("tissues", 0, 1))


def test_a_relation_allows_something_everywhere() -> None:
    with pytest.raises(DataError, match="a to b: no region is allowed for region 1"):
        Relation(protocol("a", 0, 1), protocol("b", 0), np.array([[True], [False]]))
    with pytest.raises(DataError, match="booleans"):
        Relation(protocol("a", 0), protocol("b", 0), np.array([[1]]))
    with pytest.raises(DataError, match="booleans"):
        Relation(protocol("a", 0), protocol("b", 0), np.ones((2, 1), bool))


def test_rows_look_values_up() -> None:
    assert identity(protocol("p", 0, 2, 5), protocol("p", 0, 2, 5)).rows.tolist() == [0, -1, 1, -1, -1, 2]


def test_nothing_is_known_without_a_table() -> None:
    assert load_relation(load_protocol("lesion"), load_protocol("FAST")) is None


def test_the_tables_that_the_first_model_needs_are_shipped() -> None:
    of_heads = {f"head_{name}" for name in ("BrainCOLOR", "FAST", "FreeSurfer", "brain")}
    assert set(TABLES) >= of_heads | {"BrainCOLOR_FAST", "BrainCOLOR_FreeSurfer", "BrainCOLOR_brain", "FAST_brain"}


@pytest.mark.parametrize("kind", ["aseg", "DesikanKilliany", "DKT"])
@pytest.mark.parametrize("other", ["BrainCOLOR", "FreeSurfer"])
def test_the_regions_of_freesurfer_stay_on_their_side(kind: str, other: str) -> None:
    """Regions of one side are regions of that side or of the midline, and every region of a head may be drawn."""
    for table in (f"{kind}_{other}", f"{other}_{kind}"):
        relation = shipped(table)
        sides = [protocol.hemispheres for protocol in (relation.annotation, relation.head)]
        sided = [i for i, region in enumerate(relation.annotation.regions) if region.scored and sides[0][i]]
        assert len(sided) > 20
        for i in sided:
            assert {sides[1][j] for j in np.flatnonzero(relation.allowed[i])} <= {sides[0][i], ""}
        assert np.any(relation.allowed[1:, 1:], axis=0).all()


@pytest.mark.parametrize("table", TABLES)
def test_shipped_tables_reach_every_region_and_leave_open_only_what_is_not_scored(table: str) -> None:
    relation = shipped(table)
    open_rows = np.all(relation.allowed, 1)
    reached = relation.allowed.any(0)
    assert reached.all() or (table, reached.tolist()) == ("FAST_FASTlesion", [True] * 4 + [False])  # healthy people
    for region, is_open in zip(relation.annotation.regions[1:], open_rows[1:], strict=True):
        assert not (is_open and region.scored), region.name


@pytest.mark.parametrize("table", TABLES)
def test_in_shipped_tables_left_stays_left(table: str) -> None:
    relation = shipped(table)
    pair = relation.annotation, relation.head
    sides = [np.array([region.name.split(" ")[0] for region in protocol.regions]) for protocol in pair]
    informative = ~np.all(relation.allowed, 1)[:, None]
    for side, other in (("Left", "Right"), ("Right", "Left")):
        crossing = relation.allowed & informative & (sides[0] == side)[:, None] & (sides[1] == other)
        assert not crossing.any()


@pytest.mark.parametrize("table", TABLES)
def test_shipped_tables_hold_in_the_mirror(table: str) -> None:
    relation = shipped(table)
    mirrored = relation.allowed[np.ix_(relation.annotation.partners(), relation.head.partners())]
    assert np.array_equal(mirrored, relation.allowed)


@pytest.mark.parametrize("table", [table for table in TABLES if f"{table.split('_')[1]}_brain" in TABLES])
def test_the_way_through_another_protocol_allows_what_the_direct_one_says(table: str) -> None:
    first, last, brain = (load_protocol(name) for name in (*table.split("_"), "brain"))
    there, onwards, direct = load_relation(first, last), load_relation(last, brain), load_relation(first, brain)
    assert there is not None
    assert onwards is not None
    assert direct is not None
    through = there.allowed.astype(int) @ onwards.allowed.astype(int)
    contradicted = direct.allowed & (through == 0) & ~np.all(direct.allowed, 1)[:, None]
    assert [first.regions[i].name for i in np.flatnonzero(contradicted.any(1))] == []


def test_lesions_and_tissues_relate_both_ways() -> None:
    joint, fast, lesion = (load_protocol(name) for name in ("FASTlesion", "FAST", "lesion"))
    found = {(a.name, b.name): load_relation(a, b) for a in (joint, fast, lesion) for b in (joint, fast, lesion)}
    rows = {pair: [np.flatnonzero(row).tolist() for row in r.allowed] for pair, r in found.items() if r is not None}
    assert rows["FAST", "FASTlesion"] == [[0], [1], [2], [3]]
    assert rows["lesion", "FASTlesion"] == [[0, 1, 2, 3], [4]]
    assert rows["FASTlesion", "lesion"] == [[0], [0], [0], [0], [1]]
    assert rows["FASTlesion", "FAST"] == [[0], [1], [2], [3], [2, 3]]
    for name in ("FreeSurfer", "head"):
        finer = load_protocol(name)
        one, other = load_relation(finer, joint), load_relation(finer, fast)
        assert one is not None and other is not None
        sick = np.array([region.mapping == 7 for region in finer.regions])
        assert np.array_equal(one.allowed[~sick, :4], other.allowed[~sick])
        assert one.allowed[sick].tolist() == [[False] * 4 + [True]] * sick.sum()


def test_atropos_and_fast_draw_tissue_each_in_its_own_way() -> None:
    atropos, fast = load_protocol("Atropos"), load_protocol("FAST")
    assert [r.abbreviation for r in atropos.regions] == [r.abbreviation for r in fast.regions]
    assert load_relation(atropos, fast) is load_relation(fast, atropos) is None


def test_a_closed_background_is_background() -> None:
    relation = open_background(protocol("lesion", 0, 3), protocol("tissues", 0, 1, 2, 3))
    assert closed_background(relation).allowed.tolist() == [[True, False, False, False], [False, False, False, True]]


def test_tissues_agree_with_the_generic_table() -> None:
    relation, fast = shipped("FreeSurfer_FAST"), load_protocol("FAST")
    for region, row in zip(relation.annotation.regions, relation.allowed, strict=True):
        tissues = {r.abbreviation for r, allowed in zip(fast.regions, row, strict=True) if allowed}
        if region.mapping in GENERIC.values() and row.sum() == 1:
            assert GENERIC[tissues.pop()] == region.mapping, region.name


# -- tables of relations -----------------------------------------------------------------------------------------------


def test_a_table_lists_values_and_what_they_may_be(tmp_path: Path) -> None:
    annotation, head = protocol("a", 0, 1, 2), protocol("b", 0, 4, 8)
    path = tmp_path / "a_b.tsv"
    path.write_text("a\tb\n0\t0\n2\t4 8\n", encoding="utf-8")
    assert read_relation(path, annotation, head).allowed.tolist() == [
        [True, False, False], [True, True, True], [False, True, True],
    ]  # fmt: skip


@pytest.mark.parametrize(
    "content, reason",
    [
        ("a\tb\n0\t0\n5\t4\n", "5"),
        ("a\tb\n0\t0\n1\t7\n", "b has no region 7"),
        ("a\tb\n0\n", r"\['0'\]"),
        ("a\tb\n0\tzero\n", "zero"),
        ("a\tb\n1\t\n", "nothing is allowed for 1"),
        ("a\tc\n0\t0\n", "a and b"),
        ("", "a and b"),
        ("a\tb\n\n", r"\[\]"),
    ],
)
def test_a_faulty_table_of_a_relation_is_named(content: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "a_b.tsv"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=reason) as caught:
        read_relation(path, protocol("a", 0, 1, 2), protocol("b", 0, 4, 8))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("IDX\tLABEL\n1\tLeft\n", "columns index and name: it has idx, label$"),
        ("#No. Label Name: R G B A\n17 Left-Hippocampus 220 216 20 0\n", "it has #no. label name: r g b a$"),
        ("index\tname\n0\tBackground\n7\t\n", "the region 7 has no name"),
        ("index\tname\n0\tBackground\n7\tn/a\n", "the region 7 has no name"),
    ],
)
def test_what_a_table_lacks_is_named(text: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "seg-Mine_dseg.tsv").write_text(text)
    with pytest.raises(DataError, match=reason):
        read_protocol(tmp_path / "seg-Mine_dseg.tsv")
