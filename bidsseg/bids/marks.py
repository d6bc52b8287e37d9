"""The scans that the tables of a dataset mark, such as by ``use`` in ``scans.tsv`` (``--where COLUMN=VALUE``)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
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
        _tables: the rows of each table that was read, by the file, session or participant that they are about.
    """

    bids_dir: Path
    conditions: Sequence[str]
    _tables: dict[Path, dict[str, Rows]] = field(default_factory=dict)

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
        known = {name for rows in self._tables.values() for name in _names(rows)}
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
        folder, sessions = self.bids_dir / subject, self.bids_dir / subject / f"{subject}_sessions.tsv"
        of_session = [folder / f"ses-{label}" / f"{subject}_ses-{label}_scans.tsv"] if label else []
        for table in (*of_session, folder / f"{subject}_scans.tsv"):
            yield from (row[column] for row in self._rows(table, "filename", image, column=column))
        yield from (row[column] for row in self._rows(sessions, SESSION, label, column=column))
        for row in self._rows(self.bids_dir / "participants.tsv", PARTICIPANT, subject, column=column):
            if _plain(row.get(SESSION, "")) in ("", label):
                yield row[column]

    def _rows(self, table: Path, key: str, name: str, *, column: str) -> Rows:
        """Return the rows with a name in the column of a key; none if the table lacks the other column.

        DataError if it has that column, but not the key.
        """
        if table not in self._tables:
            rows: dict[str, Rows] = {}
            for row in read_table(table) if lexists(table) else ():
                rows.setdefault(_plain(row.get(key, "")), []).append(row)
            self._tables[table] = rows
        names = _names(self._tables[table])
        if column in names and key not in names:
            raise DataError(f"{table} has no column {key}, so that its column {column} cannot be used")
        return self._tables[table].get(_plain(name), []) if column in names else []


def _names(rows: Mapping[str, Rows]) -> Iterable[str]:
    """Return the columns of a table, which each of its rows has."""
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
