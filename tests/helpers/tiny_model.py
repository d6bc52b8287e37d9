"""A model whose network segments tissues by brightness, so that a complete run takes a second."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bidsseg.models import library
from bidsseg.models.card import Card
from bidsseg.networks.network import Network

CLASSES = 4
FAST_HEADS = {"brain": [0, 1, 1, 1], "FAST": [0, 1, 2, 3]}


class Brightness(Network):
    """A network with the brightness classes 0, 1/3, 2/3 and 1 as features; each head names their regions."""

    multiple = 4

    def __init__(self, outputs: dict[str, int], meaning: dict[str, list[int]], sharpness: float = 20.0) -> None:
        super().__init__()
        self.heads = nn.ModuleDict({name: nn.Linear(CLASSES, regions) for name, regions in outputs.items()})
        for name, regions in meaning.items():
            weight = torch.zeros(outputs[name], CLASSES)
            weight[regions, torch.arange(CLASSES)] = sharpness
            self.heads[name].weight = nn.Parameter(weight)
            nn.init.zeros_(self.heads[name].bias)  # type: ignore[arg-type]

    def forward(self, image: Tensor, position: Tensor | None = None) -> Tensor:
        classes = torch.arange(CLASSES).reshape(1, -1, 1, 1, 1) / 3
        return torch.relu(1 - 3 * (image - classes).abs())


class SecondImage(Brightness):
    """Tells the classes by the second of two images."""

    def __init__(self, outputs: dict[str, int], meaning: dict[str, list[int]], images: int = 1) -> None:
        super().__init__(outputs, meaning)
        assert images == 2

    def forward(self, image: Tensor, position: Tensor | None = None) -> Tensor:
        assert image.shape[1] == 2
        return super().forward(image[:, 1:], position)


def save_tiny(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    network: type[Network] = Brightness,
    meaning: dict[str, list[int]] = FAST_HEADS,
    **values: Any,
) -> Path:
    """Write the model, whose network is registered until the end of the test, and return its folder."""
    monkeypatch.setitem(library.NETWORKS, "brightness", network)
    given = {"name": "tiny", "spacing_mm": 6.0, "heads": tuple(meaning), "inputs": ("T1w",), **values}
    options = {"name": "brightness", "meaning": meaning}
    card = Card(title="By brightness", sha256="", network=options, **given)
    library.save_model(card, library.build(card).state_dict(), folder)
    return folder
