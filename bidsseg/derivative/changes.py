"""Changes between the sessions of a participant: volumes of regions, and single lesions."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from nibabel.affines import apply_affine

from bidsseg.bids.particulars import DAYS_PER_YEAR
from bidsseg.derivative.sidecars import VOLUMES
from bidsseg.derivative.volumes import volume_table
from bidsseg.labels.protocol import Protocol
from bidsseg.models.card import BRAIN

if TYPE_CHECKING:
    import pandas as pd

    from bidsseg.segmentation.result import Segmentation

BORDER_MM = 0.25
"""A lesion is enlarged or shrunken if its border has moved farther than this on average."""
SPHERE = (3 / (4 * np.pi)) ** (1 / 3)
"""Radius of a sphere with the volume 1."""
STATUSES = {
    "first": "present at the first session",
    "new": "not present at the session before",
    "enlarged": f"larger than at the session before: its border moved by more than {BORDER_MM} mm on average",
    "stable": "neither enlarged nor shrunken since the session before",
    "shrunken": f"smaller than at the session before: its border moved by more than {BORDER_MM} mm on average",
    "vanished": "present at the session before, and not at this one",
    "absent": "present neither at this session nor at the one before",
}
"""The column ``status`` of the table of lesions."""
CHANGES: dict[str, dict[str, Any]] = {
    "session_id": {"Description": "Session"},
    "years": {"Description": "Time since the first session; n/a unless all have acq_time in scans.tsv or sessions.tsv, "
              "and not all on one day",
              "Units": "year"},
    **{name: text for name, text in VOLUMES.items() if name not in ("voxels", "expected-dice")},
    "change-mm3": {"Description": "Change of softvolume-mm3 since the first session; of the brain mask, and of a "
                   "region that was corrected at this or the first session, that of volume-mm3", "Units": "mm^3"},
    "change-percent": {"Description": "The change as a percentage of the volume at the first session", "Units": "%"},
    "change-percent-per-year": {"Description": "change-percent divided by years; n/a less than a day after the first "
                                "session", "Units": "%/year"},
    "smallest-change-percent": {"Description": "Change that two scans of an unchanged head exceed in 5 % of cases "
                                "(1.96 SD of the differences); n/a where it was not measured, and for a change between "
                                "counted voxels", "Units": "%"},
    "corrected": {"Description": "Whether the region, or the brain mask, was corrected by hand at this session",
                  "Levels": {"1": "yes; softvolume-mm3 is then n/a", "0": "no"}},
}  # fmt: skip
"""Columns of the table of regions."""
LESION_CHANGES: dict[str, dict[str, Any]] = {
    "lesion": {"Description": "Number of the lesion: a connected piece of the voxels that are a lesion at any session"},
    "x-mm": {"Description": "Centre of the lesion in the halfway space, to the right", "Units": "mm"},
    "y-mm": {"Description": "Centre of the lesion in the halfway space, to the front", "Units": "mm"},
    "z-mm": {"Description": "Centre of the lesion in the halfway space, upwards", "Units": "mm"},
    "session_id": {"Description": "Session"},
    "volume-mm3": {"Description": "Volume of the lesion at this session", "Units": "mm^3"},
    "change-mm3": {"Description": "Change of the volume since the session before", "Units": "mm^3"},
    "status": {"Description": "Comparison with the session before", "Levels": STATUSES},
    "merged": {"Description": "Number of connected pieces of the lesion at this session that were two or more at the "
               "session before"},
    "split": {"Description": "Number of connected pieces at the session before that are two or more at this session"},
    "corrected": {"Description": "Whether the mask of lesions of this session was corrected by hand",
                  "Levels": {"1": "yes", "0": "no"}},
}  # fmt: skip
"""Columns of the table of lesions."""


@dataclass(frozen=True, eq=False)
class Visits:
    """The segmentations of the sessions of a participant, on one grid.

    Attributes:
        labels: ``ses-1`` …, in the order of time.
        years: since the first session; None where unknown.
        affine: (4, 4) of the grid, RAS+ mm.
    """

    labels: Sequence[str]
    years: Sequence[float | None]
    results: Sequence[Segmentation]
    affine: np.ndarray

    @property
    def voxel_mm3(self) -> float:
        """Volume of a voxel."""
        return float(abs(np.linalg.det(self.affine[:3, :3])))


def change_table(visits: Visits, protocol: Protocol, smallest_percent: Mapping[int, float]) -> pd.DataFrame:
    """Return a row for each session and region, and one for each session and the brain mask.

    Changes are those of the sum of probabilities since the first session; of the brain mask, and of a region that was
    corrected at either session, those of the counted voxels: the two volumes differ even if nothing changed.

    Args:
        smallest_percent: smallest change that noise does not explain, by the index of the region; the others are
            unknown.

    Returns:
        The columns of ``CHANGES``, to three decimals.
    """
    import pandas as pd

    tables: list[pd.DataFrame] = []
    for label, years, result in zip(visits.labels, visits.years, visits.results, strict=True):
        table = volume_table(
            protocol,
            result.labels[protocol.name],
            result.soft_mm3[protocol.name],
            voxel_volume_mm3=visits.voxel_mm3,
            brain=result.brain,
        ).drop(columns=["voxels", "expected-dice"])
        table.insert(0, "session_id", label)
        table.insert(1, "years", np.nan if years is None else years)
        first = tables[0] if tables else table
        counted = table["softvolume-mm3"].isna() | first["softvolume-mm3"].isna()
        measured, start = (each["softvolume-mm3"].mask(counted, each["volume-mm3"]) for each in (table, first))
        with np.errstate(divide="ignore", invalid="ignore"):
            percent = (100 * (measured - start) / start).where(start > 0)
            table["change-mm3"] = measured - start
            table["change-percent"] = percent
            table["change-percent-per-year"] = (percent / table["years"]).where(table["years"] >= 1 / DAYS_PER_YEAR)
        if not tables:
            table[["change-mm3", "change-percent"]] = np.nan
        smallest = [np.nan if pd.isna(index) else smallest_percent.get(int(index), np.nan) for index in table["index"]]
        table["smallest-change-percent"] = pd.Series(smallest, dtype=float).mask(counted)
        is_region = table["index"].notna()
        table["corrected"] = table["softvolume-mm3"].isna().where(is_region, BRAIN in result.manual).astype(int)
        tables.append(table)
    whole: pd.DataFrame = pd.concat(tables, ignore_index=True)
    return whole.round({name: 3 for name in whole.columns if name.endswith(("mm3", "percent", "year", "years"))})


def lesion_table(visits: Visits, masks: Sequence[np.ndarray], *, corrected: Container[str] = ()) -> pd.DataFrame:
    """Return a row for each lesion and session, with its volume and its status since the session before.

    A lesion is a connected piece of the voxels that are a lesion at any session, so that pieces which merge or split
    keep one number.

    Args:
        masks: lesions of each session, booleans (X, Y, Z).
        corrected: labels of the sessions whose mask was corrected by hand.

    Returns:
        The columns of ``LESION_CHANGES``. Lesions are sorted by their largest volume.
    """
    import pandas as pd
    from scipy import ndimage

    from bidsseg.segmentation.lesions import TOUCHING

    pieces, count = ndimage.label(np.any(masks, 0), TOUCHING)
    mm3 = np.array([np.bincount(pieces[mask], minlength=count + 1)[1:] for mask in masks]) * visits.voxel_mm3
    parts = [ndimage.label(mask, TOUCHING)[0] for mask in masks]
    first = np.full(count, np.nan)
    merged = np.array([first, *(_joining(now, before, pieces) for before, now in pairwise(parts))])
    split = np.array([first, *(_joining(before, now, pieces) for before, now in pairwise(parts))])
    numbers = np.argsort(-mm3.max(0), kind="stable") if count else np.zeros(0, int)
    centres = ndimage.center_of_mass(pieces > 0, pieces, numbers + 1) if count else []
    rows: list[dict[str, Any]] = []
    for lesion, (number, centre) in enumerate(zip(numbers, centres, strict=True), 1):
        x, y, z = apply_affine(visits.affine, centre).round(1).tolist()
        before: float | None = None
        of_sessions = zip(visits.labels, mm3[:, number].tolist(), merged[:, number], split[:, number], strict=True)
        for label, volume, joined, parted in of_sessions:
            change = np.nan if before is None else volume - before
            row = {"lesion": lesion, "x-mm": x, "y-mm": y, "z-mm": z, "session_id": label, "volume-mm3": volume}
            row |= {"change-mm3": change, "status": lesion_status(before, volume), "merged": joined, "split": parted}
            rows.append({**row, "corrected": int(label in corrected)})
            before = volume
    table = pd.DataFrame(rows, columns=list(LESION_CHANGES)).round({"volume-mm3": 3, "change-mm3": 3})
    return table.astype({"merged": "Int64", "split": "Int64"})


def _joining(parts: np.ndarray, others: np.ndarray, lesions: np.ndarray) -> np.ndarray:
    """Return for each lesion the number of its parts that overlap with two or more other parts.

    Args:
        parts, others: numbers of the connected pieces of two masks, integers (X, Y, Z); 0 elsewhere.
        lesions: number of the lesion of each voxel of either mask, from 1.
    """
    from scipy import ndimage

    both = (parts > 0) & (others > 0)
    pairs = np.unique([parts[both], others[both]], axis=1)
    found, overlaps = np.unique(pairs[0], return_counts=True)
    lesion = np.asarray(ndimage.maximum(lesions, parts, found[overlaps > 1]), int)
    return np.bincount(lesion, minlength=lesions.max() + 1)[1:]


def lesion_status(before_mm3: float | None, now_mm3: float) -> str:
    """Return the status of a lesion from its volume at the session before, None at the first session."""
    if before_mm3 is None:
        return "first" if now_mm3 else "absent"
    if not before_mm3:
        return "new" if now_mm3 else "absent"
    if not now_mm3:
        return "vanished"
    if abs(SPHERE * (np.cbrt(now_mm3) - np.cbrt(before_mm3))) <= BORDER_MM:
        return "stable"
    return "enlarged" if now_mm3 > before_mm3 else "shrunken"
