"""The text of ``stats/aseg.stats`` in the form of FreeSurfer's ``mri_segstats``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from bidsseg import __version__
from bidsseg.derivative.volumes import values_by_region
from bidsseg.labels.protocol import Protocol

LATERAL_VENTRICLES = (4, 5, 31, 43, 44, 63)
"""Lateral ventricles with their inferior horns and the choroid plexus: ``VentricleChoroidVol`` of FreeSurfer."""
MIDLINE_VENTRICLES = (14, 15, 72)
SUBCORTICAL = (10, 11, 12, 13, 17, 18, 26, 28, 49, 50, 51, 52, 53, 54, 58, 60)
CSF = 24
LEFT_CORTEX, RIGHT_CORTEX = 3, 42
LEFT_WHITE, RIGHT_WHITE = 2, 41
CEREBELLAR_CORTEX = (8, 47)

COLUMNS = (
    ("Index", "Index", "NA"),
    ("SegId", "Segmentation Id", "NA"),
    ("NVoxels", "Number of Voxels", "unitless"),
    ("Volume_mm3", "Volume", "mm^3"),
    ("StructName", "Structure Name", "NA"),
    ("normMean", "Intensity normMean", "unknown"),
    ("normStdDev", "Itensity normStdDev", "unknown"),
    ("normMin", "Intensity normMin", "unknown"),
    ("normMax", "Intensity normMax", "unknown"),
    ("normRange", "Intensity normRange", "unknown"),
)
"""Name, description and unit of each column; the spelling of the second intensity is FreeSurfer's."""
ABOUT_INTRACRANIAL = "# eTIV is the volume inside of the skull in the image, not an estimate from a registration."


@dataclass(frozen=True, eq=False)
class Segmented:
    """What the table is about.

    Attributes:
        subject: name of the folder.
        volumes: volume of each region on the grid of the scan (mm³), by its value.
        mask_mm3: volume of the brain mask.
        intracranial_mm3: estimated intracranial volume; None if it is not known.
        labels: ``aseg.mgz``, shape (X, Y, Z).
        intensities: ``orig.mgz``, on the same grid.
        protocol: regions with FreeSurfer's values; the abbreviations are its names.
    """

    subject: str
    volumes: Mapping[int, float]
    mask_mm3: float
    intracranial_mm3: float | None
    labels: np.ndarray
    intensities: np.ndarray
    protocol: Protocol


def aseg_stats(about: Segmented) -> str:
    """Return the table: a header with measures of the whole brain, then a row for each region that is not empty."""
    rows = list(_rows(about))
    columns = [
        f"# TableCol {number:2} {key} {text} "
        for number, column in enumerate(COLUMNS, 1)
        for key, text in zip(("ColHeader", "FieldName", "Units    "), column, strict=True)
    ]
    return "".join(
        f"{line}\n"
        for line in (
            "# Title Segmentation Statistics ",
            "# ",
            "# generating_program bidsseg",
            f"# version {__version__}",
            "# anatomy_type volume",
            "# ",
            f"# subjectname {about.subject}",
            *(f"# Measure {measure}, mm^3" for measure in _measures(about)),
            "# BrainSeg is the sum of all regions except CSF. Mask is the brain mask.",
            *([ABOUT_INTRACRANIAL] if about.intracranial_mm3 is not None else []),
            "# Volumes are those on the grid of the scan; voxels and intensities are those of aseg.mgz and orig.mgz.",
            "# SegVolFile mri/aseg.mgz ",
            "# ColorTable label/aseg.ctab ",
            "# InVolFile  mri/orig.mgz ",
            "# PVVolFile  none ",
            "# Only reporting non-empty segmentations",
            "# VoxelVolume_mm3 1 ",
            *columns,
            f"# NRows {len(rows)} ",
            f"# NTableCols {len(COLUMNS)} ",
            f"# ColHeaders  {' '.join(name for name, _, _ in COLUMNS)} ",
            *rows,
        )
    )


def color_table(protocol: Protocol) -> str:
    """Return the regions in the form of ``FreeSurferColorLUT.txt``."""
    lines = ["#No. Label Name:                            R   G   B   A"]
    for region in protocol.regions:
        red, green, blue = region.rgb
        name = "Unknown" if region.index == 0 else region.abbreviation
        lines.append(f"{region.index:<4}{name:<40}{red:>4}{green:>4}{blue:>4}   0")
    return "".join(f"{line}\n" for line in lines)


def _measures(about: Segmented) -> Iterable[str]:
    """Yield name, short name, description and value of each measure of the whole brain that the regions give."""

    def total(*values: int) -> float:
        return sum(about.volumes.get(value, 0.0) for value in values)

    brain = sum(volume for value, volume in about.volumes.items() if value not in (0, CSF))
    cortex, below = total(LEFT_CORTEX, RIGHT_CORTEX), total(*SUBCORTICAL)
    measures = {
        "BrainSeg, BrainSegVol, Brain Segmentation Volume": brain,
        "BrainSegNotVent, BrainSegVolNotVent, Brain Segmentation Volume Without Ventricles": brain
        - total(*LATERAL_VENTRICLES, *MIDLINE_VENTRICLES),
        "VentricleChoroidVol, VentricleChoroidVol, Volume of ventricles and choroid plexus": total(*LATERAL_VENTRICLES),
        "lhCortex, lhCortexVol, Left hemisphere cortical gray matter volume": total(LEFT_CORTEX),
        "rhCortex, rhCortexVol, Right hemisphere cortical gray matter volume": total(RIGHT_CORTEX),
        "Cortex, CortexVol, Total cortical gray matter volume": cortex,
        "lhCerebralWhiteMatter, lhCerebralWhiteMatterVol, Left hemisphere cerebral white matter volume": total(
            LEFT_WHITE
        ),
        "rhCerebralWhiteMatter, rhCerebralWhiteMatterVol, Right hemisphere cerebral white matter volume": total(
            RIGHT_WHITE
        ),
        "CerebralWhiteMatter, CerebralWhiteMatterVol, Total cerebral white matter volume": total(
            LEFT_WHITE, RIGHT_WHITE
        ),
        "SubCortGray, SubCortGrayVol, Subcortical gray matter volume": below,
        "TotalGray, TotalGrayVol, Total gray matter volume": cortex + below + total(*CEREBELLAR_CORTEX),
        "Mask, MaskVol, Mask Volume": about.mask_mm3,
    }
    if about.intracranial_mm3 is not None:
        measures["EstimatedTotalIntraCranialVol, eTIV, Estimated Total Intracranial Volume"] = about.intracranial_mm3
    for name, value in measures.items():
        yield f"{name}, {value:.6f}"


def _rows(about: Segmented) -> Iterable[str]:
    """Yield the row of each region of the scan; intensities are 0 if it is too small for a voxel of ``aseg.mgz``."""
    inside = about.labels > 0
    number = 0
    for region, values in values_by_region(about.intensities[inside], about.labels[inside], about.protocol):
        volume = about.volumes.get(region.index, 0.0)
        if not volume:
            continue
        number += 1
        here = values.astype(np.float64) if values.size else np.zeros(1)
        low, high = here.min(), here.max()
        figures = f"{here.mean():10.4f} {here.std(ddof=1) if here.size > 1 else 0:10.4f} {low:10.4f} {high:10.4f}"
        yield (
            f"{number:3} {region.index:3}  {values.size:8} {volume:9.1f}  {region.abbreviation:<30} {figures} "
            f"{high - low:10.4f} "
        )
