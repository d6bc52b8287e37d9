"""Write three BIDS datasets with synthetic T1w and FLAIR, to train and evaluate a model of lesions and anatomy (ACE).

    python benchmarks/lesion_datasets.py DATA OUT [FOLD]

DATA has label maps of whole heads with white-matter lesions (``heads``, protocol head) and lesion masks of patients in
MNI space (``ms/derivatives/manual``). Images are made from the label maps: skull-stripped, 1 mm, T1w and FLAIR on one
grid. As in the experiments of ACE (Roulet et al. 2019, arXiv 1903.03445), each training dataset has one kind of labels:

- ``lesions``: one patient for each mask, except the masks of ``both`` and the mask of the patient whose real images are
  in DATA. Anatomy: the heads PATIENTS in turn, each time deformed differently; the mask is fitted to the head. Labels,
  in ``derivatives/manual``: only the lesions.
- ``anatomy``: the heads HEALTHY. Labels, in ``derivatives/fast``: the tissues of FAST; if a label may be either of two
  tissues, the one with the nearer brightness in a T1w.
- ``both``, for testing only: patients with the heads TESTED, each with a separate mask, every third one. Labels, in
  ``derivatives/truth``: tissue and lesion (FASTlesion), the structures under the lesions (FreeSurfer), the brain mask.

No head and no mask is in two datasets, so training and test participants are disjoint. FOLD (0, the default, to 2)
selects other heads and masks for testing. Lesions in the label maps of the heads become white matter. Participants of
``lesions`` share six heads, so a model should not be evaluated on held-out participants of this dataset. No two
participants have the same name, because label maps are matched by name. The same DATA gives the same images.

The script prints the lesion volume of each patient and the share of the mask that was kept.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Generator, Tensor

from bidsseg.bids.annotations import find_label_maps
from bidsseg.bids.scan import LabelMap
from bidsseg.derivative.root import BIDS_VERSION
from bidsseg.files import write_json_atomic, write_text_atomic
from bidsseg.image.grid import brain_frame, dilate
from bidsseg.image.nifti import read_labels, write_labels, write_map
from bidsseg.image.volume import Volume, canonical
from bidsseg.labels import Protocol, Region, load_protocol, load_relation
from bidsseg.learning.augment import UNMOVED, Intensity, Spatial, change_intensity, draw_warp, sample_labels
from bidsseg.learning.case_reading import read_label_map
from bidsseg.learning.cases import Case
from bidsseg.learning.synthesis import expected, synthesise

HEALTHY = ("02", "03", "07", "10", "13", "18")
PATIENTS = ("04", "08", "09", "17", "19", "20")
TESTED = ("01", "05", "06", "11", "12", "14", "15", "16")

HEAD = load_protocol("head")
WHITE, FLUID, STEM = 2, 3, 10
"""Values of the generic BIDS table."""
BENT = Spatial(rotation_deg=5, scale=0.05, shift_mm=0, elastic_mm=4, ventricles_mm=5, flip=0, still=0)
SCANNER = Intensity(gamma=0.1, bias=0.25, noise=0.04, blur=0.4, thickest_mm=3.0)
FAINTEST = 0.35
"""Smallest contrast of a lesion to the white matter, as a share of the full contrast."""
MARGIN = 8
"""Margin around the brain, voxels."""
SMALLEST = 3
"""Smallest lesion, voxels."""


def main(data: Path, out: Path, fold: int = 0) -> None:
    """Write the datasets; existing files are written again with the same content."""
    heads_tested, heads_healthy, heads_of_patients = roles(fold)
    found = find_label_maps(data / "ms" / "derivatives" / "manual", "lesion")
    masks = [mask for mask in found if not (data / "ms" / mask.key / "anat").is_dir()]
    tested = masks[fold :: len(masks) // len(TESTED)][: len(TESTED)]
    template = template_frame()

    folder, labels = out / "lesions", out / "lesions" / "derivatives" / "manual"
    describe(folder, labels)
    for number, mask in enumerate(mask for mask in masks if mask not in tested):
        generator = seeded(f"lesions/{mask.key}")
        values = healthy(placed(read_head(data, heads_of_patients[number % len(PATIENTS)]), BENT, generator))
        lesions = lesions_of(mask, template, values)
        write_images(folder, mask.key, values, lesions=lesions, generator=generator)
        write_annotation(labels, mask.key, "label-lesion_mask", labels=lesions.numpy())

    folder, labels = out / "anatomy", out / "anatomy" / "derivatives" / "fast"
    describe(folder, labels)
    for label in heads_healthy:
        name, generator = f"sub-anatomy{label}", seeded(f"anatomy/{label}")
        values = healthy(placed(read_head(data, label), UNMOVED, generator))
        write_images(folder, name, values, lesions=torch.zeros_like(values, dtype=torch.bool), generator=generator)
        write_annotation(labels, name, "seg-FAST_dseg", labels=in_protocol(values, load_protocol("FAST")))

    folder, labels = out / "both", out / "both" / "derivatives" / "truth"
    describe(folder, labels)
    for label, mask in zip(heads_tested, tested, strict=True):
        name, generator = f"sub-both{label}", seeded(f"both/{label}")
        values = healthy(placed(read_head(data, label), UNMOVED, generator))
        lesions = lesions_of(mask, template, values)
        write_images(folder, name, values, lesions=lesions, generator=generator)
        truth = in_protocol(torch.where(lesions, lesion_position(), values), load_protocol("FASTlesion"))
        write_annotation(labels, name, "seg-FASTlesion_dseg", labels=truth)
        structures = in_protocol(values, load_protocol("FreeSurfer"))
        write_annotation(labels, name, "seg-FreeSurfer_dseg", labels=structures)
        write_annotation(labels, name, "desc-brain_mask", labels=brain_of(values).numpy())


def roles(fold: int) -> tuple[Sequence[str], Sequence[str], Sequence[str]]:
    """Return the heads for testing, of healthy participants and of patients; each fold tests the next heads."""
    heads = [*TESTED, *HEALTHY, *PATIENTS]
    first = fold * len(TESTED)
    heads = heads[first:] + heads[:first]
    others = heads[len(TESTED) :]
    return heads[: len(TESTED)], others[: len(HEALTHY)], others[len(HEALTHY) :]


def seeded(name: str) -> Generator:
    return Generator().manual_seed(zlib.crc32(name.encode()))


# -- anatomy -----------------------------------------------------------------------------------------------------------


def read_head(data: Path, label: str) -> Case:
    path = data / "heads" / f"sub-{label}" / "anat" / f"sub-{label}_seg-head_dseg.nii.gz"
    return read_label_map(f"head {label}", path, HEAD)


def placed(head: Case, spatial: Spatial, generator: Generator) -> Tensor:
    """Return the label map (X, Y, Z) around the brain, moved and deformed, as positions in the table of HEAD."""
    extent = torch.nonzero(head.brain)
    shape = (extent.amax(0) - extent.amin(0) + 1 + 2 * MARGIN).tolist()
    centre = (extent.amax(0) + extent.amin(0)).float() / 2
    warp = draw_warp(spatial, shape, 1.0, centre=centre, widening=head.widening, generator=generator)
    return sample_labels(head.annotations[0].values, warp.source)


def mapped_to(*values: int | None) -> Tensor:
    """Return a mask (R,) of the regions of HEAD that have one of these values in the generic table."""
    return torch.tensor([region.mapping in values for region in HEAD.regions])


def healthy(values: Tensor) -> Tensor:
    """Return the anatomy with lesions replaced by white matter."""
    position = {region.name: i for i, region in enumerate(HEAD.regions)}
    table = torch.arange(len(HEAD.regions), dtype=values.dtype)
    for side in ("Left", "Right"):
        table[position[f"{side} White Matter Lesion"]] = position[f"{side} Cerebral White Matter"]
    return table[values.long()]


def in_protocol(values: Tensor, protocol: Protocol) -> np.ndarray:
    """Return the label map (X, Y, Z) in a related protocol; of several possible regions, the nearest in brightness."""
    relation = load_relation(HEAD, protocol)
    assert relation is not None
    table = np.zeros(len(HEAD.regions), np.uint8)
    for row, region in enumerate(HEAD.regions):
        allowed = [protocol.regions[i] for i in np.flatnonzero(relation.allowed[row])]
        table[row] = min(allowed, key=lambda other: abs(in_t1w(other) - in_t1w(region))).index
    labels: np.ndarray = table[values.numpy()]
    return labels


def in_t1w(region: Region) -> float:
    return expected(region, "T1w") or 0.0


def brain_of(values: Tensor) -> Tensor:
    return torch.from_numpy(in_protocol(values, load_protocol("brain"))) > 0


# -- lesions -----------------------------------------------------------------------------------------------------------


def template_frame() -> tuple[np.ndarray, np.ndarray]:
    """Return centre and half extent (3,) of the template brain in MNI space, RAS+ mm."""
    from nilearn.datasets import load_mni152_brain_mask

    mask = load_mni152_brain_mask(resolution=1)
    brain = canonical(np.asarray(mask.dataobj) > 0, mask.affine)
    centre, half = brain_frame(torch.from_numpy(np.ascontiguousarray(brain)))
    return centre + origin_mm(mask.affine, brain.shape), half


def origin_mm(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return the position (3,) of the first voxel of a 1 mm image after reorientation to RAS+."""
    last = affine[:3, :3] @ (np.array(shape) - 1) + affine[:3, 3]
    origin: np.ndarray = np.minimum(affine[:3, 3], last)
    return origin


