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

SPACE = "halfway"
"""The ``space-`` of images between the sessions."""
ORIGINAL = "orig"
"""The ``space-`` and the reference of images on the grid of the T1w of a session."""
TOGETHER = "longitudinal"
"""What follows the name of the model in the ``desc-`` of label maps on that grid."""


@dataclass(frozen=True)
class Series:
    """One scan of each session of a participant.

    Attributes:
        scans: two or more, in the order of their dates if all are known, otherwise of their labels.
        years: since the first scan; None unless all dates are known.
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
    """Return the participants with two or more sessions, and a note for each reason why others are not compared.

    Args:
        scans: sorted by participant. The first T1w of each session is used.
    """
    marks, found = Marks(bids_dir), list[Series]()
    left: dict[str, list[str]] = {}
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
        dates = {label: acquired(scan, marks) for label, scan in sessions.items()}
        known = {label: date for label, date in dates.items() if date is not None}
        order = list(sessions)
        years: list[float | None] = [None] * len(order)
        if len(known) == len(sessions):
            order = sorted(sessions, key=lambda label: known[label])
            years = [_years(known[order[0]], known[label]) for label in order]
        found.append(Series([sessions[label] for label in order], years))
    return found, [f"not compared: {listed(names)}: {reason}" for reason, names in left.items()]


def acquired(scan: Scan, marks: Marks) -> datetime | None:
    """Return when a scan was acquired: ``acq_time`` in its ``scans.tsv``, or in ``sessions.tsv``; None if unknown."""
    of_scan = _time(lambda: marks.of_scan(scan.entities, scan.t1w.name))
    return of_scan or _time(lambda: marks.of_session(scan.entities))


def _time(rows: Callable[[], list[Row]]) -> datetime | None:
    """Return the date in the first row with ``acq_time``; None if it is unknown, or a table cannot be read."""
    try:
        text = next((row["acq_time"] for row in rows() if "acq_time" in row), "")
        return datetime.fromisoformat(text).replace(tzinfo=None)
    except (BidssegError, ValueError):
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
