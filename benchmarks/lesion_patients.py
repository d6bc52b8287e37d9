"""Write BIDS datasets of patients with lesions, made from real scans, to train and evaluate the recipe ``lesions``.

    python benchmarks/lesion_patients.py DATA OUT

DATA has T1w and FLAIR of few patients with lesion masks, and masks of further patients without images (``ms``), and T1w
of other participants (``ds002748``, ``ds000011``). For each patient with images, OUT/without-LABEL has datasets without
anything of this patient, for a model that is evaluated on the patient; OUT/all has all. In each are

- ``patients``: the images of the other patients. Labels, in ``derivatives/made``: lesions by hand; tissues (FAST) and
  structures (FreeSurfer) by the model ``open``, from the T1w with filled lesions.
- ``made``: real scans with lesions that they do not have. Their backgrounds are the patients with filled lesions, each
  several times, and the other T1w. For the latter, a small network predicts the FLAIR from the T1w and its structures,
  as in one of the patients. Size, shape and place of the lesions are those of a mask, moved by some voxels, sometimes
  mirrored or thinned out; their brightness relative to the white matter is drawn as measured in the patients
  (CONTRAST). Labels: tissue and lesion (FASTlesion) and structures (FreeSurfer).

In the FLAIR, some white matter is slightly brighter than normal and some points in grey matter and fluid are bright,
without being lesions, so that a network does not take them for lesions. Lesions of one person in the scan of another
are the idea of CarveMix (Zhang et al. 2021, arXiv 2108.06883). The same DATA gives the same images.
"""

from __future__ import annotations

import multiprocessing
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F
from lesion_datasets import describe, fitted, on_grid, template_frame, write_annotation
from nibabel.processing import resample_from_to
from scipy import ndimage
from torch import Tensor, nn

import bidsseg
from bidsseg.bids.annotations import find_annotations, find_label_maps
from bidsseg.bids.query import find_scans
from bidsseg.bids.scan import Scan
from bidsseg.image.nifti import read_labels, write_map
from bidsseg.image.volume import Volume
from bidsseg.labels import load_protocol
from bidsseg.segmentation.lesions import TOUCHING

STRUCTURES, LESION = load_protocol("FreeSurfer"), 4
WHITE, GREY, FLUID = 3, 2, 1
"""Values of FAST; LESION is that of FASTlesion."""
WITHOUT_LESIONS = (0, 4, 5, 14, 15, 24, 43, 44)
"""FreeSurfer's values of ventricles, fluid and background."""
VENTRICLES = (4, 43)
DECEPTIVE = (3, 24, 31, 42, 63)
"""FreeSurfer's values of cortex, fluid and choroid plexus, where bright points are no lesions."""
CONTRAST = {
    "size": (1, 5, 20, 60, 1000),
    "FLAIR": (0.30, 0.35, 0.40, 0.43, 0.52),
    "T1w": (0.06, 0.08, 0.16, 0.27, 0.40),
}
"""Median share by which lesions of a size (voxels) are brighter than white matter in a FLAIR, darker in a T1w."""
LEVEL_VOXELS = (2.5, 4.0, 8.0, 16.0, 40.0)
"""Standard deviations of the Gaussians in which the level of white matter is sought, the first that finds enough."""
ENOUGH = 0.05
"""Least share of white matter in the Gaussian."""
SHARES, LARGE = (1.0, 1.0, 0.6, 0.3), 300
"""Shares of the lesions of a mask that are used; size of large lesions (voxels), of which every other brain has few."""
EACH_PATIENT = 14
MARGIN = 8
FIT_STEPS, FIT_EDGE, FIT_RATE = 400, 48, 3e-3
NOISE = 0.06


@dataclass(frozen=True)
class Brain:
    """A brain without lesions on a 1 mm grid, with arrays (X, Y, Z).

    Attributes:
        t1w, flair: brightness; white matter is about 1. The FLAIR is None if there is none.
        tissues, structures: values of FAST and FreeSurfer.
    """

    name: str
    t1w: np.ndarray
    flair: np.ndarray | None
    tissues: np.ndarray
    structures: np.ndarray


