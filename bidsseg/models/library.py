"""Models with their weights: load, save, verify."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from bidsseg.errors import DataError, InputMissing
from bidsseg.files import replacing
from bidsseg.image.brightness import NORMALISATIONS
from bidsseg.labels import Protocol
from bidsseg.models.card import CARD, Card, find_card, head_protocol, table_name
from bidsseg.models.weights import packed, unpacked
from bidsseg.networks.eneuronet import ENeuroNet
from bidsseg.networks.network import Network
from bidsseg.networks.neuronet import NeuroNet
from bidsseg.networks.segnet.staged import StagedSegNet
from bidsseg.networks.subpixel_unet import SubpixelUNet
from bidsseg.networks.unet import UNet
from bidsseg.schema import check_options

NETWORKS: dict[str, Callable[..., Network]] = {
    "subpixel-unet": SubpixelUNet,
    "neuronet": NeuroNet,
    "segnet": StagedSegNet,
    "unet": UNet,
    "eneuronet": ENeuroNet,
}


@dataclass(frozen=True)
class Model:
    """A network with trained weights, its card, and the model that finds the brain for it."""

    card: Card
    network: Network
    locator: Model | None = None

    @property
    def sha256(self) -> str:
        """Checksum of the weights."""
        return self.card.sha256

    @cached_property
    def heads(self) -> dict[str, Protocol]:
        """The scored regions that each head predicts, by protocol name."""
        return {name: head_protocol(self.card, name) for name in self.card.heads}


def save_protocol(protocol: Protocol, folder: Path) -> None:
    """Write the regions of a head into the model's folder, where ``head_protocol`` reads them."""
    with replacing(folder / table_name(protocol.name)) as stream:
        stream.write(protocol.scored().to_tsv().encode())


def build(card: Card) -> Network:
    """Return the untrained network of a card, with as many channels as the card has inputs."""
    path = card.folder / CARD
    where = str(path) if path.is_file() else f"model {card.name}"
    if card.normalisation not in NORMALISATIONS:
        known = ", ".join(NORMALISATIONS)
        raise DataError(f"{where}: normalisation: no normalisation '{card.normalisation}', known are {known}")
    outputs = {name: len(head_protocol(card, name).regions) for name in card.heads}
    return build_network(card.network, card.inputs, outputs, where=where)


def build_network(network: Mapping[str, Any], inputs: Sequence[str], outputs: dict[str, int], *, where: str) -> Network:
    """Return a network that is not trained; DataError if it does not take the options, inputs or heads.

    Args:
        network, inputs, where: see ``check_network``.
        outputs: number of regions of each head.
    """
    kind, options = check_network(network, inputs, where)
    try:
        return kind(outputs=outputs, **options)
    except (TypeError, ValueError, LookupError, RuntimeError) as error:
        raise DataError(f"{where}: the network options do not fit {network['name']} ({error})") from error


def check_network(
    network: Mapping[str, Any], inputs: Sequence[str], where: str
) -> tuple[Callable[..., Network], dict[str, Any]]:
    """Return the class of a network and its options.

    Args:
        network: name and options, as in a card or recipe.
        inputs: suffixes of the images that the network reads.
        where: the file or model, for messages.

    Raises:
        DataError: with the key, if there is no such network, or if the network does not take the options or inputs.
    """
    options = dict(network)
    name = options.pop("name", None)
    if not isinstance(name, str) or name not in NETWORKS:
        raise DataError(f"{where}: network.name: no network {name!r}, known are {', '.join(NETWORKS)}")
    kind, count = NETWORKS[name], len(inputs)
    check_options(kind, options, where, inside="network", leave_out="outputs")
    if options.get("images", count) != count:
        raise DataError(f"{where}: network.images = {options['images']} does not fit its inputs; leave it out")
    if "images" in signature(kind).parameters:
        return kind, {**options, "images": count}
    if count > 1:
        raise DataError(f"{where}: the network {name} reads one image, but inputs lists {' and '.join(inputs)}")
    return kind, options


def load_model(name_or_folder: str) -> Model:
    """Return a model ready for inference; DataError if the weights do not match the card."""
    card = find_card(name_or_folder)
    if not card.weights.is_file():
        raise InputMissing(f"model {card.name}: {card.weights} is missing")
    if checksum(card.weights) != card.sha256:
        raise DataError(f"model {card.name}: {card.weights} does not have the checksum on its card; download it again")
    with torch.random.fork_rng(devices=[]):  # the initial weights, which the file replaces
        network = build(card)
    try:
        network.load_state_dict(unpacked(load_file(card.weights)))
    except Exception as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise DataError(f"model {card.name}: the weights do not fit the network on the card ({reason})") from error
    locator = load_model(card.locator) if card.locator else None
    return Model(card, network.eval().requires_grad_(requires_grad=False), locator)


def save_model(card: Card, weights: dict[str, Tensor], folder: Path) -> Card:
    """Write card and weights into a folder and return the card with its checksum."""
    stored = save(packed(weights, card.bits))
    card = replace(card, sha256=hashlib.sha256(stored).hexdigest(), folder=folder)
    with replacing(card.weights) as stream:
        stream.write(stored)
    save_card(card)
    return card


def save_card(card: Card) -> None:
    """Write a card into its folder."""
    with replacing(card.folder / CARD) as stream:
        stream.write(card.to_json().encode())


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
