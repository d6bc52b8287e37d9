"""What the tables of a dataset say about its scans, such as ``use`` in ``scans.tsv`` (``--where COLUMN=VALUE``)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from os.path import lexists
from pathlib import Path

from bidsseg.arguments import condition
from bidsseg.bids.names import build_name
from bidsseg.bids.particulars import PARTICIPANT, SESSION
from bidsseg.errors import DataError, UsageError, listed
from bidsseg.reading import NOT_AVAILABLE, columns, read_table

Row = dict[str, str]
TABLES = ("participants.tsv", "sub-*/sub-*_sessions.tsv", "sub-*/sub-*_scans.tsv", "sub-*/ses-*/sub-*_scans.tsv")
"""The tables of a dataset that may mark scans."""


@dataclass
class Marks:
    """The conditions that scans must meet, and the tables with their values.

    Attributes:
        conditions: ``COLUMN=VALUE`` or ``COLUMN!=VALUE``, see `arguments.condition`; all must hold.
        flag: where the user gave them.
        _tables: the rows of each table that was read, by the file, session or participant that they are about.
    """

    bids_dir: Path
    conditions: Sequence[str]
    flag: str = "--where"
    _tables: dict[Path, dict[str, list[Row]]] = field(default_factory=dict)

    def unmet(self, entities: Mapping[str, str], image: str) -> str:
        """Return the first condition that a scan does not meet, with its value; empty if the scan meets all.

        Args:
            image: file name of the T1w.

        Raises:
            InputMissing, DataError: a table cannot be read, or does not say which scans its rows are about.
        """
        cells = self.cells(entities, image)
        for text in self.conditions:
            column, values, is_wanted = condition(text)
            cell = cells.get(column, NOT_AVAILABLE)
            if any(_equal(cell, value) for value in values) != is_wanted:
                return f"{text} ({cell})"
        return ""

    def cells(self, entities: Mapping[str, str], image: str) -> Row:
        """Return the cells of a scan by column: of ``scans.tsv``, otherwise of the session, otherwise the participant.

        Args:
            image: file name of the T1w.
        """
        found: Row = {}
        for row in self._rows(entities, image):
            for column, cell in row.items():
                found.setdefault(column, cell or NOT_AVAILABLE)
        return found

    def check(self) -> None:
        """Raise UsageError if no table of the dataset has the column of a condition."""
        for text in self.conditions:
            self.check_column(condition(text)[0], f"{self.flag} {text}")

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

    def _rows(self, entities: Mapping[str, str], image: str) -> Iterator[Row]:
        """Yield the rows about a scan in ``scans.tsv``, ``sessions.tsv`` and ``participants.tsv``."""
        subject, label = build_name({"subject": entities["subject"]}), entities.get("session", "")
        folder = self.bids_dir / subject
        if label:
            yield from self._about(folder / f"ses-{label}" / f"{subject}_ses-{label}_scans.tsv", "filename", image)
        yield from self._about(folder / f"{subject}_scans.tsv", "filename", image)
        yield from self._about(folder / f"{subject}_sessions.tsv", SESSION, label)
        for row in self._about(self.bids_dir / "participants.tsv", PARTICIPANT, subject):
            if _plain(row.get(SESSION, "")) in ("", label):
                yield row

    def _about(self, table: Path, key: str, name: str) -> list[Row]:
        """Return the rows with a name in the column of a key. DataError if the table is needed and lacks the column."""
        if table not in self._tables:
            rows: dict[str, list[Row]] = {}
            for row in read_table(table) if lexists(table) else ():
                rows.setdefault(_plain(row.get(key, "")), []).append(row)
            self._tables[table] = rows
        names = _names(self._tables[table])
        if names and key not in names:
            needed = next((column for text in self.conditions if (column := condition(text)[0]) in names), None)
            if needed is not None:
                raise DataError(f"{table} has no column {key}, so that its column {needed} cannot be used")
            return []
        return self._tables[table].get(_plain(name), [])


def _names(rows: Mapping[str, list[Row]]) -> Row:
    """Return a row of a table, which has all of its columns."""
    return next(iter(rows.values()), [{}])[0]


def _plain(name: str) -> str:
    """Return the label of a participant or session without its prefix, and the name of a file without its ending."""
    if name == NOT_AVAILABLE:
        return ""
    return name.rpartition("/")[2].partition(".")[0].removeprefix("sub-").removeprefix("ses-")


def _equal(cell: str, value: str) -> bool:
    """Return whether a cell has a value; numbers are compared as numbers, since programs write 1 as 1.0."""
    try:
        return cell == value or float(cell) == float(value)
    except ValueError:
        return False
