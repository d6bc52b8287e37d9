"""Samples of a scan with several images, of which some may be missing."""

from dataclasses import replace

import pytest
import torch
from known_case import BOTH, CALM, SAMPLING, SHAPE, STILL, case, seeded

from bidsseg.learning.augment import Intensity, Spatial
from bidsseg.learning.cases import Case, View, draw_sample


def two_images(flair: bool = True) -> Case:
    """Return a case whose second image is ten times as bright with a gradient along another axis, or is missing."""
    known = case()
    assert known.image is not None
    ramp = torch.arange(float(SHAPE[2])).expand(SHAPE) + 10
    return replace(known, image=torch.cat([known.image, 10 * flair * ramp[None] * known.brain]))


@pytest.mark.parametrize("changes", [{}, {"whole_head": True}, {"whole_head": True, "anywhere": True}])
@pytest.mark.parametrize("normalisation", ["percentile", "zscore"])
def test_each_image_is_normalised_by_itself(changes: dict[str, bool], normalisation: str) -> None:
    """Both channels equal the samples of the single images."""
    sampling, given = replace(SAMPLING, **changes, stripped=0, cut=0), two_images()  # type: ignore[arg-type]
    assert given.image is not None
    sample = draw_sample(given, View(sampling, STILL, CALM, 1.0, normalisation, BOTH), seeded())
    assert sample.image.shape == (1, 2, 32, 32, 32)
    for i in range(2):
        single = replace(given, image=given.image[i : i + 1])
        alone = draw_sample(single, View(sampling, STILL, CALM, 1.0, normalisation), seeded())
        assert torch.allclose(sample.image[0, i], alone.image[0, 0], atol=1e-4)


@pytest.mark.parametrize("changes", [{}, {"whole_head": True}, {"whole_head": True, "anywhere": True}])
@pytest.mark.parametrize("normalisation", ["percentile", "zscore", "byte"])
def test_a_missing_image_stays_zero(changes: dict[str, bool], normalisation: str) -> None:
    sampling = replace(SAMPLING, **changes, noise_around=1.0)  # type: ignore[arg-type]
    for given, share in ((two_images(flair=False), 0.0), (two_images(), 1.0), (case(image=False), 1.0)):
        asked = replace(sampling, missing=share)
        image = draw_sample(given, View(asked, Spatial(), Intensity(), 1.0, normalisation, BOTH), seeded()).image
        assert image.shape == (1, 2, 32, 32, 32)
        assert image[0, 0].any() and not image[0, 1].any()


def test_images_are_hidden_as_often_as_asked() -> None:
    sampling = replace(SAMPLING, shape=(16, 16, 16), points=100, missing=0.3)
    view = View(sampling, STILL, CALM, 2.0, contrasts=BOTH)
    drawn = (draw_sample(two_images(), view, seeded(seed)) for seed in range(100))
    assert 20 <= sum(not sample.image[0, 1].any() for sample in drawn) <= 40
