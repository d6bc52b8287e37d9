"""The scans that the tables of a dataset mark, such as by ``use`` in ``scans.tsv`` (``--where COLUMN=VALUE``)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bidsseg.arguments import condition
from bidsseg.bids.names import build_name
from bidsseg.errors import UsageError, listed
from bidsseg.reading import NOT_AVAILABLE, read_table

Rows = list[dict[str, str]]


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
            InputMissing, DataError: a table cannot be read.
        """
        for text in self.conditions:
            column, values, is_wanted = condition(text)
            rows = (row for row in self._rows(entities, image) if column in row)
            cell = next(rows, {}).get(column) or NOT_AVAILABLE
            if any(_equal(cell, value) for value in values) != is_wanted:
                return f"{text} ({cell})"
        return ""

    def check(self) -> None:
        """Raise UsageError if none of the tables that were read has the column of a condition."""
        known = {name for rows in self._tables.values() for row in rows[:1] for name in row}
        for text in self.conditions:
            if (column := condition(text)[0]) not in known:
                raise UsageError(
                    f"--where {text}: no scans.tsv, sessions.tsv or participants.tsv of the selected participants has "
                    f"the column {column}; there are {listed(sorted(known), 12) or 'none'}"
                )

    def _rows(self, entities: Mapping[str, str], image: str) -> Iterator[dict[str, str]]:
        """Yield the rows about a scan in ``scans.tsv``, ``sessions.tsv`` and ``participants.tsv``."""
        subject, label = build_name({"subject": entities["subject"]}), entities.get("session", "")
        session, folder = f"ses-{label}" if label else "", self.bids_dir / subject
        scans = folder / session / f"{'_'.join(filter(None, (subject, session)))}_scans.tsv"
        for row in self._read(scans):
            if row.get("filename", "").rpartition("/")[2].partition(".")[0] == image.partition(".")[0]:
                yield row
        for table in (folder / f"{subject}_sessions.tsv", self.bids_dir / "participants.tsv"):
            for row in self._read(table):
                of_person = row.get("participant_id", subject).removeprefix("sub-") == entities["subject"]
                if of_person and row.get("session_id", label).removeprefix("ses-") == label:
                    yield row

    def _read(self, table: Path) -> Rows:
        if table not in self._tables:
            self._tables[table] = read_table(table) if table.is_file() else []
        return self._tables[table]


def _equal(cell: str, value: str) -> bool:
    """Return whether a cell has a value; numbers are compared as numbers, since programs write 1 as 1.0."""
    try:
        return float(cell) == float(value)
    except ValueError:
        return cell == value
