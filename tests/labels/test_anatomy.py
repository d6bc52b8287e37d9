"""The regions that places of lesions refer to."""

import pytest

from bidsseg.labels import load_protocol
from bidsseg.labels.anatomy import Anatomy, find_anatomy
from bidsseg.labels.protocol import BACKGROUND, Protocol, Region


def names(protocol: str) -> dict[str, set[str]]:
    table = load_protocol(protocol)
    found = find_anatomy(table)
    assert isinstance(found, Anatomy)
    return {part: {table.region(index).name for index in indices} for part, indices in vars(found).items()}


@pytest.mark.parametrize("protocol", ["BrainCOLOR", "FreeSurfer", "aseg", "DesikanKilliany", "DKT", "head"])
def test_protocols_with_anatomy(protocol: str) -> None:
    found = names(protocol)
    assert "Left Lateral Ventricle" in found["ventricles"]
    assert not any("3rd" in name or "4th" in name or "Ventral" in name for name in found["ventricles"])
    assert {"Brain Stem", "Left Cerebellum White Matter"} <= found["infratentorial"]
    assert {"Left Cerebral White Matter", "Right Hippocampus", "Left Ventral DC"} <= found["cerebrum"]
    cortex = {"BrainCOLOR": "Left PCu precuneus", "DKT": "Left Precuneus"}.get(protocol, "Left Cerebral Cortex")
    assert cortex in found["cortex"]
    assert not any("Cerebell" in name for name in found["cortex"])
    groups = [index for part in found.values() for index in part]
    assert len(groups) == len(set(groups)) and not any("Lesion" in name or "hypointens" in name for name in groups)


@pytest.mark.parametrize("protocol", ["FAST", "FASTlesion", "lesion", "brain", "Atropos"])
def test_tissues_are_no_anatomy(protocol: str) -> None:
    assert find_anatomy(load_protocol(protocol)) is None


def test_names_suffice_without_classes() -> None:
    words = ["Lateral_Ventricle", "ctx-lh-superiorfrontal", "Pons", "Vessel"]
    regions = [Region(i, name, name, "#808080", None) for i, name in enumerate(words, 1)]
    found = find_anatomy(Protocol("own", (BACKGROUND, *regions)))
    assert found == Anatomy(ventricles=(1,), cortex=(2,), infratentorial=(3,), cerebrum=())


@pytest.mark.parametrize("name", ["Left-VentralDC", "Left-Ventral-DC", "Left-Claustrum", "Left-Substancia-Nigra"])
def test_deep_grey_matter_in_the_spelling_of_freesurfer_is_no_cortex(name: str) -> None:
    words = {"Left-Lateral-Ventricle": 3, "Left-Cerebral-Cortex": 1, "Brain-Stem": 1, name: 1}
    regions = [Region(i, word, word, "#808080", kind) for i, (word, kind) in enumerate(words.items(), 1)]
    found = find_anatomy(Protocol("own", (BACKGROUND, *regions)))
    assert found == Anatomy(ventricles=(1,), cortex=(2,), infratentorial=(3,), cerebrum=(4,))
