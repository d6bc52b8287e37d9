"""The halfway space of several scans: unbiased, and the same in any order."""

import itertools

import numpy as np
import pytest
from moved_heads import FIXED, SHAPE, T1W, blobs, motion
from nibabel.affines import apply_affine

from bidsseg.image.volume import Volume
from bidsseg.registration import linear
from bidsseg.registration.align import Motion
from bidsseg.registration.halfway import halfway_motions, halfway_space, inverse, mean_motions, rigid, twist

POSES = [np.eye(4), motion(5, 8), motion(12, 25)]


@pytest.fixture(autouse=True)
def fewer_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare a third of the usual number of voxels, which is enough for these heads."""
    monkeypatch.setattr(linear, "SAMPLES", 10_000)


def scan(pose: np.ndarray, seed: int) -> Volume:
    """Return a head after a motion, on the grid of FIXED."""
    return Volume(blobs(inverse(pose) @ FIXED, SHAPE, T1W, seed).data, FIXED)


def test_the_logarithm_of_a_motion_is_inverted() -> None:
    for pose in (*POSES, motion(0, 170)):
        assert np.allclose(rigid(twist(pose)), pose, atol=1e-9)
        assert np.allclose(rigid(-twist(pose)), np.linalg.inv(pose), atol=1e-9)


def test_halfway_is_as_far_from_both_and_whatever_the_order() -> None:
    one, other = scan(POSES[0], 0), scan(POSES[1], 1)
    there, back = halfway_motions([one, other])
    assert np.allclose(there @ back, np.eye(4), atol=1e-9)
    found = inverse(back) @ there
    error = Motion.of(found @ inverse(POSES[1]), one)
    assert error.distance_mm < 0.3 and error.angle_degrees < 0.5
    swapped = halfway_motions([other, one])
    assert np.allclose([back, there], swapped, atol=1e-12)


def test_equal_scans_do_not_move() -> None:
    one = scan(POSES[0], 0)
    motions = halfway_motions([one, Volume(one.data.copy(), FIXED)])
    assert (motions[0] == np.eye(4)).all() and (motions[1] == np.eye(4)).all()


def test_the_mean_of_several_motions_is_unbiased() -> None:
    between = {(i, j): POSES[j] @ inverse(POSES[i]) for i, j in itertools.product(range(3), repeat=2)}
    found = mean_motions(between, 3)
    for i, j in between:  # from scan i to the space, and back to scan j
        assert np.allclose(inverse(found[j]) @ found[i], between[i, j], atol=1e-6)
    assert np.allclose(sum(twist(pose) for pose in found), 0, atol=1e-6)
    order = [2, 0, 1]
    permuted = mean_motions({(a, b): between[i, j] for a, i in enumerate(order) for b, j in enumerate(order)}, 3)
    assert np.allclose(permuted, [found[i] for i in order], atol=1e-9)


def test_an_image_is_where_its_motion_says() -> None:
    volumes = [scan(POSES[0], 0), scan(POSES[1], 1)]
    space = halfway_space(volumes, [volume.data > 30 for volume in volumes], 3.0)
    assert np.allclose(space.affine[:3, :3], 3 * np.eye(3))
    moved = [space.resampled(volume, pose) for volume, pose in zip(volumes, space.motions, strict=True)]
    inside = (moved[0] > 40) & (moved[1] > 40)
    assert np.corrcoef(moved[0][inside], moved[1][inside])[0, 1] > 0.9
    centre = apply_affine(space.motions[0] @ FIXED, (np.array(SHAPE) - 1) / 2)
    assert np.linalg.norm(apply_affine(np.linalg.inv(space.affine), centre) - np.array(space.shape) / 2) < 8


def test_voxels_outside_of_a_field_of_view_are_not_seen() -> None:
    whole = scan(POSES[0], 0)
    half = Volume(whole.data[:, :, : SHAPE[2] // 2], FIXED)
    space = halfway_space([whole, half], [whole.data > 30, half.data > 30], 4.0)
    seen = space.seen(half, np.eye(4))
    assert not space.resampled(half, np.eye(4))[~seen].any()
    assert space.seen(whole, np.eye(4)).sum() > seen.sum() > 0
