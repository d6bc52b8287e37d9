"""The page of the level ``evaluate``: agreement of label maps for each region and each scan."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bidsseg.bids.names import with_extension
from bidsseg.bids.outputs import AgreementPaths, report_path
from bidsseg.bids.query import images_of
from bidsseg.bids.scan import Scan, without_added
from bidsseg.errors import BidssegError
from bidsseg.evaluation.bootstrap import Estimate
from bidsseg.evaluation.comparison import Case, read_pair
from bidsseg.evaluation.summary import ABSOLUTE, Study, Summary
from bidsseg.image.nifti import read_image
from bidsseg.image.volume import Volume
from bidsseg.report import agreement_plots as plots
from bidsseg.report import difference
from bidsseg.report.page import write_page

AT_MOST = 1000
"""Largest number of scans in a table on the page."""
PICTURED = 6
"""Number of scans with the lowest Dice that have a picture."""
LOWEST = 3
"""Number of regions with the lowest Dice that are named beside a picture."""
PLOTTED = 8
"""Number of regions whose volumes are plotted before the others are unfolded."""
FIGURES = {
    "dice": "mean Dice",
    "hausdorff95-mm": "95 % Hausdorff distance (mm)",
    "surface-distance-mm": "mean surface distance (mm)",
    ABSOLUTE: "volume difference without sign (%)",
    "voxel-error": "voxel error",
    "lesion-f1": "lesion-wise F1",
    "lesion-precision": "lesion-wise precision",
    "lesion-recall": "lesion-wise recall",
}
"""Measures at the top of the page."""


@dataclass(frozen=True)
class Row:
    """A scan in the table.

    Attributes:
        address: address of the scan's page, empty if there is none.
        measures: mean of each measure over the regions of the scan, None if it is undefined.
        lowest: regions with the lowest Dice, and their Dice.
        volumes_mm3: labelled volume in the label map and in the reference.
        lesions: numbers of lesions in the label map and in the reference; None for a protocol without lesions.
    """

    key: str
    address: str
    measures: dict[str, float | None]
    lowest: list[tuple[str, float]]
    volumes_mm3: tuple[float, float]
    lesions: tuple[int, int] | None


def agreement_page(output_dir: Path, bids_dir: Path, paths: AgreementPaths, *, study: Study) -> Path:
    """Write the page of a comparison and return its path.

    Args:
        bids_dir: dataset with the T1w images that the pictures show below the outlines, if it has them.
        paths: paths of page and tables relative to the output folder; the page links the tables.
    """
    order = np.argsort(np.nan_to_num(study.scan_means["dice"], nan=np.inf), kind="stable")
    rows = {int(place): _row(study, int(place), output_dir) for place in order[:AT_MOST]}
    with_dice = [place for place in rows if np.isfinite(study.scan_means["dice"][place])]
    summaries = study.summaries[1:]
    by_dice = sorted(summaries, key=lambda summary: -summary.measures["dice"].mean)
    by_correlation = sorted(summaries, key=lambda summary: np.nan_to_num(summary.correlation.mean, nan=np.inf))
    page = output_dir / paths.page
    content = {
        "title": f"Agreement · {study.protocol.name}",
        "study": study,
        "about": study.about,
        "tables": [(path, with_extension(path, ".json")) for path in (paths.table, paths.summary)],
        "overall": study.summaries[0],
        "figures": {title: study.summaries[0].measures[name] for name, title in FIGURES.items()
                    if name in study.summaries[0].measures},
        "regions": [(summary, _box(study, summary)) for summary in by_dice],
        "volumes": [_volumes(study, summary) for summary in by_correlation],
        "plotted": PLOTTED,
        "rows": list(rows.values()),
        "at_most": AT_MOST,
        "points": plots.POINTS,
        "pictures": [(rows[place], *_picture(study.cases[place], study, bids_dir)) for place in with_dice[:PICTURED]],
        "colors": {"found": difference.FOUND, "reference": difference.REFERENCE, "both": difference.BOTH},
        "interval": interval,
    }  # fmt: skip
    write_page(page, "agreement.html", content)
    return page


def interval(estimate: Estimate, digits: int = 3) -> str:
    """Return the ends of an interval in words; empty if there is none.

    >>> interval(Estimate(0.5, 0.25, 0.75, 9), 2)
    '0.25 to 0.75'
    """
    return f"{estimate.low:.{digits}f} to {estimate.high:.{digits}f}" if np.isfinite(estimate.low) else ""


def _row(study: Study, place: int, output_dir: Path) -> Row:
    case, dice = study.cases[place], study.measures["dice"][place]
    lowest = [int(region) for region in np.argsort(dice) if np.isfinite(dice[region])][:LOWEST]
    page = report_path(Scan(dict(case.pair.source), Path()))
    means = {name: float(values[place]) for name, values in study.scan_means.items()}
    lesions = case.lesions
    return Row(
        case.pair.key,
        page.as_posix() if (output_dir / page).is_file() else "",
        {name: value if np.isfinite(value) else None for name, value in means.items()},
        [(study.regions[region].name, float(dice[region])) for region in lowest],
        (float(np.nansum(study.volumes[0][place])), float(np.nansum(study.volumes[1][place]))),
        None if lesions is None else (int(np.nansum(lesions.found)), int(np.nansum(lesions.reference))),
    )


def _box(study: Study, summary: Summary) -> plots.Box | None:
    assert summary.region is not None
    return plots.Box.of(study.measures["dice"][:, study.regions.index(summary.region)])


def _volumes(study: Study, summary: Summary) -> plots.VolumePlots:
    assert summary.region is not None
    place = study.regions.index(summary.region)
    return plots.volume_plots(summary, study.volumes[0][:, place], study.volumes[1][:, place])


def _picture(case: Case, study: Study, bids_dir: Path) -> Iterator[str]:
    """Yield the picture of a scan as a data URI, and a remark on its background."""
    found, reference = read_pair(case.pair, study.protocol, study.about.mask)
    image = _image(case, reference, bids_dir)
    png = difference.difference_picture(found, reference, image)
    yield f"data:image/png;base64,{base64.b64encode(png).decode()}"
    yield "" if image is not None else "no image on this grid"


def _image(case: Case, grid: Volume, bids_dir: Path) -> Volume | None:
    """Return an image of a scan on the grid of the label maps, preferably the T1w; None if there is none."""
    source = case.pair.source
    for path in dict.fromkeys([*images_of(bids_dir, source), *images_of(bids_dir, without_added(source))]):
        try:
            image = read_image(path)[0]
        except BidssegError:
            continue
        if image.on_grid_of(grid):
            return image
    return None
