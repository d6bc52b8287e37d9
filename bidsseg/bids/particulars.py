"""What the tables of a dataset say about its participants and sessions: ``participants.tsv`` and ``*_sessions.tsv``."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

from bidsseg.errors import BidssegError, DataError, listed
from bidsseg.reading import NOT_AVAILABLE, object_or_empty, read_cells

PARTICIPANT, SESSION = "participant_id", "session_id"
AGE = "age"
DAYS_PER_YEAR = 365.25
YEARS = {"year": 1, "yr": 1, "y": 1, "month": 1 / 12, "week": 7 / DAYS_PER_YEAR, "day": 1 / DAYS_PER_YEAR}
"""Years of the units that an age may have."""
Cells = dict[str, str]
"""The cells of a row, by column."""


@dataclass
class Particulars:
    """The rows of the tables of participants and sessions.

    Attributes:
        participants: cells by labels of participant and session; the session is empty where the table has none.
        sessions: cells by labels of participant and session.
        described: entries of the data dictionaries of both tables, by table and column.
        problems: what could not be read, one line each.
    """

    participants: dict[tuple[str, str], Cells] = field(default_factory=dict)
    sessions: dict[tuple[str, str], Cells] = field(default_factory=dict)
    described: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def cells(self, source: Mapping[str, str]) -> dict[tuple[str, str], str]:
        """Return the cells of a scan by table and column.

        Args:
            source: entities of its T1w.
        """
        person, session = source.get("subject", ""), source.get("session", "")
        own = self.participants.get((person, session), self.participants.get((person, ""), {}))
        found = {("participants", column): cell for column, cell in own.items()}
        return found | {("sessions", column): cell for column, cell in self.sessions.get((person, session), {}).items()}

    def age_years(self, source: Mapping[str, str]) -> float | None:
        """Return the age at a scan, of the session or else of the participant; None if it is not a known number.

        Args:
            source: entities of its T1w.
        """
        cells = self.cells(source)
        for table in ("sessions", "participants"):
            unit = str(self.described.get((table, AGE), {}).get("Units", "year")).strip().lower()
            try:
                return float(cells[table, AGE]) * YEARS[unit.removesuffix("s")]
            except (KeyError, ValueError):
                continue
        return None

    def columns(self, taken: Container[str]) -> dict[tuple[str, str], str]:
        """Return the name that each column has in the table of a cohort, those of participants first.

        A name that another column has gets a prefix: ``participant_status``, ``session_age``.

        Args:
            taken: the other columns of that table.
        """
        names: dict[tuple[str, str], str] = {}
        for table, rows in (("participants", self.participants), ("sessions", self.sessions)):
            for column in dict.fromkeys(column for cells in rows.values() for column in cells):
                name = column
                while name in taken or name in names.values():
                    name = f"{table.removesuffix('s')}_{name}"
                names[table, column] = name
        return names

    def description(self, table: str, column: str) -> dict[str, Any]:
        """Return the entry of the data dictionary for a column."""
        return {"Description": f"column {column} of the {table} table of the dataset", **self.described[table, column]}


def read_particulars(bids_dir: Path, participants: Iterable[str]) -> Particulars:
    """Return what a dataset says about participants and their sessions; tables that are missing are empty.

    Args:
        participants: labels of the participants whose ``sub-*_sessions.tsv`` are read.
    """
    found, wanted = Particulars(), list(participants)
    _read(bids_dir / "participants.tsv", "", found)
    known = {label for label, _ in found.participants}
    if known and (without := [label for label in wanted if label not in known]):
        found.problems.append(f"participants.tsv has no row for {listed([f'sub-{label}' for label in without], 3)}")
    for label in wanted:
        _read(bids_dir / f"sub-{label}" / f"sub-{label}_sessions.tsv", label, found)
    for path in (bids_dir / "sessions.json", *(bids_dir.glob("sub-*/sub-*_sessions.json") if found.sessions else ())):
        _describe(path, "sessions", found)
    _describe(bids_dir / "participants.json", "participants", found)
    return found


def _read(path: Path, person: str, found: Particulars) -> None:
    """Add the rows of one table; those of a table of sessions belong to the given person."""
    if not path.is_file():
        return
    table, rows_by, key = ("sessions", found.sessions, SESSION) if person else (
        "participants", found.participants, PARTICIPANT
    )  # fmt: skip
    try:
        header, *lines = read_cells(path) or [[]]
        names = [name.strip() for name in header]
        if lines and key not in names:
            raise DataError(f"{path} has no column {key}: its columns are not joined")
    except BidssegError as error:
        found.problems.append(str(error))
        return
    found.problems += _lost_columns(path, names, lines)
    for line in lines:
        row = {name: " ".join(cell.split()) for name, cell in zip_longest(names, line, fillvalue="") if name}
        label = person or plain(row.pop(PARTICIPANT))
        place = label, plain(row.pop(SESSION, ""))
        if place in rows_by:
            found.problems.append(f"{path}: several rows for {'_'.join(filter(None, place))}; the first is used")
            continue
        rows_by[place] = {column: cell or NOT_AVAILABLE for column, cell in row.items()}
        for column in row:
            found.described.setdefault((table, column), {})


def plain(name: str) -> str:
    """Return the label of a participant or session without its prefix, and the name of a file without its ending.

    Empty for ``n/a``.
    """
    if name == NOT_AVAILABLE:
        return ""
    return name.rpartition("/")[2].partition(".")[0].removeprefix("sub-").removeprefix("ses-")


def _lost_columns(path: Path, names: Sequence[str], lines: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield a problem for each column that is not joined, because it has no name or that of another column."""
    for name in dict.fromkeys(name for name in names if name and names.count(name) > 1):
        yield f"{path}: {names.count(name)} columns are named {name}, only the last is joined: give each its own name"
    filled = {place for line in lines for place, cell in enumerate(line) if cell.strip()}
    if unnamed := [place for place in filled if place >= len(names) or not names[place]]:
        what = "a column" if len(unnamed) == 1 else f"{len(unnamed)} columns"
        yield f"{path}: {what} without a name in the first line not joined: add the name"


def _describe(path: Path, table: str, found: Particulars) -> None:
    """Add the descriptions in a data dictionary of columns that are known."""
    for column, entry in object_or_empty(path).items():
        if (table, column) in found.described and isinstance(entry, dict):
            found.described[table, column] = entry
