"""The scans that the tables of a dataset mark, such as by ``use`` in ``scans.tsv`` (``--where COLUMN=VALUE``)."""

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

Rows = list[dict[str, str]]
TABLES = ("participants.tsv", "sub-*/sub-*_sessions.tsv", "sub-*/sub-*_scans.tsv", "sub-*/ses-*/sub-*_scans.tsv")
"""The tables of a dataset that may mark scans."""


@dataclass
class Marks:
    """The conditions that scans must meet, and the tables with their values.

    Attributes:
        conditions: ``COLUMN=VALUE`` or ``COLUMN!=VALUE``, see `arguments.condition`; all must hold.
    """

    bids_dir: Path
    conditions: Sequence[str]
    _tables: dict[Path, Rows] = field(default_factory=dict)

    def unmet(self, entities: Mapping[str, str], image: str) -> str:
        """Return the first condition that a scan does not meet, with its value; empty if the scan meets all.

        Args:
            image: file name of the T1w.

        Raises:
            InputMissing, DataError: a table cannot be read, or does not say which scans its rows are about.
        """
        for text in self.conditions:
            column, values, is_wanted = condition(text)
            cell = next(self._cells(column, entities, image), "") or NOT_AVAILABLE
            if any(_equal(cell, value) for value in values) != is_wanted:
                return f"{text} ({cell})"
        return ""

    def check(self) -> None:
        """Raise UsageError if no table of the dataset has the column of a condition."""
        wanted = {condition(text)[0]: text for text in self.conditions}
        known = {name for rows in self._tables.values() for row in rows[:1] for name in row}
        if not wanted.keys() <= known:  # tables of participants that are not selected may have it
            known |= {name for place in TABLES for table in self.bids_dir.glob(place) for name in columns(table)}
        for column, text in wanted.items():
            if column not in known:
                raise UsageError(
                    f"--where {text}: no scans.tsv, sessions.tsv or participants.tsv of the dataset has the column "
                    f"{column}; there are {listed(sorted(known), 12) or 'none'}"
                )

    def _cells(self, column: str, entities: Mapping[str, str], image: str) -> Iterator[str]:
        """Yield the values of a scan in ``scans.tsv``, ``sessions.tsv`` and ``participants.tsv``."""
        subject, label = build_name({"subject": entities["subject"]}), entities.get("session", "")
        folder, stem = self.bids_dir / subject, image.partition(".")[0]
        of_session = [folder / f"ses-{label}" / f"{subject}_ses-{label}_scans.tsv"] if label else []
        for table in (*of_session, folder / f"{subject}_scans.tsv"):
            for row in self._read(table, "filename", column):
                if row["filename"].rpartition("/")[2].partition(".")[0] == stem:
                    yield row[column]
        for row in self._read(folder / f"{subject}_sessions.tsv", SESSION, column):
            if row[SESSION].removeprefix("ses-") == label:
                yield row[column]
        for row in self._read(self.bids_dir / "participants.tsv", PARTICIPANT, column):
            of_person = row[PARTICIPANT].removeprefix("sub-") == entities["subject"]
            if of_person and row.get(SESSION, "").removeprefix("ses-") in ("", label):
                yield row[column]

    def _read(self, table: Path, key: str, column: str) -> Rows:
        """Return the rows of a table, none if it lacks a column. DataError if it has the column, but not the key."""
        if table not in self._tables:
            self._tables[table] = read_table(table) if lexists(table) else []
        rows = self._tables[table]
        if not rows or column not in rows[0]:
            return []
        if key not in rows[0]:
            raise DataError(f"{table} has no column {key}, so that its column {column} cannot be used")
        return rows


def _equal(cell: str, value: str) -> bool:
    """Return whether a cell has a value; numbers are compared as numbers, since programs write 1 as 1.0."""
    try:
        return cell == value or float(cell) == float(value)
    except ValueError:
        return False
