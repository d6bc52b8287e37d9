"""A labelled scan whose brightness and regions are known at every voxel, and settings for samples of it."""

import numpy as np
import torch
from torch import Generator

from bidsseg.labels import load_protocol
from bidsseg.learning.annotation_files import positions
from bidsseg.learning.augment import Intensity, Spatial
from bidsseg.learning.case_reading import towards_ventricles
from bidsseg.learning.cases import Annotation, Case, Sampling

STRUCTURES = load_protocol("FreeSurfer")
FAST = load_protocol("FAST")
SHAPE = (40, 44, 36)
STILL = Spatial(rotation_deg=0, scale=0, shear=0, shift_mm=0, elastic_mm=0, ventricles_mm=0, flip=0, still=0)
CALM = Intensity(gamma=0, bias=0, noise=0, blur=0)
BOTH = ("T1w", "FLAIR")
SAMPLING = Sampling(shape=(32, 32, 32), points=3000)


def seeded(seed: int = 0) -> Generator:
    """Return a generator of random numbers with this seed."""
    return Generator().manual_seed(seed)


def labels() -> np.ndarray:
    """Return white matter of both hemispheres with cortex around it, and a ventricle in the left hemisphere."""
    values = np.zeros(SHAPE, np.uint8)
    values[6:20, 6:38, 6:30], values[20:34, 6:38, 6:30] = 3, 42
    values[9:20, 9:35, 9:27], values[20:31, 9:35, 9:27] = 2, 41
    values[12:18, 14:26, 12:22] = 4
    return values


def case(image: bool = True) -> Case:
    """Return a case with two annotations; its brightness in the brain is the position along the first axis."""
    values = labels()
    tissue = np.array([0, 1, 2, 3])[np.select([values == 0, values == 4, np.isin(values, (3, 42))], [0, 1, 2], 3)]
    annotations = tuple(
        Annotation(protocol, positions(found, protocol, "here"))
        for protocol, found in ((STRUCTURES, values), (FAST, tissue))
    )
    ramp = torch.arange(float(SHAPE[0])).reshape(-1, 1, 1).expand(SHAPE) + 10
    brain = torch.from_numpy(values > 0)
    widening = towards_ventricles(annotations[0])
    return Case("data/sub-01", (ramp * brain)[None] if image else None, annotations, brain, widening)
