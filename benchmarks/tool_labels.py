"""Tissue classes of skull-stripped T1w scans by Atropos (Avants et al. 2011), as training labels of a further tool.

    python benchmarks/tool_labels.py BIDS_DIR OUT

The script needs ``pip install bidsseg[antspyx]``. Each scan is corrected for shading (N4), and its voxels above 0 are
divided into three classes, initialised by k-means and numbered by mean brightness, 1 being the darkest. OUT becomes a
BIDS derivative dataset: give it to ``train`` as ``--labels Atropos=OUT``. The script prints the seconds for each scan.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np

from bidsseg.bids.names import build_name
from bidsseg.bids.query import find_scans
from bidsseg.derivative.root import BIDS_VERSION
from bidsseg.files import write_json_atomic, write_text_atomic
from bidsseg.image.nifti import read_image, write_labels
from bidsseg.image.volume import Volume
from bidsseg.labels import load_protocol

TAIL_PERCENT = 1.0
"""Percentage of brain voxels that are clipped at each end of the intensity range."""


def main(bids_dir: Path, out: Path) -> None:
    """Write the label map of every scan that has none yet."""
    import ants

    generator = {"Name": "Atropos", "Version": ants.__version__, "CodeURL": "https://github.com/ANTsX/ANTsPy"}
    description = {
        "Name": "Tissue classes by N4 and Atropos",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [generator],
    }
    write_json_atomic(out / "dataset_description.json", description)
    write_text_atomic(out / "seg-Atropos_dseg.tsv", load_protocol("Atropos").to_tsv())
    for scan in find_scans(bids_dir):
        stem = build_name({**scan.entities, "segmentation": "Atropos"}, "dseg")
        path = out / scan.t1w.relative_to(bids_dir).parent / f"{stem}.nii.gz"
        if path.is_file():
            continue
        started, busy = time.monotonic(), time.process_time()
        volume, _ = read_image(scan.t1w)
        write_json_atomic(path.with_name(f"{stem}.json"), {"Manual": False, "SpatialReference": "orig"})
        write_labels(path, tissue_classes(volume), volume)
        seconds = time.monotonic() - started, time.process_time() - busy
        print(f"{scan.key}: {seconds[0]:.1f} s, {seconds[1]:.1f} s of CPU time", flush=True)


def tissue_classes(volume: Volume) -> np.ndarray:
    """Return the classes 1 to 3, from dark to bright, of the voxels (X, Y, Z) above 0; 0 elsewhere; uint8."""
    import ants

    spacing = volume.spacing_mm.tolist()
    image = ants.from_numpy(volume.data.astype(np.float32), spacing=spacing)
    brain = ants.from_numpy((volume.data > 0).astype(np.float32), spacing=spacing)
    even = ants.n4_bias_field_correction(image, mask=brain)
    even = even.new_image_like(within_tails(even.numpy(), volume.data > 0))
    found = ants.atropos(a=even, x=brain, i="kmeans[3]", m="[0.1,1x1x1]", c="[5,0]")["segmentation"].numpy()
    return by_brightness(np.rint(found).astype(np.uint8), even.numpy())


def within_tails(image: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """Return the image clipped to the central intensities of the brain; bright vessels would be a separate class."""
    low, high = np.percentile(image[brain], (TAIL_PERCENT, 100 - TAIL_PERCENT))
    return image.clip(low, high)


def by_brightness(classes: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Return the classes renumbered from the darkest, 1, to the brightest; 0 stays 0."""
    present = np.unique(classes[classes > 0])
    ranked = sorted(present, key=lambda value: image[classes == value].mean())
    table = np.zeros(classes.max() + 1, np.uint8)
    table[ranked] = np.arange(1, len(ranked) + 1)
    ordered: np.ndarray = table[classes]
    return ordered


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
