"""A page that shows slices and a 3-D view of a scan, drawn by NiiVue, which is embedded."""

from __future__ import annotations

import base64
import gzip
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine

from bidsseg.image.volume import Volume
from bidsseg.labels.protocol import Protocol, load_protocol
from bidsseg.models.card import LESION
from bidsseg.report.mosaic import MARGIN_MM, grey_window, labelled_bounds
from bidsseg.report.page import write_page

NIIVUE = Path(__file__).parent / "niivue" / "niivue.umd.js"
MOST_VOXELS = 2e7
"""Larger images are shown with every second or third voxel along each axis."""


def write_viewer(
    page: Path,
    title: str,
    image: Volume,
    *,
    labels: Mapping[str, np.ndarray],
    protocols: Mapping[str, Protocol],
    lesion: np.ndarray | None = None,
) -> None:
    """Write the page, with the labelled part of the image and a margin.

    Args:
        image: intensities; any orientation and spacing.
        labels: label map of each protocol, integers (X, Y, Z) on the grid of the image.
        protocols: each protocol of ``labels``, for names and colours.
        lesion: mask on the same grid.
    """
    maps = {**labels, **({} if lesion is None else {LESION: lesion.astype(np.uint8)})}
    bounds = labelled_bounds(list(maps.values()), image.shape)
    margins = np.round(MARGIN_MM / image.spacing_mm).astype(int)
    first = [max(low - margin, 0) for (low, _), margin in zip(bounds, margins, strict=True)]
    beyond = [min(high + margin + 1, n) for (_, high), margin, n in zip(bounds, margins, image.shape, strict=True)]
    step = int(np.ceil(np.cbrt(np.prod(np.subtract(beyond, first)) / MOST_VOXELS)))
    box = tuple(slice(low, high, step) for low, high in zip(first, beyond, strict=True))
    affine = image.affine @ np.diag([step, step, step, 1.0])
    affine[:3, 3] = apply_affine(image.affine, first)

    black, white = grey_window(image.data, bounds)
    grey = np.clip((image.data[box] - black) * (255 / (white - black)), 0, 255).astype(np.uint8)
    overlays = [_overlay(maps[name][box], affine, protocols.get(name) or load_protocol(name)) for name in maps]
    content = {"image": _nifti(grey, affine), "overlays": overlays}
    write_page(page, "viewer.html", {"title": title, "content": content, "niivue": _niivue()})


def _overlay(labels: np.ndarray, affine: np.ndarray, protocol: Protocol) -> dict[str, Any]:
    """Return NiiVue's form of a label map, in which regions are numbered in the order of the protocol."""
    position = np.zeros(max(int(labels.max()), *protocol.indices) + 1, np.uint16)
    position[list(protocol.indices)] = range(len(protocol.indices))
    small = np.uint8 if len(protocol.indices) <= 256 else np.uint16
    channels = zip(*(region.rgb for region in protocol.regions), strict=True)
    colors = dict(zip("RGB", map(list, channels), strict=True))
    names = [region.name for region in protocol.regions]
    data = _nifti(position[labels].astype(small), affine, "label")
    return {"name": protocol.name, "data": data, "colors": {**colors, "labels": names}}


def _nifti(data: np.ndarray, affine: np.ndarray, intent: str = "none") -> str:
    """Return a compressed NIfTI file in base64. NiiVue needs the intent to draw more than 128 labels correctly."""
    image = nib.Nifti1Image(data, affine)
    image.header.set_intent(intent)
    return base64.b64encode(gzip.compress(image.to_bytes(), 6, mtime=0)).decode()


@cache
def _niivue() -> str:
    return NIIVUE.read_text(encoding="utf-8")
