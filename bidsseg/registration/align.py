"""The images of one scan on the grid of the first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from nibabel.affines import apply_affine

from bidsseg.errors import DataError, UsageError
from bidsseg.image.guard import Finding, refusal
from bidsseg.image.nifti import Source, name_of, read_image
from bidsseg.image.volume import Volume, in_order_of

FAR_MM, FAR_DEGREES = 20.0, 15.0
"""Larger motion between two images of a session is unusual."""


@dataclass(frozen=True, eq=False)
class Motion:
    """The motion of an image to match another.

    Attributes:
        matrix: (4, 4), from the original to the new position of a point, RAS+ mm; rigid.
        distance_mm: displacement of the point that is moved to the centre of the other image.
        angle_degrees: angle of the rotation, about any axis.
    """

    matrix: np.ndarray
    distance_mm: float
    angle_degrees: float

    @staticmethod
    def of(matrix: np.ndarray, fixed: Volume) -> Motion:
        """Return the motion with a matrix that moves an image to match another."""
        middle = apply_affine(fixed.affine, (np.array(fixed.shape) - 1) / 2)
        distance = np.linalg.norm(apply_affine(np.linalg.inv(matrix), middle) - middle)
        cosine = (np.trace(matrix[:3, :3]) - 1) / 2
        return Motion(matrix, float(distance), float(np.degrees(np.arccos(np.clip(cosine, -1, 1)))))

    def __str__(self) -> str:
        return f"moved by {self.distance_mm:.1f} mm and {self.angle_degrees:.1f}°"

    @property
    def far(self) -> bool:
        """Return whether the motion is larger than usual between two images of a session."""
        return self.distance_mm > FAR_MM or self.angle_degrees > FAR_DEGREES


@dataclass(frozen=True, eq=False)
class Images:
    """The images of one scan by suffix (``T1w``, ``FLAIR``), all on the grid of the first.

    Attributes:
        findings: findings of the guard.
        notes: messages about the alignment of the images.
        motions: motions of the images that were on another grid, by suffix.
        guides: files of the images by whose alignment label maps of the scan were moved to this grid.
    """

    volumes: dict[str, Volume]
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    motions: dict[str, Motion] = field(default_factory=dict)
    guides: list[Path] = field(default_factory=list)


def about(suffix: str, findings: Iterable[Finding]) -> list[Finding]:
    """Return findings about an image other than the first, whose suffix begins the messages."""
    return [Finding(finding.code, f"{suffix}: {finding.message}") for finding in findings]


def about_motion(suffix: str, motion: Motion, first: str) -> tuple[str, list[Finding]]:
    """Return a note on the motion of an image to match the first, and a finding if it is unusual."""
    note = f"{suffix} {motion} to match the {first}"
    far = Finding("MOVED_FAR", f"{note}: check that both are of the same session.")
    return note, [far] if motion.far else []


def read_aligned(sources: Mapping[str, Source]) -> Images:
    """Read the images of one scan, by suffix, and resample all to the grid of the first.

    Raises:
        InputMissing, DataError: an image cannot be used, see ``read_image``, or does not overlap the first.
        UsageError: SimpleITK is needed and not installed.
    """
    first, *others = sources
    volume, findings = read_image(sources[first])
    images = Images({first: volume}, findings)
    for suffix in others:
        moving, findings = read_image(sources[suffix])
        images.findings.extend(about(suffix, findings))
        try:
            images.volumes[suffix], motion = align(moving, volume)
        except DataError as error:
            raise DataError(f"{name_of(sources[suffix])}: {error}") from error
        if motion is not None:
            images.motions[suffix] = motion
            note, findings = about_motion(suffix, motion, first)
            images.notes.append(note)
            images.findings.extend(findings)
    return images


def align(moving: Volume, fixed: Volume) -> tuple[Volume, Motion | None]:
    """Return an image on the grid of another image of the same head, aligned rigidly.

    Args:
        moving: image of any contrast and on any grid, in RAS+ mm.

    Returns:
        Volume with the shape of fixed, linearly interpolated, 0 outside the field of view of moving, deterministic; and
        the motion. If both have the same voxels, these in the order of fixed, unchanged, and None.

    Raises:
        DataError: the two do not overlap.
        UsageError: SimpleITK is needed and not installed.
    """
    if (same := in_order_of(moving, fixed)) is not None:
        return same, None
    try:
        from bidsseg.registration.linear import register
    except ImportError as error:
        raise UsageError('to align a FLAIR on another grid needs SimpleITK: pip install "bidsseg[flair]"') from error
    try:
        data, matrix = register(moving, fixed)
    except RuntimeError as error:
        raise refusal("CANNOT_BE_ALIGNED", "cannot be aligned to the T1w: are both of the same head?") from error
    return Volume(data, fixed.affine, fixed.header), Motion.of(matrix, fixed)