def fitted(mask: Volume, template: tuple[np.ndarray, np.ndarray], brain: Tensor) -> Tensor:
    """Return a 1 mm mask in MNI space on a brain (X, Y, Z), moved and scaled along each axis to fit the template."""
    found = torch.from_numpy(np.ascontiguousarray(canonical(mask.data > 0, mask.affine)))
    centre, half = brain_frame(brain)
    origin = origin_mm(mask.affine, mask.shape)
    axes = [
        torch.from_numpy((np.arange(n) - centre[i]) / half[i] * template[1][i] + template[0][i] - origin[i])
        for i, n in enumerate(brain.shape)
    ]
    return sample_labels(found, torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).float())


def lesions_of(mask: LabelMap, template: tuple[np.ndarray, np.ndarray], values: Tensor) -> Tensor:
    """Return the lesions of a patient on a healthy brain, booleans (X, Y, Z)."""
    drawn = fitted(read_labels(mask.path), template, brain_of(values))
    lesions = inside_tissue(drawn, values)
    print(f"{mask.key}: {lesions.sum()} mm³, {lesions.sum() / drawn.sum():.0%} of the mask", flush=True)
    return lesions


def lesion_position() -> int:
    """Return the position of the first lesion in the table of HEAD."""
    return HEAD.indices.index(HEAD.lesions[0])


