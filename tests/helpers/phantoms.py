"""Synthetic heads: the same anatomy on any grid, as images, label maps and small BIDS datasets."""

import gzip
import json
from functools import lru_cache
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.affines import from_matvec
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform

SHAPE = (48, 56, 48)

# Ellipsoids from the outside in: half axes and centre in mm (RAS+), T1w intensity, FLAIR intensity, label.
# Labels follow FSL FAST (1 CSF, 2 GM, 3 WM), with 4 for a lesion, which is on the left only.
TISSUES = {
    "scalp": ((86, 104, 92), (0, 0, 0), 180, 140, 0),
    "skull": ((79, 97, 85), (0, 0, 0), 25, 20, 0),
    "csf": ((73, 91, 79), (0, 0, 0), 45, 15, 1),
    "grey": ((69, 87, 75), (0, 0, 0), 100, 110, 2),
    "white": ((58, 75, 63), (0, 0, 0), 150, 80, 3),
    "ventricle": ((14, 30, 16), (0, 0, 5), 45, 15, 1),
    "lesion": ((10, 12, 10), (-32, 10, 15), 85, 180, 4),
}
INTENSITY, FLAIR_INTENSITY, LABEL = 2, 3, 4


def grid(
    spacing_mm: float | tuple[float, float, float] = 4.0,
    orientation: str = "RAS",
    shape: tuple[int, int, int] = SHAPE,
    rotation_degrees: float = 0.0,
) -> np.ndarray:
    """Return the affine (4, 4) of a grid whose centre is the centre of the head, in RAS+ mm.

    Args:
        spacing_mm: Voxel size, one for all axes or one for each axis of the grid.
        orientation: Directions of the three axes, before rotation.
        shape: Voxels along each axis of the grid.
        rotation_degrees: Oblique turn about an axis that is none of the three.
    """
    to_ras = inv_ornt_aff(ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(tuple(orientation))), (1, 1, 1))
    axis, angle = np.array([1.0, 2.0, 2.0]) / 3, np.radians(rotation_degrees)
    cross = np.cross(np.eye(3), axis)
    rotation = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    columns = rotation @ np.rint(to_ras[:3, :3]) * np.broadcast_to(spacing_mm, 3)
    affine: np.ndarray = from_matvec(columns, -columns @ ((np.array(shape) - 1) / 2))
    assert rotation_degrees or (io_orientation(affine) == axcodes2ornt(tuple(orientation))).all()
    return affine


def head(affine: np.ndarray, shape: tuple[int, int, int] = SHAPE, contrast: int = INTENSITY) -> np.ndarray:
    """Return intensities (float32) or, with ``contrast=LABEL``, labels (uint8) of the head on a grid."""
    return _head(tuple(affine[:3].ravel().tolist()), shape, contrast).copy()


@lru_cache
def _head(affine: tuple[float, ...], shape: tuple[int, int, int], contrast: int) -> np.ndarray:
    """Return the voxels of `head`; most tests use the same grids."""
    matrix = np.reshape(affine, (3, 4))
    voxels = np.indices(shape).reshape(3, -1)
    points = (matrix[:, :3] @ voxels + matrix[:, 3:]).T
    values = np.zeros(len(points), dtype=np.uint8 if contrast == LABEL else np.float32)
    for tissue in TISSUES.values():
        half, centre = np.array(tissue[0]), np.array(tissue[1])
        values[(((points - centre) / half) ** 2).sum(axis=1) <= 1] = tissue[contrast]
    return values.reshape(shape)


def noisy_head(
    affine: np.ndarray, shape: tuple[int, int, int] = SHAPE, contrast: int = INTENSITY, seed: int = 0
) -> np.ndarray:
    """Return intensities with the noise of a magnitude image, float32."""
    noise = np.random.default_rng(seed).normal(0, 3, shape)
    return np.abs(head(affine, shape, contrast) + noise).astype(np.float32)


