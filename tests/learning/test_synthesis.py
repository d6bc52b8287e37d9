"""Images synthesised from label maps, and what surrounds a stripped brain."""

import pytest
import torch
from known_case import BOTH, STRUCTURES, case, seeded

from bidsseg.labels import load_protocol
from bidsseg.learning import synthesis
from bidsseg.learning.synthesis import noise_around


@pytest.mark.parametrize("name", ["FreeSurfer", "BrainCOLOR", "head", "FAST"])
@pytest.mark.parametrize("realistic", [True, False])
def test_left_and_right_are_equally_bright(name: str, realistic: bool) -> None:
    protocol = load_protocol(name)
    means, spread = synthesis.brightness(protocol, realistic=realistic, generator=seeded())
    partners = torch.tensor(protocol.partners())
    assert torch.equal(means, means[partners])
    assert torch.equal(spread, spread[partners])
    assert len(means.unique()) > len(means) / 3
    assert (means >= 0).all()


def test_a_synthetic_t1w_has_its_contrast() -> None:
    at = {region.name: i for i, region in enumerate(STRUCTURES.regions)}
    means = torch.stack(
        [synthesis.brightness(STRUCTURES, realistic=True, generator=seeded(seed))[0] for seed in range(50)]
    ).mean(0)
    white, grey, fluid = (
        means[at[name]] for name in ("Left Cerebral White Matter", "Left Cerebral Cortex", "Left Lateral Ventricle")
    )
    assert white > grey + 0.2 > fluid + 0.5


def test_a_synthetic_image_shows_the_regions() -> None:
    values = case().annotations[0].values
    image = synthesis.synthesise(values, STRUCTURES, realistic=True, generator=seeded())
    means, _ = synthesis.brightness(STRUCTURES, realistic=True, generator=seeded())
    inner = image[12:17, 30:33, 12:24].mean()
    assert image.shape == values.shape
    assert inner == pytest.approx(means[STRUCTURES.indices.index(2)].item(), abs=0.03)


def test_synthetic_images_of_the_same_labels_have_the_contrasts_of_their_kinds() -> None:
    values = case().annotations[0].values
    t1w, flair = synthesis.synthesise_each(values, STRUCTURES, realistic=True, contrasts=BOTH, generator=seeded())
    assert torch.equal(t1w, synthesis.synthesise(values, STRUCTURES, realistic=True, generator=seeded()))
    white, grey = (values == [r.name for r in STRUCTURES.regions].index(f"Left Cerebral {x}") for x in (
        "White Matter", "Cortex"))  # fmt: skip
    assert t1w[white].mean() > t1w[grey].mean() + 0.1
    assert flair[grey].mean() > flair[white].mean()


def test_smoothing_keeps_what_is_even() -> None:
    found = synthesis.smooth(torch.ones(8, 9, 10), 0.7)
    assert torch.allclose(found[1:-1, 1:-1, 1:-1], torch.ones(6, 7, 8))


def test_an_imperfect_strip_widens_the_brain_at_least_and_at_most_so_much() -> None:
    brain = torch.zeros(12, 12, 12, dtype=torch.bool)
    brain[5:7, 5:7, 5:7] = True

    def widened(voxels: int) -> torch.Tensor:
        expected = torch.zeros(24, 24, 24, dtype=torch.bool)
        inside = slice(2 * (5 - voxels), 2 * (7 + voxels))
        expected[inside, inside, inside] = True
        return expected

    for inner_mm, least in ((0.0, 0), (2.0, 1), (5.0, 2), (8.0, 4)):
        assert torch.equal(synthesis.strip(brain, inner_mm, 0.0, spacing_mm=2.0, generator=seeded()), widened(least))
    found = [synthesis.strip(brain, 2.0, 4.0, spacing_mm=2.0, generator=seeded(seed)) for seed in range(8)]
    for mask in found:
        assert not (widened(1) & ~mask).any() and not (mask & ~widened(3)).any()
    assert len({int(mask.sum()) for mask in found}) > 4


def test_noise_takes_the_place_of_air_alone() -> None:
    head = torch.zeros((12, 12, 12), dtype=torch.bool)
    head[3:9, 3:9, 3:9] = True
    images = torch.where(head, 0.7, 0.0).expand(2, -1, -1, -1)
    found = noise_around(images, head, seeded(1))
    assert torch.equal(found[:, head], images[:, head])
    assert (found[:, ~head] > 0).all() and found[:, ~head].std() > 0.02
    assert not torch.equal(found, noise_around(images, head, seeded(2)))