@dataclass(frozen=True)
class Patient:
    """A patient: T1w, FLAIR and lesions as they are, (X, Y, Z), and the brain with filled lesions."""

    t1w: np.ndarray
    flair: np.ndarray
    lesions: np.ndarray
    brain: Brain


def main(data: Path, out: Path) -> None:
    """Write all datasets."""
    manual = data / "ms" / "derivatives" / "manual"
    patients = {scan.entities["subject"]: read_patient(scan, manual) for scan in find_scans(data / "ms")}
    predictors = {label: Predictor.fitted(patient) for label, patient in patients.items()}
    others = [read_brain(scan) for name in ("ds002748", "ds000011") for scan in find_scans(data / name)]
    masks = {mask.entities["subject"]: read_labels(mask.path) for mask in find_label_maps(manual, "lesion")}
    fresh = multiprocessing.get_context("spawn")  # threads of torch do not survive a fork
    with ProcessPoolExecutor(mp_context=fresh, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for without in (None, *patients):
            folder = out / (f"without-{without}" if without else "all")
            used = sorted(set(patients) - {without})
            allowed = [mask for label, mask in masks.items() if label != without]
            for label in used:
                write_patient(folder / "patients", patients[label])
            jobs = []
            for background, random in backgrounds(folder.name, [patients[label].brain for label in used], others):
                mask, predictor = allowed[random.integers(len(allowed))], predictors[random.choice(used)]
                make = partial(write_made, mask=mask, predictor=predictor, random=random)
                jobs.append(pool.submit(make, folder / "made", background))
            for job in as_completed(jobs):
                print(job.result(), flush=True)


def backgrounds(
    name: str, patients: Sequence[Brain], others: Sequence[Brain]
) -> Iterator[tuple[Brain, np.random.Generator]]:
    """Yield the brains for the made patients of a set, those of patients several times, each with its own generator."""
    again = [replace(brain, name=f"{brain.name}x{n:02}") for brain in patients for n in range(EACH_PATIENT)]
    for number, brain in enumerate([*again, *others]):
        yield brain, np.random.default_rng([zlib.crc32(name.encode()), number])


# -- real scans --------------------------------------------------------------------------------------------------------


def read_patient(scan: Scan, manual: Path) -> Patient:
    """Return a patient with lesions by hand."""
    mask = find_annotations(manual, scan, "lesion")
    assert mask is not None and scan.flair is not None
    t1w, flair, lesions = (in_voxels_of_1_mm(path) for path in (scan.t1w, scan.flair, mask))
    hole = ndimage.binary_dilation(lesions.data > 0.5)
    tissues, structures = anatomy(t1w)
    for _ in range(2):  # the anatomy found first is that of a brain with lesions
        white = ndimage.binary_erosion(tissues == WHITE) & ~ndimage.binary_dilation(hole)
        bright, healthy = level(t1w.data, white), fill(t1w.data, hole, white)
        tissues, structures = anatomy(Volume(healthy, t1w.affine))
    healthy_flair = fill(flair.data, hole, white) / level(flair.data, white)
    brain = Brain(scan.key, healthy / bright, healthy_flair, tissues, structures)
    return Patient(t1w.data, flair.data, lesions.data > 0.5, brain)


def read_brain(scan: Scan) -> Brain:
    """Return the brain of a scan; what is outside of it is 0."""
    t1w = in_voxels_of_1_mm(scan.t1w)
    tissues, structures = anatomy(t1w)
    bright = level(t1w.data, ndimage.binary_erosion(tissues == WHITE))
    brain = ndimage.binary_dilation(structures > 0, iterations=2)
    name = f"sub-{scan.t1w.parents[2].name[-3:]}x{scan.entities['subject']}"
    return Brain(name, t1w.data / bright * brain, None, tissues, structures)


def in_voxels_of_1_mm(path: Path) -> Volume:
    """Return an image (X, Y, Z) in RAS+ order with voxels of 1 mm, interpolated linearly if it has others."""
    image = nib.as_closest_canonical(nib.load(path))
    spacing = np.array(image.header.get_zooms()[:3])
    shape = tuple(np.ceil(np.array(image.shape) * spacing - 1e-3).astype(int))
    affine = image.affine @ np.diag([*(1 / spacing), 1])
    fine = resample_from_to(nib.Nifti1Image(image.get_fdata(dtype=np.float32), image.affine), (shape, affine), order=1)
    return Volume(np.asarray(fine.dataobj, np.float32), affine)


def anatomy(t1w: Volume) -> tuple[np.ndarray, np.ndarray]:
    """Return the values (X, Y, Z) of FAST and FreeSurfer that the model ``open`` finds in a T1w."""
    result = bidsseg.segment(nib.Nifti1Image(t1w.data, t1w.affine), model="open")
    tissues, structures = (np.asarray(result.dseg(name).dataobj).astype(np.uint8) for name in ("FAST", "FreeSurfer"))
    return tissues, structures


def level(image: np.ndarray, white: np.ndarray) -> np.ndarray:
    """Return the brightness of the white matter (booleans) nearby, for each voxel of an image (X, Y, Z)."""
    found = np.full(image.shape, image[white].mean(), np.float32)
    for sigma in reversed(LEVEL_VOXELS):  # the narrowest Gaussian with enough white matter decides
        share = smooth(white.astype(np.float32), sigma)
        mean = smooth(np.where(white, image, 0).astype(np.float32), sigma) / np.maximum(share, 1e-6)
        found = np.where(share > ENOUGH, mean, found)
    return found


def smooth(image: np.ndarray, sigma: float) -> np.ndarray:
    """Return an image (X, Y, Z) smoothed by three boxes, nearly a Gaussian, which take the same time for each sigma."""
    for _ in range(3):
        image = ndimage.uniform_filter(image, 2 * round(sigma) + 1)
    return image


def fill(image: np.ndarray, hole: np.ndarray, white: np.ndarray) -> np.ndarray:
    """Return an image (X, Y, Z) with white matter and its noise in a hole (booleans), with soft borders.

    ``segmentation/filling.py`` finds the white matter by its brightness, which is impossible in a FLAIR;
    here it is known.
    """
    bright = level(image, white)
    noise = 1.4826 * np.median(np.abs((image - bright)[white]))
    share = np.clip(2 * ndimage.gaussian_filter(hole.astype(np.float32), 0.6), 0, 1) * ndimage.binary_dilation(hole)
    random = np.random.default_rng(0)
    filled: np.ndarray = image * (1 - share) + share * (bright + noise * texture(image.shape, 0.6, random))
    return filled


def texture(shape: Sequence[int], sigma: float, random: np.random.Generator) -> np.ndarray:
    """Return smooth noise (X, Y, Z) of mean 0 and variance 1; sigma is that of the Gaussian, voxels."""
    smooth = ndimage.gaussian_filter(random.standard_normal(tuple(shape), np.float32), sigma)
    noise: np.ndarray = smooth / smooth.std()
    return noise


# -- FLAIR from a T1w --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Predictor:
    """Predicts the FLAIR of a brain from its T1w and structures, as in one patient.

    Attributes:
        network: reads the T1w and the structures, one channel each.
        tissues: brightness of fluid and grey matter in the T1w of the patient; white matter is 1.
    """

    network: nn.Module
    tissues: tuple[float, float]

    @staticmethod
    def fitted(patient: Patient) -> Predictor:
        """Fit a network to the brain of a patient, outside of the lesions and their surroundings."""
        brain = patient.brain
        assert brain.flair is not None
        torch.manual_seed(0)
        box = around(brain.structures)
        known = (brain.structures > 0) & ~ndimage.binary_dilation(patient.lesions, iterations=3)
        inputs = channels(brain.t1w[box], brain.structures[box])
        truth, known = torch.from_numpy(brain.flair[box]), torch.from_numpy(known[box])
        layers = (nn.Conv3d(len(inputs), 32, 3, padding=1), nn.Conv3d(32, 32, 3, padding=1), nn.Conv3d(32, 1, 1))
        network = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
        optimiser = torch.optim.Adam(network.parameters(), FIT_RATE)
        falling = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, FIT_STEPS)
        for _ in range(FIT_STEPS):
            corner = [int(torch.randint(n - FIT_EDGE, ())) for n in truth.shape]
            part = tuple(slice(first, first + FIT_EDGE) for first in corner)
            predicted, inside = network(inputs[(slice(None), *part)][None])[0, 0], known[part]
            if inside.any():
                optimiser.zero_grad()
                F.smooth_l1_loss(predicted[inside], truth[part][inside], beta=0.05).backward()
                optimiser.step()
            falling.step()
        return Predictor(network, contrast_of(brain))

    def with_flair(self, brain: Brain, random: np.random.Generator) -> Brain:
        """Return a brain with a FLAIR, which is noisy."""
        values, wanted = contrast_of(brain), self.tissues
        t1w = np.interp(brain.t1w, [0, *values, 1, 2], [0, *wanted, 1, 2]).astype(np.float32)
        with torch.no_grad():
            flair = self.network(channels(t1w, brain.structures)[None])[0, 0].clamp(0, 2).numpy()
        noise = NOISE * random.uniform(0.4, 1.1) * texture(flair.shape, 0.6, random)
        return replace(brain, flair=(flair + noise) * (brain.t1w != 0))