def save(
    path: Path,
    data: np.ndarray,
    affine: np.ndarray,
    *,
    sform_code: int = 1,
    qform_code: int = 1,
    unit: str | None = "mm",
    slope: float | None = None,
    kind: type = nib.Nifti1Image,
) -> Path:
    """Write an image with nibabel and a chosen header, and create its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = kind(data, affine)
    image.header.set_xyzt_units(unit)
    image.header.set_data_dtype(data.dtype)
    if slope is not None:
        image.header.set_slope_inter(slope, 0)
    image.set_sform(affine, sform_code)
    image.set_qform(affine, qform_code)
    nib.save(image, path)
    return path


def save_case(folder: Path, case: str) -> Path:  # noqa: C901 (a list of cases)
    """Write the head in one of the forms of real data; `CASES` lists the names."""
    path = folder / f"{case}.nii.gz"
    if case in ("LAS", "LIA", "PSR"):
        affine = grid(orientation=case)
        return save(path, np.rint(noisy_head(affine)).astype(np.int16), affine)
    affine = grid()
    t1w = noisy_head(affine)
    match case:
        case "oblique":
            affine = grid(rotation_degrees=17)
            return save(path, noisy_head(affine), affine)
        case "anisotropic":
            shape, affine = (64, 72, 30), grid((3, 3, 5), "LPS", (64, 72, 30), 5)
            return save(path, noisy_head(affine, shape), affine)
        case "squeezable":
            return save(path, t1w[..., None], affine)
        case "nan":
            return save(path, np.where(head(affine) > 0, t1w, np.nan).astype(np.float32), affine)
        case "slope":
            return save(path, np.rint(t1w * 100).astype(np.int16), affine, slope=0.01)
        case "float64":
            return save(path, t1w.astype(np.float64), affine)
        case "uint8":
            return save(path, t1w.clip(0, 255).astype(np.uint8), affine)
        case "negative":
            return save(path, (t1w - t1w.mean()) / t1w.std(), affine)
        case "micrometres":
            return save(path, t1w, np.diag([1e3, 1e3, 1e3, 1]) @ affine, unit="micron")
        case "metres":
            return save(path, t1w, np.diag([1e-3, 1e-3, 1e-3, 1]) @ affine, unit="meter")
        case "unitless":
            return save(path, t1w, affine, unit=None)
        case "sform":
            return save(path, t1w, grid(rotation_degrees=17), qform_code=0)
        case "qform":
            return save(path, t1w, grid((3.7, 3.9, 4.1), rotation_degrees=17), sform_code=0)
        case "formless":
            return save(path, t1w, grid(3.7), sform_code=0, qform_code=0)
        case "nifti2":
            return save(path, t1w, affine + 1e-10, kind=nib.Nifti2Image)
        case "bigendian":
            return _big_endian(path, t1w, affine)
    raise ValueError(case)


CASES = (
    "LAS",
    "LIA",
    "PSR",
    "oblique",
    "anisotropic",
    "squeezable",
    "nan",
    "slope",
    "float64",
    "uint8",
    "negative",
    "micrometres",
    "metres",
    "unitless",
    "sform",
    "qform",
    "formless",
    "nifti2",
    "bigendian",
)


def _big_endian(path: Path, data: np.ndarray, affine: np.ndarray) -> Path:
    header = nib.Nifti1Header(endianness=">")
    header.set_xyzt_units("mm")
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data.astype(">f4"), affine, header), path)
    return path


def make_bids(
    root: Path,
    participants: int = 2,
    sessions: int = 0,
    runs: int = 0,
    *,
    flair: bool = False,
    spacing_mm: float = 4.0,
    shape: tuple[int, int, int] = SHAPE,
) -> Path:
    """Write a valid BIDS dataset of small heads and return its folder.

    Participants are ``sub-01`` …, sessions ``ses-1`` …, runs ``run-1`` …; with 0 sessions or runs the names have no
    such entity. The FLAIR, when asked for, lies on a thick-sliced grid of its own.
    """
    root.mkdir(parents=True, exist_ok=True)
    description = {"Name": "Synthetic heads", "BIDSVersion": "1.10.0", "DatasetType": "raw", "License": "CC0"}
    (root / "dataset_description.json").write_text(json.dumps(description))
    (root / "README.md").write_text("Synthetic heads for tests.\n")
    t1w_grid = grid(spacing_mm, "LAS", shape)
    flair_shape = (shape[0], shape[1], shape[2] // 2)
    flair_grid = grid((spacing_mm, spacing_mm, 2 * spacing_mm), "LPS", flair_shape, 6)
    seed = 0
    for participant in range(1, participants + 1):
        for session in range(1, sessions + 1) or [None]:
            for run in range(1, runs + 1) or [None]:
                entities = [f"sub-{participant:02}"] + [
                    f"{key}-{value}" for key, value in (("ses", session), ("run", run)) if value
                ]
                folder = root.joinpath(*(e for e in entities if not e.startswith("run-")), "anat")
                stem = "_".join(entities)
                t1w = noisy_head(t1w_grid, shape, seed=seed)
                save(folder / f"{stem}_T1w.nii.gz", np.rint(t1w).astype(np.int16), t1w_grid)
                if flair:
                    image = noisy_head(flair_grid, flair_shape, FLAIR_INTENSITY, seed)
                    save(folder / f"{stem}_FLAIR.nii.gz", np.rint(image).astype(np.int16), flair_grid)
                seed += 1
    return root


def header_of(path: Path) -> nib.Nifti1Header:
    """Return the header as it is in the file; nibabel discards slope and offset on loading."""
    raw = gzip.decompress(path.read_bytes())
    return nib.Nifti1Header(raw[:348], check=False) if raw[344:347] == b"n+1" else nib.Nifti2Header(raw[:540])
