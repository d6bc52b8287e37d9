"""Annotations read from files: brought to the grid of their scan, and checked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from bidsseg.bids.scan import Scan
from bidsseg.errors import DataError
from bidsseg.image.volume import Volume
from bidsseg.labels import Protocol
from bidsseg.labels.sides import LEFT
from bidsseg.learning.cases import Annotation
from bidsseg.learning.region_centres import sizes_and_centres
from bidsseg.registration.align import Images
from bidsseg.registration.label_files import Note, read_on_grid, with_known_values

CLOSE_MM = 1.0
"""Left and right regions whose centres are this close lie on neither side."""


def read_annotation(path: Path, scan: Scan, images: Images, *, note: Note) -> Volume:
    """Return a label map on the grid of the T1w of its scan, see ``read_on_grid``. DataError for another grid."""
    return read_on_grid(path, images, t1w=scan.t1w, flair=scan.flair, note=note)


def annotation_of(values: np.ndarray, protocol: Protocol, path: Path, *, note: Note) -> Annotation:
    """Return label values (X, Y, Z) on a 1 mm RAS grid as an annotation.

    A mask may have another value than 1, such as 255.

    Raises:
        DataError: values outside the protocol, or left and right exchanged.
    """
    values = with_known_values(values, protocol, path, note=note)
    annotation = Annotation(protocol, positions(values, protocol, str(path)))
    if region := exchanged(annotation):
        raise DataError(
            f"{path}: left and right are exchanged ('{region}' lies on the other side): flip the labels, or correct "
            "the table or the affine"
        )
    return annotation


def exchanged(annotation: Annotation) -> str | None:
    """Return the name of a left region that lies to the right of its partner, if this holds for most pairs."""
    protocol = annotation.protocol
    lefts = [i for i, hemisphere in enumerate(protocol.hemispheres) if hemisphere == LEFT]
    pairs = [(i, j) for i in lefts if (j := protocol.sides[i]) not in (None, i)]
    if not pairs:
        return None
    sizes, centres = sizes_and_centres(annotation.values.numpy(), len(protocol.regions))
    drawn = [(i, j) for i, j in pairs if sizes[i] > 0 and sizes[j] > 0]
    wrong = [i for i, j in drawn if centres[i, 0] > centres[j, 0] + CLOSE_MM]
    return protocol.regions[wrong[0]].name if 2 * len(wrong) > len(drawn) else None


def positions(values: np.ndarray, protocol: Protocol, where: str) -> torch.Tensor:
    """Return label values (X, Y, Z) as positions in the protocol's table; DataError for values outside the protocol."""
    unknown = np.setdiff1d(values, protocol.indices).tolist()
    if unknown:
        raise DataError(f"{where}: the values {unknown[:5]} are not in the protocol {protocol.name}")
    table = np.zeros(max(protocol.indices) + 1, np.uint8 if len(protocol.indices) <= 256 else np.int16)
    table[list(protocol.indices)] = np.arange(len(protocol.indices))
    return torch.from_numpy(np.ascontiguousarray(table[values]))