def contrast_of(brain: Brain) -> tuple[float, float]:
    """Return the brightness of fluid and grey matter in the T1w."""
    fluid, grey = (float(np.median(brain.t1w[brain.tissues == tissue])) for tissue in (FLUID, GREY))
    return fluid, grey


def channels(t1w: np.ndarray, structures: np.ndarray) -> Tensor:
    """Return a T1w and one channel for each structure, (1 + R, X, Y, Z)."""
    table = np.zeros(256, np.int64)
    table[list(STRUCTURES.indices)] = range(len(STRUCTURES.indices))
    one_each = F.one_hot(torch.from_numpy(table[structures]), len(STRUCTURES.indices)).permute(3, 0, 1, 2)
    return torch.cat([torch.from_numpy(t1w.astype(np.float32))[None], one_each.float()])


# -- lesions that are made ---------------------------------------------------------------------------------------------


def placed(mask: Volume, brain: Brain, random: np.random.Generator) -> np.ndarray:
    """Return the number (X, Y, Z) of the lesion at each voxel: those of a mask, fitted to a brain, or some of them."""
    tissue = ndimage.binary_dilation(brain.tissues == WHITE) & ~np.isin(brain.structures, WITHOUT_LESIONS)
    drawn = fitted(mask, template_frame(), torch.from_numpy(brain.structures > 0)).numpy()
    drawn = np.roll(drawn, tuple(random.integers(-3, 4, 3)), (0, 1, 2))
    if random.random() < 0.5:
        drawn = drawn[::-1]
    lesions, count = ndimage.label(drawn & tissue, TOUCHING)
    sizes = np.bincount(lesions.ravel(), minlength=count + 1)
    share, large = random.choice(SHARES), 1.0 if random.random() < 0.5 else 0.3
    kept = (sizes >= 2) & (random.random(count + 1) < share) & ((sizes < LARGE) | (random.random(count + 1) < large))
    kept[0] = False
    numbered: np.ndarray = lesions * kept[lesions]
    return numbered


