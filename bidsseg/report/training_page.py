"""The page of a training: its curves, its results on held-out participants, and pictures of these."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bidsseg.image.volume import Volume
from bidsseg.models.card import Card
from bidsseg.report import difference
from bidsseg.report.page import write_page

if TYPE_CHECKING:
    import pandas as pd

TRAINING_PAGE = "training.html"
CURVE = "curve.png"
PICTURED = 3
"""Number of held-out scans of each head, those with the lowest Dice, that have a picture."""


@dataclass(frozen=True, eq=False)
class Compared:
    """A label map of a held-out scan beside its annotation.

    Attributes:
        mean_dice: mean Dice over the regions.
        found, truth: region indices (X, Y, Z).
        image: the scan on the same grid.
    """

    case: str
    head: str
    annotation: str
    mean_dice: float
    found: np.ndarray
    truth: np.ndarray
    image: Volume


@dataclass(frozen=True)
class Picture:
    """A picture of a held-out scan, as a data URI."""

    case: str
    head: str
    annotation: str
    mean_dice: float
    address: str


@dataclass
class Pictures:
    """The pictures of the scans with the lowest Dice of each head."""

    kept: list[Picture] = field(default_factory=list)

    def add(self, compared: Compared) -> None:
        """Draw a scan, if its Dice is among the lowest so far."""
        others = [picture for picture in self.kept if picture.head == compared.head]
        if not np.isfinite(compared.mean_dice):
            return
        if len(others) >= PICTURED:
            best = max(others, key=lambda picture: picture.mean_dice)
            if compared.mean_dice >= best.mean_dice:
                return
            self.kept.remove(best)
        found, truth = (Volume(labels, compared.image.affine) for labels in (compared.found, compared.truth))
        png = difference.difference_picture(found, truth, compared.image)
        address = f"data:image/png;base64,{base64.b64encode(png).decode()}"
        self.kept.append(Picture(compared.case, compared.head, compared.annotation, compared.mean_dice, address))

    def lowest(self) -> list[Picture]:
        """Return the pictures, for each head the lowest Dice first."""
        heads = list(dict.fromkeys(picture.head for picture in self.kept))
        return sorted(self.kept, key=lambda picture: (heads.index(picture.head), picture.mean_dice))


@dataclass(frozen=True)
class Row:
    """A region, or all regions, in a table of results: means over scans; nan where a measure is unknown."""

    region: str
    dice: float
    lowest: float
    hausdorff95_mm: float
    found_mm3: float
    reference_mm3: float
    scans: int


def training_page(card: Card, table: pd.DataFrame | None, pictures: Sequence[Picture]) -> Path:
    """Write the page into the model's folder and return its path.

    Args:
        table: results of regions, as ``learning.validation.validate`` returns them; None if no participant was held
            out.
    """
    path, curve = card.folder / TRAINING_PAGE, card.folder / CURVE
    content = {
        "title": f"Training · {card.name}",
        "card": card,
        "facts": dict(_facts(card)),
        "curve": base64.b64encode(curve.read_bytes()).decode() if curve.is_file() else "",
        "results": list(_results(table)) if table is not None else [],
        "cross_validation": card.metrics.get("cross_validation", {}).get("split", ""),
        "selected": any("selected the weights" in entry for entry in card.data),
        "leaked": card.metrics.get("seen_by_initial_model", []),
        "held_out": card.metrics.get("held_out", []),
        "pictures": pictures,
        "colors": {"found": difference.FOUND, "reference": difference.REFERENCE, "both": difference.BOTH},
    }
    write_page(path, "training.html", content)
    return path


def _facts(card: Card) -> Iterator[tuple[str, Any]]:
    """Yield what the top of the page says about the model."""
    recipe = card.recipe
    yield "Images", card.needs
    yield "Network", f"{card.network['name']}, {card.spacing_mm:g} mm"
    yield "Steps", recipe.get("steps_done", "")
    yield "Minutes", recipe.get("minutes", "")
    yield "Training data", "; ".join(card.data)
    if "init" in recipe:
        yield "Initial model", recipe["init"]["name"]
    yield "Licence", card.licence


def _results(table: pd.DataFrame) -> Iterator[tuple[str, str, Row, list[Row]]]:
    """Yield for each head and annotation the row of all regions, and a row for each region, the lowest Dice first."""
    for (head, annotation), part in table.groupby(["head", "annotation"], sort=False):
        rows = [_row(str(name), own) for name, own in part.groupby("region", sort=False)]
        of_scans = {"dice": "mean", "hausdorff95-mm": "mean", "found-mm3": "sum", "reference-mm3": "sum"}
        whole = _row("mean over regions", part.groupby("case").agg(of_scans))
        yield str(head), str(annotation), whole, sorted(rows, key=lambda row: row.dice)


def _row(name: str, part: pd.DataFrame) -> Row:
    """Return the means of a region, or of all regions, from one row for each scan."""
    return Row(
        name,
        float(part["dice"].mean()),
        float(part["dice"].min()),
        float(part["hausdorff95-mm"].mean()),
        float(part["found-mm3"].mean()),
        float(part["reference-mm3"].mean()),
        len(part),
    )
