"""What the tables of a dataset say about its scans, such as ``use`` or ``acq_time`` in ``scans.tsv``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from os.path import lexists
from pathlib import Path
from typing import Any

from bidsseg.arguments import condition
from bidsseg.bids.names import build_name
from bidsseg.bids.particulars import PARTICIPANT, SESSION, plain
from bidsseg.errors import DataError, UsageError, listed
from bidsseg.reading import NOT_AVAILABLE, columns, object_or_empty, read_table

Row = dict[str, str]
TABLES = ("participants.tsv", "sub-*/sub-*_sessions.tsv", "sub-*/sub-*_scans.tsv", "sub-*/ses-*/sub-*_scans.tsv")
"""The tables of a dataset that may mark scans."""


@dataclass
class Marks:
    """The tables of a dataset that say something about its scans; each is read once.

    Methods take the entities and the file name of the T1w of a scan. Conditions are ``COLUMN=VALUE`` or
    ``COLUMN!=VALUE``, see `arguments.condition`; all must hold.

    Raises:
        InputMissing, DataError: a table cannot be read, or does not say which scans its rows are about.

    Attributes:
        _tables: the rows of each table that was read, by the file, session or participant that they are about.
    """

    bids_dir: Path
    _tables: dict[Path, dict[str, list[Row]]] = field(default_factory=dict)

    def unmet(self, conditions: Sequence[str], entities: Mapping[str, str], image: str) -> str:
        """Return the first condition that a scan does not meet, with its value; empty if the scan meets all."""
        wanted = {text: condition(text) for text in conditions}
        cells = self.cells(entities, image, needed={column for column, _, _ in wanted.values()})
        for text, (column, values, is_wanted) in wanted.items():
            cell = cells.get(column, NOT_AVAILABLE)
            if any(_equal(cell, value) for value in values) != is_wanted:
                return f"{text} ({cell})"
        return ""

    def cells(self, entities: Mapping[str, str], image: str, needed: Set[str] = frozenset()) -> Row:
        """Return the cells of a scan by column: of ``scans.tsv``, otherwise of the session, otherwise the participant.

        A row of no session in ``participants.tsv`` is that of the sessions without a row.

        Args:
            needed: columns whose tables must say which scans their rows are about.
        """
        subject = build_name({"subject": entities["subject"]})
        of_person = self._about(self.bids_dir / "participants.tsv", PARTICIPANT, subject, needed=needed)
        of_sessions = [plain(row.get(SESSION, "")) for row in of_person]
        session = entities.get("session", "")
        own = session if session in of_sessions else ""
        of_person = [row for row, each in zip(of_person, of_sessions, strict=True) if each == own]
        found: Row = {}
        for row in (*self.of_scan(entities, image, needed), *self.of_session(entities, needed), *of_person):
            for column, cell in row.items():
                found.setdefault(column, cell or NOT_AVAILABLE)
        return found

    def of_scan(self, entities: Mapping[str, str], image: str, needed: Set[str] = frozenset()) -> list[Row]:
        """Return the rows of a scan in ``scans.tsv`` of its session and of its participant."""
        subject = build_name({"subject": entities["subject"]})
        tables = [self.bids_dir / subject / f"{subject}_scans.tsv"]
        if "session" in entities:
            session = build_name({"session": entities["session"]})
            tables.insert(0, self.bids_dir / subject / session / f"{subject}_{session}_scans.tsv")
        return [row for table in tables for row in self._about(table, "filename", image, needed=needed)]

    def of_session(self, entities: Mapping[str, str], needed: Set[str] = frozenset()) -> list[Row]:
        """Return the rows of the session of a scan in ``sessions.tsv``; none without a session."""
        subject = build_name({"subject": entities["subject"]})
        table = self.bids_dir / subject / f"{subject}_sessions.tsv"
        return self._about(table, SESSION, entities["session"], needed=needed) if "session" in entities else []

    def check(self, conditions: Sequence[str], flag: str) -> None:
        """Raise UsageError if no table of the dataset has the column of a condition that was given by a flag."""
        for text in conditions:
            self.check_column(condition(text)[0], f"{flag} {text}")

    def check_column(self, column: str, given: str) -> None:
        """Raise UsageError, with the flag as it was given, if no table of the dataset has a column."""
        known = {name for rows in self._tables.values() for name in _names(rows)}
        if column not in known:  # tables of participants that are not selected may have it
            known |= {name for place in TABLES for table in self.bids_dir.glob(place) for name in columns(table)}
        if column not in known:
            raise UsageError(
                f"{given}: no scans.tsv, sessions.tsv or participants.tsv of the dataset has the column {column}; "
                f"there are {listed(sorted(known), 12) or 'none'}"
            )

    def categorical(self) -> set[str]:
        """Return the columns of the tables read so far that have ``Levels`` in a data dictionary of the dataset.

        It is beside the table, or at the top of the dataset for all tables of its kind.
        """
        found: set[str] = set()
        known: dict[Path, dict[str, Any]] = {}
        for table, rows in self._tables.items():
            names, kind = _names(rows), table.stem.rpartition("_")[2]
            for path in (self.bids_dir / f"{kind}.json", table.with_suffix(".json")) if names else ():
                known[path] = entries = known[path] if path in known else object_or_empty(path)
                found |= {name for name in names if isinstance(entry := entries.get(name), dict) and "Levels" in entry}
        return found

    def _about(self, table: Path, key: str, name: str, *, needed: Set[str]) -> list[Row]:
        """Return the rows with a name in the column of a key. DataError if the table is needed and lacks the column."""
        if table not in self._tables:
            rows: dict[str, list[Row]] = {}
            for row in read_table(table) if lexists(table) else ():
                rows.setdefault(plain(row.get(key, "")), []).append(row)
            self._tables[table] = rows
        names = _names(self._tables[table])
        if not names or key in names:
            return self._tables[table].get(plain(name), [])
        if found := sorted(needed & names.keys()):
            raise DataError(f"{table} has no column {key}, so that its column {found[0]} cannot be used")
        return []


def _names(rows: Mapping[str, list[Row]]) -> Row:
    """Return a row of a table, which has all of its columns."""
    return next(iter(rows.values()), [{}])[0]


def _equal(cell: str, value: str) -> bool:
    """Return whether a cell has a value; numbers are compared as numbers, since programs write 1 as 1.0."""
    try:
        return cell == value or float(cell) == float(value)
    except ValueError:
        return False
