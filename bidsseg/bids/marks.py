"""What the tables of a dataset say about a scan, and the scans that they mark, such as by ``use`` in ``scans.tsv``."""

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
        flag: the flag that gives the conditions, for messages.
    """

    bids_dir: Path
    conditions: Sequence[str]
    flag: str = "--where"
    _tables: dict[Path, Rows] = field(default_factory=dict)
    _people: dict[Path, dict[str | None, Rows]] = field(default_factory=dict)

    def unmet(self, entities: Mapping[str, str], image: str) -> str:
        """Return the first condition that a scan does not meet, with its value; empty if the scan meets all.

        Args:
            image: file name of the T1w.

        Raises:
            InputMissing, DataError: a table cannot be read.
        """
        cells = self.cells(entities, image)
        for text in self.conditions:
            column, values, is_wanted = condition(text)
            cell = cells.get(column, NOT_AVAILABLE)
            if any(_equal(cell, value) for value in values) != is_wanted:
                return f"{text} ({cell})"
        return ""

    def cells(self, entities: Mapping[str, str], image: str) -> dict[str, str]:
        """Return the cells of a scan by column: of ``scans.tsv``, otherwise of the session, otherwise the participant.

        Args:
            image: file name of the T1w.
        """
        rows = reversed([*self._rows(entities, image)])
        return {column: cell or NOT_AVAILABLE for row in rows for column, cell in row.items()}

    def check(self) -> None:
        """Raise UsageError if none of the tables that were read has the column of a condition."""
        for text in self.conditions:
            self.check_column(condition(text)[0], f"{self.flag} {text}")

    def check_column(self, column: str, given: str) -> None:
        """Raise UsageError, with the flag as it was given, if none of the tables that were read has a column."""
        known = {name for rows in self._tables.values() for row in rows[:1] for name in row}
        if column not in known:
            raise UsageError(
                f"{given}: no scans.tsv, sessions.tsv or participants.tsv of the selected participants has "
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
            for row in self._of(entities["subject"], table):
                if row.get("session_id", label).removeprefix("ses-") == label:
                    yield row

    def _of(self, person: str, table: Path) -> Rows:
        """Return the rows about a participant; all of a table without the column of participants."""
        if table not in self._people:
            rows = self._people[table] = dict[str | None, Rows]()
            for row in self._read(table):
                label = row.get("participant_id")
                rows.setdefault(label and label.removeprefix("sub-"), []).append(row)
        return self._people[table].get(person) or self._people[table].get(None, [])

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
