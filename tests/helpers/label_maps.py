"""Label maps without anatomy, and output folders and derivative datasets with them."""

from pathlib import Path

import numpy as np
from scipy import ndimage

from bidsseg.bids.names import with_extension
from bidsseg.bids.outputs import output_paths
from bidsseg.bids.scan import Scan
from bidsseg.files import write_json_atomic
from bidsseg.image.nifti import write_labels
from bidsseg.image.volume import Volume

REGIONS = 4
AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])


def blobs(seed: int, shape: tuple[int, int, int] = (26, 22, 18), regions: int = REGIONS) -> np.ndarray:
    """Return a label map of smooth random regions, some of them at the edge of the grid."""
    noise = np.random.default_rng(seed).normal(size=(regions + 1, *shape))
    labels: np.ndarray = np.stack([ndimage.gaussian_filter(field, 2.5) for field in noise]).argmax(0).astype(np.uint8)
    return labels


def save(path: Path, labels: np.ndarray, affine: np.ndarray = AFFINE) -> None:
    """Write a label map."""
    write_labels(path, labels, Volume(labels, affine))


def add_map(
    output: Path, entities: dict[str, str], labels: np.ndarray, *, model: str = "good", kind: str = "FAST"
) -> None:
    """Write a label map (or the brain or lesion mask) with all that evaluate reads of a result of participant."""
    paths = output_paths(Scan(entities, Path()), model, ["FAST", "FreeSurfer"], lesion=True)
    places = {"brain": paths.brain, "lesion": paths.lesion, **paths.dseg}
    path = output / str(places[kind])
    save(path, labels)
    source = f"bids:raw:sub-{entities['subject']}/anat/{Scan(entities, Path()).key}_T1w.nii.gz"
    sidecar = {"Sources": [source], "SpatialReference": source, "Models": [{"Name": model}], "InputFingerprints": [""]}
    write_json_atomic(with_extension(path, ".json"), sidecar)
