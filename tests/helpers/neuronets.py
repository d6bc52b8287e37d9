"""Small networks of the kind NeuroNet, with active batch normalisations."""

import torch
from torch import Tensor, nn

from bidsseg.networks.neuronet import NeuroNet

ALL = {"fsl_fast": 4, "fsl_first": 16, "spm_tissue": 4, "malp_em": 139, "malp_em_tissue": 6}
TISSUE = {name: ALL[name] for name in ("fsl_fast", "spm_tissue", "malp_em_tissue")}
SMALL = {"tissue": 3, "parts": 5}


def network(outputs: dict[str, int] = SMALL, widths: tuple[int, ...] = (4, 6, 8), images: int = 1) -> NeuroNet:
    """Return a small network in training mode with active batch normalisations."""
    torch.manual_seed(0)
    made = NeuroNet(outputs, images, widths)
    shake(made)
    return made


def shake(module: nn.Module) -> None:
    """Give batch normalisations random statistics and weights."""
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm3d):
            for values in (norm.weight.data, norm.running_var):
                assert values is not None
                nn.init.uniform_(values, 0.5, 1.5)
            for values in (norm.bias.data, norm.running_mean):
                assert values is not None
                nn.init.normal_(values, std=0.3)


def scan(*shape: int, channels: int = 1, number: int = 1) -> Tensor:
    return torch.randn(number, channels, *shape, generator=torch.Generator().manual_seed(1))


def weight_of(conv: nn.Module) -> Tensor:
    (weight,) = conv.parameters()
    return weight
