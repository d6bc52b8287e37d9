"""The page of the sessions of a participant: pictures side by side, the change in colour, and tables of changes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from bidsseg.bids.names import with_extension
from bidsseg.bids.outputs import report_path
from bidsseg.derivative.results import is_own_page
from bidsseg.derivative.series import SeriesJob, Visit
from bidsseg.derivative.sidecar_keys import messages, read_sidecar
from bidsseg.derivative.volumes import BRAIN_MASK
from bidsseg.image.matching import changes
from bidsseg.reading import number_or_none, object_or_empty, read_table
from bidsseg.report.difference import outline
from bidsseg.report.mosaic import PLANES, Row, grey_window, labelled_bounds, name_sides, write_png
from bidsseg.report.page import write_page
from bidsseg.report.scan_page import embedded

PIXELS_PER_MM = 1.6
SLICES = (3, 2, 1)
"""Number of axial, coronal and sagittal slices."""
VISIBLE = 3.0
"""Standard deviations of the noise from which a difference of brightness is drawn; twice as far, it is opaque."""
GAINED, LOST, KEPT = (230, 60, 50), (60, 120, 255), (255, 208, 96)
"""Colours of voxels that became brighter or a lesion, that became darker or ceased to be a lesion, and of lesions."""
TITLE = 22
"""Height in pixels of the titles of the columns."""
GAP = 6
"""Pixels between columns."""

OfLesion = tuple[float | None, str, list[str]]
"""Volume (mm³) of a lesion at a session, its status, and whether pieces of it merged or split."""


@dataclass(frozen=True)
class Line:
    """A region on the page.

    Attributes:
        volumes_mm3: at each session, counted voxels if one of them was corrected; None where unknown.
        corrected: sessions at which the region was corrected by hand.
        percent, per_year, smallest: change (%) from the first to the last session, for each year, and the smallest
            change that noise does not explain; None where unknown.
    """

    name: str
    abbreviation: str
    volumes_mm3: list[float | None]
    corrected: list[str]
    percent: float | None
    per_year: float | None
    smallest: float | None

    @property
    def is_beyond_noise(self) -> bool:
        """Whether the change is larger than noise explains."""
        return self.percent is not None and self.smallest is not None and abs(self.percent) > self.smallest


def write_change_figure(job: SeriesJob, visits: Sequence[Visit]) -> None:
    """Write the picture of a comparison: a column for each session, and the change from the first to the last.

    The slices show most of the change. With lesions, the picture shows the FLAIR, if there is one.
    """
    images = [list(visit.images.volumes.values())[-1] for visit in visits]
    first, last, spacing = images[0], images[-1], images[0].spacing_mm
    brain = visits[0].result.brain & visits[-1].result.brain
    if not brain.any():
        brain = np.ones(first.shape, bool)
    far = changes([first.data, last.data], brain, float(spacing[0]))[1] * brain
    lesions = [visit.result.lesion for visit in visits]
    bounds = labelled_bounds([visit.result.brain for visit in visits], first.shape)
    window = grey_window(first.data, bounds)
    shown = np.abs(far) > VISIBLE if lesions[0] is None or lesions[-1] is None else lesions[0] ^ lesions[-1]
    rows = []
    for plane, count in zip(PLANES, SLICES, strict=True):
        weight = shown.sum(plane[1:])
        row = Row.make(
            plane,
            first.shape,
            spacing,
            bounds=bounds,
            positions=_positions(weight, bounds[plane[0]], count),
            pixels_per_mm=PIXELS_PER_MM,
        )
        columns = [row.greys(image.data, window) for image in images] + [row.greys(last.data, window)]
        for cells, lesion in zip(columns, lesions, strict=False):
            if lesion is not None:
                _outline(cells, row, lesion)
        _colour(columns[-1], row, far, before=lesions[0], after=lesions[-1])
        rows += [(row, list(cells)) for cells in zip(*columns, strict=True)]
    titles = [*_titles(job), "change"]
    write_png(_assembled(rows, titles), job.output_dir / job.paths.figure)


def longitudinal_page(job: SeriesJob) -> Path:
    """Write the page of a comparison, from the files in the output folder, and return its path."""
    paths, output_dir = job.paths, job.output_dir
    tables = {name: list(_lines(output_dir / path)) for name, path in paths.tables.items()}
    lesions = read_table(output_dir / paths.lesions) if paths.lesions else []
    warnings: dict[str, None] = {}
    for label, places in zip(job.series.sessions, paths.sessions, strict=True):
        for text in messages(read_sidecar(output_dir / with_extension(places.t1w, ".json"))):
            warnings[f"{label}: {text}"] = None
    about = [object_or_empty(output_dir / with_extension(path, ".json")) for path in paths.tables.values()]
    noise = next((str(found["NoiseMeasuredOn"]) for found in about if "NoiseMeasuredOn" in found), "")
    pages = [report_path(scan) for scan in job.series.scans]
    native = [path for session in paths.sessions for path in session.native.values()]
    content = {
        "title": f"{job.series.key} · change over time",
        "model": job.card.name,
        "sessions": list(zip(job.series.sessions, job.series.years, pages, strict=True)),
        "linked": {page for page in pages if is_own_page(output_dir / page)},
        "picture": embedded(output_dir / paths.figure),
        "tables": tables,
        "noise": noise,
        "lesions": _lesions(lesions),
        "has_lesions": paths.lesions is not None,
        "warnings": list(warnings),
        "files": [path for path in (*paths.tables.values(), paths.lesions, paths.mean, *native) if path is not None],
        "colors": {"gained": GAINED, "lost": LOST, "lesion": KEPT},
        "visible": VISIBLE,
    }
    write_page(output_dir / paths.page, "longitudinal.html", content)
    return output_dir / paths.page


def _lines(table: Path) -> Iterator[Line]:
    """Yield a line for each region of a table, the brain mask last."""
    of_region: dict[str, list[dict[str, str]]] = {}
    for row in read_table(table):
        of_region.setdefault(row["name"], []).append(row)
    for name, rows in of_region.items():
        corrected = [row["session_id"] for row in rows if row["corrected"] == "1"]
        column = "volume-mm3" if corrected or name == BRAIN_MASK else "softvolume-mm3"
        last = rows[-1]
        yield Line(
            name,
            last["abbreviation"],
            [number_or_none(row[column]) for row in rows],
            corrected,
            _rounded(last["change-percent"]),
            _rounded(last["change-percent-per-year"]),
            number_or_none(last["smallest-change-percent"]),
        )


def _lesions(rows: Sequence[dict[str, str]]) -> list[tuple[dict[str, str], list[OfLesion]]]:
    """Return each lesion with its volume and status at each session."""
    found: dict[str, tuple[dict[str, str], list[OfLesion]]] = {}
    for row in rows:
        pieces = [kind for kind in ("merged", "split") if (number_or_none(row[kind]) or 0) > 0]
        found.setdefault(row["lesion"], (row, []))[1].append((number_or_none(row["volume-mm3"]), row["status"], pieces))
    return list(found.values())


def _rounded(text: str) -> float | None:
    """Return a number to two decimals, without a negative zero."""
    value = number_or_none(text)
    return None if value is None else round(value, 2) + 0.0


# -- the picture -------------------------------------------------------------------------------------------------------


def _positions(weight: np.ndarray, ends: tuple[int, int], count: int) -> list[int]:
    """Return the slice of each of several parts of the brain that shows most change, or else its middle."""
    edges = np.linspace(ends[0] + (ends[1] - ends[0]) / 8, ends[1] - (ends[1] - ends[0]) / 8, count + 1).round()
    parts = [range(int(low), max(int(high), int(low) + 1)) for low, high in itertools.pairwise(edges)]
    middles = [part[len(part) // 2] for part in parts]
    most = [max(part, key=lambda place: weight[place]) for part in parts]
    return [best if weight[best] else middle for best, middle in zip(most, middles, strict=True)]


def _outline(cells: Sequence[np.ndarray], row: Row, lesion: np.ndarray) -> None:
    """Draw the outlines of lesions (X, Y, Z) on the slices of a row."""
    for cell, labels in zip(cells, row.enlarged(lesion), strict=True):
        cell[outline(labels)] = KEPT


def _colour(
    cells: Sequence[np.ndarray], row: Row, far: np.ndarray, *, before: np.ndarray | None, after: np.ndarray | None
) -> None:
    """Draw the change on the slices of a row: lesions gained and lost, or differences of brightness (SD of the noise).

    Args:
        far: (X, Y, Z) in standard deviations of the noise.
        before, after: lesions of the first and last session; None for a model without lesions.
    """
    if before is None or after is None:
        strength = np.clip(np.abs(far) / VISIBLE - 1, 0, 1) * np.sign(far)
        steps = np.rint(np.nan_to_num(strength) * 100).astype(np.int32)
        for cell, values in zip(cells, row.enlarged(steps), strict=True):
            for color, opacity in ((GAINED, values.clip(min=0)), (LOST, (-values).clip(min=0))):
                share = opacity[..., None] / 100
                cell[:] = (cell * (1 - share) + np.array(color) * share).astype(np.uint8)
        return
    drawn = np.where(after & ~before, 1, 0) + np.where(before & ~after, 2, 0) + np.where(before & after, 3, 0)
    for cell, values in zip(cells, row.enlarged(drawn), strict=True):
        for number, color in enumerate((GAINED, LOST, KEPT), 1):
            cell[values == number] = (0.4 * cell[values == number] + 0.6 * np.array(color)).astype(np.uint8)


def _titles(job: SeriesJob) -> list[str]:
    years = job.series.years
    return [
        label if number == 0 or time is None else f"{label} ({time:+.1f} years)"
        for number, (label, time) in enumerate(zip(job.series.sessions, years, strict=True))
    ]


def _assembled(rows: Sequence[tuple[Row, list[np.ndarray]]], titles: Sequence[str]) -> np.ndarray:
    """Return all slices, a row for each position and a column for each title, (height, width, 3)."""
    width = max(row.size[0] for row, _ in rows) + GAP
    canvas = np.zeros((TITLE + sum(row.size[1] + GAP for row, _ in rows), width * len(titles), 3), np.uint8)
    top = TITLE
    for row, cells in rows:
        for column, cell in enumerate(cells):
            left = column * width + (width - cell.shape[1]) // 2
            canvas[top : top + cell.shape[0], left : left + cell.shape[1]] = cell
        top += row.size[1] + GAP
    picture = Image.fromarray(canvas)
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(14)
    for column, title in enumerate(titles):
        pen.text((column * width + width / 2, TITLE / 2), title, fill="#ffffff", font=font, anchor="mm")
    top = TITLE
    for row, _ in rows:
        name_sides(pen, row.plane, (4, width - GAP - 4), top=top + 4, size=14)
        top += row.size[1] + GAP
    return np.asarray(picture)
