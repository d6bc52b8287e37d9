"""The sessions of a participant that are compared, and the files of the comparison."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import groupby
from pathlib import Path

from bidsseg.bids.marks import Marks, Row
from bidsseg.bids.names import build_name, with_extension
from bidsseg.bids.outputs import filled
from bidsseg.bids.particulars import DAYS_PER_YEAR
from bidsseg.bids.scan import Scan
from bidsseg.errors import BidssegError, listed
from bidsseg.reading import NOT_AVAILABLE

SPACE = "halfway"
"""The ``space-`` of images between the sessions."""
ORIGINAL = "orig"
"""The ``space-`` and the reference of images on the grid of the T1w of a session."""
TOGETHER = "longitudinal"
"""What follows the name of the model in the ``desc-`` of label maps on that grid."""
UNDATED = "the sessions are in the order of their labels, and years and changes per year are not known"
"""What follows if dates cannot be used."""


@dataclass(frozen=True)
class Series:
    """One scan of each session of a participant.

    Attributes:
        scans: two or more, in the order of their dates if all are known and not on one day, otherwise of their labels.
        years: since the first scan; None unless all dates are known and not on one day.
    """

    scans: Sequence[Scan]
    years: Sequence[float | None]

    @property
    def source(self) -> dict[str, str]:
        """The entity of the participant, and a ``desc`` of the T1w."""
        return {key: self.scans[0].entities[key] for key in ("subject", "desc") if key in self.scans[0].entities}

    @property
    def key(self) -> str:
        """The participant as in file names: ``sub-01``."""
        return build_name({"subject": self.source["subject"]})

    @property
    def sessions(self) -> list[str]:
        """The labels of the sessions as in file names: ``ses-1``."""
        return [build_name({"session": scan.entities["session"]}) for scan in self.scans]


def find_series(scans: Iterable[Scan], bids_dir: Path) -> tuple[list[Series], list[str]]:
    """Return the participants with two or more sessions, and notes on those that are not compared, or without dates.

    Args:
        scans: sorted by participant. The first T1w of each session is used.
    """
    marks, found = Marks(bids_dir), list[Series]()
    left, undated = dict[str, list[str]](), dict[str, list[str]]()
    for subject, group in groupby(scans, key=lambda scan: scan.entities["subject"]):
        sessions: dict[str, Scan] = {}
        others: list[Scan] = []
        for scan in group:
            label = scan.entities.get("session")
            if label is None or sessions.setdefault(label, scan) is not scan:
                others.append(scan)
        if len(sessions) < 2:
            left.setdefault("fewer than two sessions with a usable T1w", []).append(f"sub-{subject}")
            continue
        for scan in others:
            reason = "another T1w of the session is used" if "session" in scan.entities else "in no session"
            left.setdefault(reason, []).append(scan.key)
        series, problem = _dated(list(sessions.values()), marks)
        found.append(series)
        if problem:
            undated.setdefault(problem, []).append(series.key)
    notes = [f"not compared: {listed(names)}: {reason}" for reason, names in left.items()]
    return found, [*notes, *(f"{listed(names)}: {reason}; {UNDATED}" for reason, names in undated.items())]


def _dated(scans: Sequence[Scan], marks: Marks) -> tuple[Series, str]:
    """Return the scans of a participant as a series, and what is wrong with their dates, or an empty text."""
    written = {scan.key: _written(scan, marks) for scan in scans}
    dates = {key: date for key, texts in written.items() if (date := next(filter(None, map(_date, texts)), None))}
    undated = Series(scans, [None] * len(scans))
    if wrong := next((texts[0] for key, texts in written.items() if texts and key not in dates), ""):
        return undated, f"acq_time {wrong!r} is not a date and time as BIDS has it"
    if len(dates) < len(scans):
        return undated, ""
    if len({date.date() for date in dates.values()}) == 1:
        return undated, "all sessions have the same date in acq_time"
    scans = sorted(scans, key=lambda scan: dates[scan.key])
    return Series(scans, [_years(dates[scans[0].key], dates[scan.key]) for scan in scans]), ""


def _written(scan: Scan, marks: Marks) -> list[str]:
    """Return ``acq_time`` of a scan in its ``scans.tsv`` and in ``sessions.tsv``, where it is known."""
    tables = (lambda: marks.of_scan(scan.entities, scan.t1w.name), lambda: marks.of_session(scan.entities))
    return [text for text in map(_acq_time, tables) if text not in ("", NOT_AVAILABLE)]


def _acq_time(rows: Callable[[], list[Row]]) -> str:
    """Return the first cell of ``acq_time``; empty if there is none, or a table cannot be read."""
    try:
        return next((row["acq_time"] for row in rows() if "acq_time" in row), "")
    except BidssegError:
        return ""


def _date(text: str) -> datetime | None:
    """Return the date in a cell, without its time zone; None if it is not one."""
    try:
        return datetime.fromisoformat(text).replace(tzinfo=None)
    except ValueError:
        return None


def _years(start: datetime, date: datetime) -> float:
    return (date - start).total_seconds() / 86400 / DAYS_PER_YEAR


# -- files -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SessionPaths:
    """Files of one session, relative to the output folder, in the halfway space unless noted.

    Attributes:
        t1w: the T1w, with a ``.json``.
        dseg: label map of each protocol, with a ``.json`` and the look-up table ``.tsv``.
        brain: brain mask, with a ``.json``.
        lesion: lesion mask, with a ``.json``.
        transform: motion from the T1w to the space, text; without a sidecar.
        native: label map of each protocol on the grid of the T1w, with the same files as ``dseg``.
    """

    t1w: Path
    dseg: dict[str, Path]
    brain: Path
    lesion: Path | None
    transform: Path
    native: dict[str, Path]


@dataclass(frozen=True)
class SeriesPaths:
    """Files of the comparison of the sessions of a participant, relative to the output folder.

    Attributes:
        mean: mean of the sessions, with a ``.json``.
        tables: table of each protocol, with a ``.json``.
        lesions: table of the lesions, with a ``.json``.
        sessions: files of each session.
        figure: picture for the page.
    """

    mean: Path
    tables: dict[str, Path]
    lesions: Path | None
    figure: Path
    page: Path
    sessions: list[SessionPaths] = field(default_factory=list)

    @property
    def files(self) -> list[Path]:
        """All images and tables with their sidecars, and the transforms (not figure and page)."""
        described = [self.mean, *self.tables.values(), *([self.lesions] if self.lesions else [])]
        others = []
        for session in self.sessions:
            label_maps = [*session.dseg.values(), *session.native.values()]
            described += [session.t1w, session.brain, *label_maps]
            described += [session.lesion] if session.lesion else []
            others += [session.transform, *(with_extension(path, ".tsv") for path in label_maps)]
        return [file for path in described for file in (path, with_extension(path, ".json"))] + others


def series_paths(series: Series, model: str, protocols: Sequence[str], *, lesion: bool) -> SeriesPaths:
    """Return the paths of all files of a comparison, relative to the output folder."""
    source = series.source

    def of_session(scan: Scan) -> SessionPaths:
        t1w = filled("session", "t1w", scan.entities, model=model)
        name = build_name({key: label for key, label in scan.entities.items() if key != "desc"})
        desc = scan.entities.get("desc", "")
        return SessionPaths(
            t1w,
            {p: filled("session", "dseg", scan.entities, model=model, protocol=p) for p in protocols},
            filled("session", "brain", scan.entities, model=model),
            filled("session", "lesion", scan.entities, model=model) if lesion else None,
            t1w.with_name(f"{name}_from-T1w_to-{SPACE}_mode-image_desc-{desc}{model}_xfm.txt"),
            {p: filled("session", "native", scan.entities, model=model, protocol=p) for p in protocols},
        )

    return SeriesPaths(
        mean=filled("series", "mean", source, model=model),
        tables={p: filled("series", "table", source, model=model, protocol=p) for p in protocols},
        lesions=filled("series", "lesions", source, model=model) if lesion else None,
        figure=filled("series", "figure", source, model=model),
        page=filled("series", "page", source, model=model),
        sessions=[of_session(scan) for scan in series.scans],
    )
