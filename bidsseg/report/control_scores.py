"""The z scores of a scan relative to the controls, for its page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bidsseg.bids.names import entity_cells, with_extension
from bidsseg.bids.outputs import group_table
from bidsseg.derivative.cohort import STATUS
from bidsseg.derivative.norms import CONTROLS, EXTRAPOLATED, FAR, IN_CONTROLS, NORMAL, SUMMARY
from bidsseg.derivative.results import Result
from bidsseg.derivative.volumes import BRAIN_MASK, INTRACRANIAL
from bidsseg.reading import NOT_AVAILABLE, object_or_empty


@dataclass(frozen=True)
class ControlScores:
    """The z scores of a scan.

    Attributes:
        z: by the full name of the region, without those that are not available.
        cells: the row of the scan in the table, by column.
        summary: what the scores are relative to.
    """

    z: Mapping[str, float]
    cells: Mapping[str, str]
    summary: str

    @property
    def caption(self) -> str:
        """What the scores are, in sentences."""
        own = (
            " The scan is one of the controls and is compared with the others." if self._says(IN_CONTROLS, "1") else ""
        )
        mask = f" Brain mask, without head size: {self.z[BRAIN_MASK]:+.2f}." if BRAIN_MASK in self.z else ""
        return f"{self.summary}. {NORMAL} (▲ ▼).{own}{mask}"

    @property
    def beyond(self) -> str:
        """How many regions are beyond those of normal brains."""
        count = sum(bool(self.side(name)) for name in self.z if name not in (BRAIN_MASK, INTRACRANIAL))
        return f"{count} beyond ±{FAR} of the controls"

    @property
    def warning(self) -> str:
        """What restricts the scores; empty if nothing does."""
        if not self.z:
            return "No z scores: a covariate of the scan is unknown, or no control is like it."
        if self._says(EXTRAPOLATED, NOT_AVAILABLE):
            return ""
        return f"The z scores are extrapolated, beyond the range of the controls: {self.cells[EXTRAPOLATED]}."

    def side(self, region: str) -> str:
        """Return whether a region is beyond those of normal brains: ``above``, ``below`` or empty."""
        z = self.z.get(region, 0.0)
        return "" if abs(z) <= FAR else "above" if z > 0 else "below"

    def _says(self, column: str, cell: str) -> bool:
        return self.cells.get(column, NOT_AVAILABLE) == cell


def control_scores(output_dir: Path, result: Result) -> ControlScores | None:
    """Return the z scores of a scan; None without them, or if the scan was segmented again since they were computed."""
    table = output_dir / group_table(result.model, result.protocol, "zscore")
    about = {
        name: entry
        for name, entry in object_or_empty(with_extension(table, ".json")).items()
        if isinstance(entry, dict)
    }
    names = {name: str(entry["LongName"]) for name, entry in about.items() if "LongName" in entry}
    try:
        if table.stat().st_mtime_ns < result.path.stat().st_mtime_ns:
            return None
        cells = _row(table, result.source)
        z = {full: float(cell) for name, full in names.items() if (cell := cells[name]) != NOT_AVAILABLE}
        return ControlScores(z, cells, str(about[CONTROLS][SUMMARY]))
    except (OSError, ValueError, KeyError):  # no table, or an edited one
        return None


def _row(table: Path, source: Mapping[str, str]) -> dict[str, str]:
    """Return the row of a scan in a table whose first columns identify it; empty without one."""
    ids = entity_cells(source)
    with table.open(encoding="utf-8") as stream:
        columns = stream.readline().rstrip("\n").split("\t")
        start = "".join(f"{ids.get(name, NOT_AVAILABLE)}\t" for name in columns[: columns.index(STATUS)])
        line = next((line for line in stream if line.startswith(start)), "")
    return dict(zip(columns, line.rstrip("\n").split("\t"), strict=True)) if line else {}
