"""The tables of the changes of a cohort, from the comparisons of the sessions of each participant.

Rows are streamed, since there are a hundred for each session.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from bidsseg.bids.names import build_name, entity_cells, parse_name, suffix_of, with_extension
from bidsseg.bids.outputs import group_changes
from bidsseg.bids.particulars import PARTICIPANT, SESSION, Particulars
from bidsseg.derivative.changes import CHANGES, LESION_CHANGES, STATUSES
from bidsseg.derivative.results import mixed_passes, mixed_rules, mixed_weights, participant_folders
from bidsseg.derivative.sidecar_keys import (
    Sidecar,
    corrected_sessions,
    is_fast,
    is_record,
    read_sidecar,
    source_paths,
    weights,
)
from bidsseg.errors import BidssegError
from bidsseg.files import table_writer, write_json_atomic
from bidsseg.reading import NOT_AVAILABLE, read_table

COUNTED = ("new", "enlarged", "stable", "shrunken", "vanished")
"""Statuses of lesions that are compared with the session before."""
LESION_TOTALS: dict[str, dict[str, Any]] = {
    SESSION: {"Description": "Session"},
    "years": CHANGES["years"],
    "lesions": {"Description": "Number of lesions at this session, as in the table of the participant"},
    "volume-mm3": {"Description": "Volume of all lesions at this session", "Units": "mm^3"},
    "change-mm3": {"Description": "Change of volume-mm3 since the session before", "Units": "mm^3"},
    **{
        name: entry
        for status in COUNTED
        for name, entry in (
            (status, {"Description": f"Number of lesions: {STATUSES[status]}"}),
            (f"{status}-mm3", {"Description": f"Change of the volume of these lesions ({status})", "Units": "mm^3"}),
        )
    },
    "corrected": LESION_CHANGES["corrected"],
}
"""Columns of the table of lesions, with a row for each participant and session."""


@dataclass(frozen=True)
class Comparison:
    """The table of changes of a participant.

    Attributes:
        subject: label of the participant.
        model: ``desc-`` label of the results.
        protocol: of the regions; empty in a table of lesions.
    """

    subject: str
    model: str
    protocol: str
    path: Path

    @cached_property
    def sidecar(self) -> Sidecar:
        """The data dictionary of the table, its record."""
        return read_sidecar(with_extension(self.path, ".json"))

    def scans(self) -> list[tuple[dict[str, str], str]]:
        """Return entities and file name of the T1w of each session; none if they are not recorded."""
        paths = source_paths(self.sidecar)
        t1ws = [path.name for path in paths if suffix_of(path) == suffix_of(paths[0])]
        return [(parsed[0], name) for name in t1ws if (parsed := parse_name(name))]

    def sessions(self) -> dict[str, str]:
        """Return the sessions that were compared, in their order, with the years since the first one.

        They are those of a table of regions, or of the record of a model that writes no label maps.
        """
        tables = sorted(self.path.parent.glob(f"sub-*_seg-*_desc-{self.model}_longitudinal.tsv"))
        scans, years = self.scans(), self.sidecar.get("Years", [])
        if tables or not scans or len(years) != len(scans):
            return {row[SESSION]: row.get("years", NOT_AVAILABLE) for row in read_table([*tables, self.path][0])}
        labels = [build_name({"session": entities["session"]}) for entities, _ in scans]
        shown = [NOT_AVAILABLE if time is None else str(round(time, 3)) for time in years]
        return dict(zip(labels, shown, strict=True))


Changes = dict[tuple[str, str], list[Comparison]]
"""Comparisons in natural order, by model and protocol."""


def find_comparisons(output_dir: Path, participants: Iterable[str] = ()) -> Changes:
    """Return the tables of changes in an output folder; no labels mean all participants."""
    found: Changes = {}
    for folder in participant_folders(output_dir, participants):
        for path in sorted((folder / "anat").glob("sub-*_longitudinal.tsv")):
            parsed = parse_name(path.name)
            if parsed is None or not is_record(read_sidecar(with_extension(path, ".json"))):
                continue
            entities = parsed[0]
            one = Comparison(entities["subject"], entities.get("desc", ""), entities.get("segmentation", ""), path)
            found.setdefault((one.model, one.protocol), []).append(one)
    return {key: found[key] for key in sorted(found, key=lambda key: (key[0], not key[1], key[1]))}


def outdated_changes(output_dir: Path, current: Changes) -> list[Path]:
    """Return the tables of changes of an earlier cohort that no participant in the output folder has any more.

    Args:
        current: the comparisons that are put together now.
    """
    tables = {path for kind in ("*", "") for path in output_dir.glob(str(group_changes("*", kind)))}
    tables -= {output_dir / group_changes(*key) for key in current}
    if tables:  # participants that are not selected now may have them
        tables -= {output_dir / group_changes(*key) for key in find_comparisons(output_dir)}
    return sorted(tables)


def write_changes(
    path: Path,
    compared: Sequence[Comparison],
    particulars: Particulars,
    *,
    protocol: str,
    sessions: Iterable[str] = (),
) -> list[str]:
    """Write the table of the changes of all participants and its data dictionary, and return problems, one line each.

    Args:
        compared: tables of one model and protocol.
        protocol: name of the protocol, empty for lesions.
        sessions: labels of those that get rows; none means all.
    """
    own = CHANGES if protocol else LESION_TOTALS
    joined = particulars.columns({PARTICIPANT, "Description", *own})
    wanted, problems = {f"ses-{label}" for label in sessions}, []
    with table_writer(path, [PARTICIPANT, *own, *joined.values()]) as writer:
        for one in compared:
            try:
                rows = list(_rows(one))
            except (BidssegError, KeyError, ValueError) as error:
                problems.append(f"{one.path.name}: not a table of changes: {error}")
                continue
            for row in rows:
                if wanted and row[SESSION] not in wanted:
                    continue
                source = {"subject": one.subject, "session": row[SESSION].removeprefix("ses-")}
                more = {joined[column]: cell for column, cell in particulars.cells(source).items()}
                writer.writerow({**entity_cells(source), **row, **more})
    what = f"Volumes of the regions of the {protocol} protocol" if protocol else "Lesions"
    content = {
        "Description": f"{what} at each session of each participant, and their changes",
        PARTICIPANT: {"Description": "Participant"},
        **own,
        **{name: particulars.description(*column) for column, name in joined.items()},
    }
    write_json_atomic(with_extension(path, ".json"), content)
    used = {f"sub-{one.subject}": weights(one.sidecar) for one in compared}
    mixed = [
        mixed_weights(used),
        mixed_passes({f"sub-{one.subject}": is_fast(one.sidecar) for one in compared}),
        mixed_rules([one.sidecar for one in compared], "longitudinal", "participants"),
    ]
    return [*problems, *filter(None, mixed)]


def _rows(one: Comparison) -> Iterator[dict[str, str]]:
    """Yield the rows of a participant in the table of the cohort, without the columns of the dataset."""
    rows = read_table(one.path)
    if one.protocol:
        earlier = {"corrected": "0"}  # tables of versions before 0.24 lack the column
        yield from ({name: {**earlier, **row}[name] for name in CHANGES} for row in rows)
        return
    corrected = corrected_sessions(one.sidecar)
    before: float | None = None
    for session, years in one.sessions().items():
        here = [row for row in rows if row[SESSION] == session]
        volumes = [float(row["volume-mm3"]) for row in here]
        total = sum(volumes, 0.0)
        cells = {"lesions": sum(volume > 0 for volume in volumes), "volume-mm3": round(total, 3)}
        cells["corrected"] = int(session in corrected)
        if before is not None:
            cells["change-mm3"] = round(total - before, 3)
            for status in COUNTED:
                changes = [float(row["change-mm3"]) for row in here if row["status"] == status]
                cells |= {status: len(changes), f"{status}-mm3": round(sum(changes, 0.0), 3)}
        yield {SESSION: session, "years": years, **{name: str(cell) for name, cell in cells.items()}}
        before = total
