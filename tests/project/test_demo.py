"""The dataset of `make demo`."""

import runpy
from pathlib import Path

import nibabel as nib
import numpy as np

from bidsseg.bids.query import find_scans
from bidsseg.bids.validator import validate
from bidsseg.image.nifti import read_image


def test_the_dataset_is_valid_and_both_scans_show_the_same_head(tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "benchmarks" / "demo_dataset.py"
    runpy.run_path(str(script))["main"](tmp_path / "bids")
    scans = find_scans(tmp_path / "bids")
    assert [scan.key for scan in scans] == ["sub-template", "sub-tilted"]
    assert validate(tmp_path / "bids", scans) == []
    volumes_mm3, centres = [], []
    for scan in scans:
        image, findings = read_image(scan.t1w)
        assert findings == []
        brain = image.data > 0.2 * image.data.max()
        volumes_mm3.append(brain.sum() * image.voxel_volume_mm3)
        centres.append(nib.affines.apply_affine(image.affine, np.argwhere(brain).mean(axis=0)))
    np.testing.assert_allclose(volumes_mm3[0], volumes_mm3[1], rtol=0.05)
    np.testing.assert_allclose(centres[0], centres[1], atol=2)
