"""The pose of a head from the positions of its regions, compared with an average brain."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from bidsseg.errors import DataError
from bidsseg.image.pose import Reference, find_pose, similarity
from bidsseg.image.shading import find_shading
from bidsseg.labels import load_protocol
from bidsseg.learning.average import average_brain
from bidsseg.learning.cases import Annotation, Case

CENTRES = np.random.default_rng(0).uniform(-60, 60, (20, 3))
REFERENCE = Reference(np.arange(1, 21), CENTRES, np.linspace(500, 2e5, 20), np.array([60.0, 75.0, 60.0]))


def turn(*degrees: float) -> np.ndarray:
    matrix: np.ndarray = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    return matrix


def placed(matrix: np.ndarray, scale: np.ndarray | float, shift: np.ndarray) -> np.ndarray:
    places: np.ndarray = (CENTRES * scale) @ matrix.T + shift
    return places


@pytest.mark.parametrize("degrees", [(0, 0, 0), (20, 0, 0), (5, -30, 12), (45, 45, 0), (0, 0, 170)])
def test_a_turned_head_is_found_turned(degrees: tuple[float, float, float]) -> None:
    matrix, scale, shift = turn(*degrees), np.array([0.95, 1.08, 1.02]), np.array([80.0, -20.0, 100.0])
    pose = find_pose(placed(matrix, scale, shift), REFERENCE.volumes_mm3 * scale.prod(), REFERENCE)
    assert pose is not None
    assert pose.angle_deg == pytest.approx(np.degrees(Rotation.from_matrix(matrix).magnitude()), abs=2)
    assert pose.turn == pytest.approx(matrix, abs=0.03)
    assert pose.centre_mm == pytest.approx(shift, abs=1.5)
    assert pose.scale == pytest.approx(scale, abs=0.03)
    assert pose.places(CENTRES) == pytest.approx(placed(matrix, scale, shift), abs=3)


def test_regions_that_are_cut_or_missing_do_not_turn_the_head() -> None:
    matrix, shift = turn(10, -25, 5), np.array([10.0, 20.0, 30.0])
    centres, volumes = placed(matrix, 1.0, shift), REFERENCE.volumes_mm3.copy()
    gone = CENTRES[:, 0] > 25
    centres[gone], volumes[gone] = np.nan, 0
    half = (CENTRES[:, 0] > 5) & ~gone
    centres[half] -= 12 * matrix[:, 0]
    volumes[half] *= 0.6
    pose = find_pose(centres, volumes, REFERENCE)
    assert pose is not None
    assert np.degrees(Rotation.from_matrix(pose.turn.T @ matrix).magnitude()) < 6
    assert pose.centre_mm == pytest.approx(shift, abs=8)


def test_few_regions_give_no_pose() -> None:
    volumes = np.where(np.arange(20) < 3, REFERENCE.volumes_mm3, 0)
    assert find_pose(CENTRES, volumes, REFERENCE) is None
    assert find_pose(np.full((20, 3), np.nan), np.zeros(20), REFERENCE) is None


def test_a_mirror_image_is_no_rotation() -> None:
    rotation, _, _ = similarity(CENTRES, CENTRES * [-1, 1, 1], np.ones(20))
    assert np.linalg.det(rotation) == pytest.approx(1)


def test_a_card_keeps_the_reference() -> None:
    values = REFERENCE.to_card("FreeSurfer")
    found = Reference.from_card(values)
    assert values["head"] == "FreeSurfer"
    assert np.array_equal(found.indices, REFERENCE.indices)
    assert found.centres_mm == pytest.approx(CENTRES, abs=0.05)
    assert found.half_mm == pytest.approx(REFERENCE.half_mm)


# -- an average brain --------------------------------------------------------------------------------------------------


def labelled(name: str, shift: int) -> Case:
    """Return a brain of ten blocks in a row, with regions of FreeSurfer."""
    protocol = load_protocol("FreeSurfer").scored()
    solid = [i for i, region in enumerate(protocol.regions) if i and region.mapping != 3][:10]
    values = torch.zeros((60, 40, 40), dtype=torch.uint8)
    for place, region in enumerate(solid):
        values[5 * place + shift : 5 * place + shift + 5, 10:30, 10:30] = region
    return Case(f"set/{name}", None, (Annotation(protocol, values),), values > 0)


def test_an_average_brain_is_the_mean_of_brains() -> None:
    protocol = load_protocol("FreeSurfer").scored()
    found = average_brain([labelled("sub-1", 0), labelled("sub-2", 8)], protocol)
    assert len(found.indices) == 10
    assert found.volumes_mm3 == pytest.approx(np.full(10, 5 * 20 * 20))
    assert np.diff(found.centres_mm[:, 0]) == pytest.approx(np.full(9, 5.0))
    assert found.centres_mm.mean(0) == pytest.approx(np.zeros(3), abs=0.6)


def test_without_known_regions_there_is_no_average() -> None:
    brain = load_protocol("brain")
    values = torch.ones((8, 8, 8), dtype=torch.uint8)
    case = Case("set/sub-1", None, (Annotation(brain, values),), values > 0)
    with pytest.raises(DataError, match="pose of a head"):
        average_brain([case], load_protocol("FreeSurfer").scored())


# -- shading -----------------------------------------------------------------------------------------------------------


def field(places: np.ndarray) -> np.ndarray:
    brightness: np.ndarray = np.exp(0.4 - 0.5 * (places**2).sum(-1) + 0.2 * places[..., 0])
    return brightness


def test_shading_is_found_by_tissue_that_should_be_alike() -> None:
    draw = np.random.default_rng(0)
    places = draw.uniform(-1, 1, (4000, 3))
    places = places[(places**2).sum(1) < 0.8]
    brightness = 0.7 * field(places) * (1 + 0.03 * draw.standard_normal(len(places)))
    brightness[::15] *= 0.5  # other tissue
    shading = find_shading(brightness, places)
    assert shading.strength == pytest.approx(np.log(field(places)).std(), rel=0.15)
    axis = np.linspace(-0.6, 0.6, 9)
    grid = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1)
    ratio = shading.along((axis, axis, axis)) / field(grid)
    assert ratio.std() / ratio.mean() < 0.03


def test_without_shading_none_is_found() -> None:
    places = np.random.default_rng(0).uniform(-1, 1, (4000, 3))
    shading = find_shading(np.full(4000, 3.0), places)
    assert shading.strength < 1e-6
    assert shading.along((np.zeros(2), np.ones(3), np.zeros(4))) == pytest.approx(np.ones((2, 3, 4)))