def inside_tissue(mask: Tensor, values: Tensor) -> Tensor:
    """Return the part of a mask in white matter, brain stem or the adjacent grey matter, without small components."""
    white = mapped_to(WHITE, STEM)[values.long()]
    rim = dilate(white, 1) & brain_of(values) & ~mapped_to(FLUID, None)[values.long()]
    pieces, _ = ndimage.label((mask & (white | rim)).numpy())
    size = np.bincount(pieces.ravel())
    size[0] = 0
    return torch.from_numpy((size >= SMALLEST)[pieces])


# -- images ------------------------------------------------------------------------------------------------------------


def write_images(folder: Path, name: str, values: Tensor, *, lesions: Tensor, generator: Generator) -> None:
    """Write T1w and FLAIR of a brain (X, Y, Z) with lesions, some of them faint."""
    pieces, count = ndimage.label(lesions.numpy())
    strength = FAINTEST + (1 - FAINTEST) * torch.rand(count + 1, generator=generator)
    strength[0] = 0
    strength = F.max_pool3d(strength[torch.from_numpy(pieces).long()][None, None], 3, 1, 1)[0, 0]
    sick = torch.where(lesions, lesion_position(), values)
    for suffix in ("T1w", "FLAIR"):
        state = generator.get_state()
        without = synthesise(values, HEAD, realistic=True, generator=generator, contrast=suffix)
        generator.set_state(state)
        image = without + strength * (
            synthesise(sick, HEAD, realistic=True, generator=generator, contrast=suffix) - without
        )
        image = change_intensity(image, SCANNER, 1.0, generator=generator).clamp(min=0.01) * brain_of(values)
        path = folder / name / "anat" / f"{name}_{suffix}.nii.gz"
        write_map(path, (image / image.max()).numpy(), on_grid(values))
        write_json_atomic(path.with_name(f"{name}_{suffix}.json"), {"SkullStripped": True})


def on_grid(values: Tensor) -> Volume:
    """Return a volume with 1 mm voxels in RAS+ order, centred at 0."""
    affine = np.eye(4)
    affine[:3, 3] = -(np.array(values.shape) - 1) / 2
    return Volume(values.numpy(), affine)


# -- datasets ----------------------------------------------------------------------------------------------------------


def describe(
    folder: Path, labels: Path, title: str = "Synthetic brains", *, script: str = "lesion_datasets.py"
) -> None:
    """Write the description files of a dataset and of its labels, made by a script of this folder."""
    common = {"Name": f"{title}: {folder.name}", "BIDSVersion": BIDS_VERSION}
    write_json_atomic(folder / "dataset_description.json", {**common, "DatasetType": "raw"})
    write_text_atomic(folder / "README.md", f"See benchmarks/{script}.\n")
    generated = {"DatasetType": "derivative", "GeneratedBy": [{"Name": f"bidsseg/benchmarks/{script}"}]}
    write_json_atomic(labels / "dataset_description.json", {**common, **generated})


def write_annotation(folder: Path, name: str, ending: str, *, labels: np.ndarray) -> None:
    """Write a label map (X, Y, Z) with its sidecar, and the table of its protocol."""
    path = folder / name / "anat" / f"{name}_{ending}.nii.gz"
    write_labels(path, labels, on_grid(torch.from_numpy(labels)))
    kind = {"Type": "Brain" if "brain" in ending else "Lesion"} if ending.endswith("mask") else {}
    sidecar = {"Manual": False, "SpatialReference": "orig", **kind}
    write_json_atomic(path.with_name(f"{name}_{ending}.json"), sidecar)
    if ending.startswith("seg-"):
        protocol = ending.removeprefix("seg-").removesuffix("_dseg")
        write_text_atomic(folder / f"{ending}.tsv", load_protocol(protocol).to_tsv())


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:]))
