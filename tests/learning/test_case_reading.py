"""What is read of annotations: positions of regions, the brain, and the direction of the ventricles."""

import numpy as np
import pytest
import torch
from known_case import FAST, STRUCTURES, case

from bidsseg.errors import DataError
from bidsseg.labels import Protocol, Region, load_protocol
from bidsseg.learning import augment
from bidsseg.learning.annotation_files import positions
from bidsseg.learning.case_reading import brain_of, towards_ventricles
from bidsseg.learning.cases import Annotation


def test_positions_count_the_rows_of_the_table() -> None:
    values = np.array([[[0, 41, 4]]], np.uint8)
    found = positions(values, STRUCTURES, "here")
    assert [STRUCTURES.regions[i].name for i in found.flatten().tolist()] == [
        "Background", "Right Cerebral White Matter", "Left Lateral Ventricle",
    ]  # fmt: skip


@pytest.mark.parametrize("value, kind", [(200, np.uint8), (-1, np.int16), (40_000, np.uint16), (10**9, np.int32)])
def test_a_value_that_the_protocol_lacks_is_named_with_its_file(value: int, kind: type) -> None:
    with pytest.raises(DataError, match=rf"sub-01_dseg\.nii\.gz: the values \[{value}\] .* FAST"):
        positions(np.array([[[0, 1, value]]], kind), FAST, "sub-01_dseg.nii.gz")


def test_protocols_may_have_more_regions_than_fit_into_a_byte() -> None:
    many = Protocol("many", tuple(Region(2 * i, f"r{i}", f"r{i}", "#000000", None) for i in range(400)))
    found = positions(np.array([[[0, 2, 520, 798]]], np.uint16), many, "here")
    assert found.flatten().tolist() == [0, 1, 260, 399]
    at = torch.stack(torch.meshgrid(*(torch.arange(float(n)) for n in found.shape), indexing="ij"), -1)
    assert torch.equal(augment.sample_labels(found, at), found)


def test_the_brain_is_what_is_surely_in_it() -> None:
    cortex = Annotation(
        load_protocol("BrainCOLOR"), positions(np.array([[[0, 63, 100, 4]]]), load_protocol("BrainCOLOR"), "")
    )
    tissue = Annotation(FAST, positions(np.array([[[0, 1, 2, 1]]]), FAST, ""))
    lesion = Annotation(load_protocol("lesion"), positions(np.array([[[0, 0, 1, 0]]]), load_protocol("lesion"), ""))
    for annotations, expected in (
        ([cortex], [False, False, True, True]),
        ([cortex, tissue, lesion], [False, True, True, True]),
    ):
        brain = brain_of(annotations)
        assert brain is not None
        assert brain.flatten().tolist() == expected
    assert brain_of([lesion]) is None


def test_the_direction_of_the_ventricles() -> None:
    found = towards_ventricles(case().annotations[0])
    assert found is not None
    assert found.shape == (3, 10, 11, 9)
    assert found.norm(dim=0).max().item() == pytest.approx(1)
    middle = found[:, :, 5, 4]
    assert middle[0, 1] > 0.1 > -0.1 > middle[0, 7]
    assert towards_ventricles(case().annotations[1]) is None