def with_lesions(brain: Brain, lesions: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return T1w and FLAIR (X, Y, Z) of a brain with numbered lesions, half as bright as inside at their borders."""
    assert brain.flair is not None
    if not lesions.any():
        return brain.t1w, brain.flair
    count, sizes = lesions.max() + 1, np.log10(np.maximum(np.bincount(lesions.ravel()), 1))
    brighter, darker = (np.interp(sizes, np.log10(CONTRAST["size"]), CONTRAST[name]) for name in ("FLAIR", "T1w"))
    brighter = np.maximum(brighter + random.normal(0, 0.05) + random.normal(0, 0.1, count), 0.1)
    darker = np.clip(darker * np.exp(random.normal(0, 0.5, count)), 0.01, 0.75)
    away, nearest = ndimage.distance_transform_edt(lesions == 0, return_indices=True)
    number = lesions[tuple(nearest)]
    share = ndimage.gaussian_filter((lesions > 0).astype(np.float32), random.uniform(0.55, 0.95))
    highest = np.maximum(ndimage.maximum(share, number, np.arange(count)), 0.35)
    share = np.where(away < 4, np.minimum(share / highest[number], 1), 0)
    uneven = texture(share.shape, 1.5, random)
    t1w = 1 - darker[number] * (1 + 0.2 * uneven) + 0.03 * texture(share.shape, 0.6, random)
    flair = 1 + brighter[number] * (1 + 0.15 * uneven) + 0.06 * texture(share.shape, 0.6, random)
    return brain.t1w + share * (t1w - brain.t1w), brain.flair + share * (flair - brain.flair)


def with_deceptions(brain: Brain, random: np.random.Generator) -> Brain:
    """Return a brain with slightly brighter white matter, and bright points in other tissue, in the FLAIR."""
    assert brain.flair is not None
    flair, white = brain.flair.copy(), (brain.tissues == WHITE).astype(np.float32)
    if random.random() < 0.5:
        distance = ndimage.distance_transform_edt(~np.isin(brain.structures, VENTRICLES))
        rim = np.exp(-distance / random.uniform(2, 6)) * random.uniform(0.02, 0.12) * white
        flair += ndimage.gaussian_filter(rim.astype(np.float32), 1)
    flair += np.clip(texture(flair.shape, 6, random) - 1, 0, 2) * random.uniform(0, 0.05) * white
    where = np.argwhere(np.isin(brain.structures, DECEPTIVE))
    points = np.zeros(flair.shape, np.float32)
    points[tuple(where[random.integers(0, len(where), random.integers(0, 25))].T)] = 1
    points = ndimage.gaussian_filter(points, random.uniform(0.6, 1.1))
    return replace(brain, flair=flair + random.uniform(0.1, 0.4) * points / max(points.max(), 1e-6))


# -- files -------------------------------------------------------------------------------------------------------------


def write_patient(folder: Path, patient: Patient) -> None:
    """Write images, lesions and anatomy of a patient."""
    brain = patient.brain
    labels = {
        "label-lesion_mask": patient.lesions,
        "seg-FAST_dseg": brain.tissues,
        "seg-FreeSurfer_dseg": brain.structures,
    }
    write(folder, brain, images={"T1w": patient.t1w, "FLAIR": patient.flair}, labels=labels)


def write_made(
    folder: Path, background: Brain, *, mask: Volume, predictor: Predictor, random: np.random.Generator
) -> str:
    """Write images, tissue with lesions and structures of a brain with the lesions of a mask; return a line about it.

    Args:
        predictor: predicts the FLAIR if the brain has none.
    """
    brain = background if background.flair is not None else predictor.with_flair(background, random)
    lesions = placed(mask, brain, random)
    t1w, flair = with_lesions(with_deceptions(brain, random), lesions, random)
    tissues = np.where(lesions > 0, LESION, brain.tissues)
    labels = {"seg-FASTlesion_dseg": tissues, "seg-FreeSurfer_dseg": brain.structures}
    write(folder, brain, images={"T1w": t1w, "FLAIR": flair}, labels=labels)
    return f"{folder}: {brain.name} with {np.count_nonzero(lesions) / 1000:.1f} ml of lesions"


def write(folder: Path, brain: Brain, *, images: Mapping[str, np.ndarray], labels: Mapping[str, np.ndarray]) -> None:
    """Write images and label maps (X, Y, Z) of a brain, without most of the voxels around it."""
    made, box = folder / "derivatives" / "made", around(brain.structures)
    describe(folder, made, "Patients with lesions", script=Path(__file__).name)
    for suffix, image in images.items():
        inside = torch.from_numpy(np.ascontiguousarray(image[box]))
        path = folder / brain.name / "anat" / f"{brain.name}_{suffix}.nii.gz"
        write_map(path, (inside / inside.max()).clip(0, 1).numpy(), on_grid(inside))
    for ending, values in labels.items():
        write_annotation(made, brain.name, ending, labels=values[box].astype(np.uint8))


def around(structures: np.ndarray) -> tuple[slice, ...]:
    """Return the box of a brain with a margin."""
    (box,) = ndimage.find_objects((structures > 0).astype(np.uint8))
    return tuple(slice(max(side.start - MARGIN, 0), side.stop + MARGIN) for side in box)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
