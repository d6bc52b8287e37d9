"""Text about a segmentation for a paper, and its references."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bidsseg import __version__
from bidsseg.bids.names import suffix_of
from bidsseg.derivative.sidecar_keys import (
    ModelUsed,
    Sidecar,
    lesion_mask,
    output_spaces,
    software_version,
    source_paths,
)
from bidsseg.derivative.sidecar_keys import models as models_of
from bidsseg.errors import BidssegError
from bidsseg.models.card import Card, find_card

BIDS_APPS = (
    "Gorgolewski et al. 2017, BIDS Apps: Improving ease of use, accessibility, and reproducibility of neuroimaging "
    "data analysis methods, doi:10.1371/journal.pcbi.1005209"
)
TEMPLATEFLOW = (
    "Ciric et al. 2022, TemplateFlow: FAIR-sharing of multi-scale, multi-species brain models, "
    "doi:10.1038/s41592-022-01681-2"
)
MATTES = (
    "Mattes et al. 2003, PET-CT image registration in the chest using free-form deformations, "
    "doi:10.1109/TMI.2003.809072"
)
FILLING = (
    "Battaglini et al. 2012, Evaluating and reducing the impact of white matter lesions on brain volume measurements, "
    "doi:10.1002/hbm.21344"
)
DEMONS = "Vercauteren et al. 2009, Diffeomorphic demons, doi:10.1016/j.neuroimage.2008.10.040"


@dataclass(frozen=True)
class Methods:
    """A paragraph and its references."""

    text: str
    references: tuple[str, ...]


def methods(sidecar: Sidecar, protocols: Sequence[str], corrected: Sequence[str] = ()) -> Methods | None:
    """Return the methods of the result with a sidecar; None if the sidecar names no model.

    Models are described by their cards, if they are shipped with this program.

    Args:
        corrected: protocols whose label maps were corrected by hand.
    """
    models = models_of(sidecar)
    if not models:
        return None
    name, *others = (str(model["Name"]) for model in models)
    cards = [card for model in models if (card := _card(model)) is not None]
    suffixes = list(dict.fromkeys(suffix_of(image) or "T1w" for image in source_paths(sidecar))) or ["T1w"]
    images, checksum = " and ".join(suffixes), str(models[0].get("SHA256", ""))[:12]
    version = software_version(sidecar, __version__)
    sentences = [
        f"{images} images were segmented with bidsseg {version}, a BIDS App (Gorgolewski et al. 2017), by its "
        f"model {name} (SHA-256 {checksum})."
    ]
    if cards and cards[0].name == name:
        sentences.append(cards[0].description.strip() or f"{cards[0].title}.")
    if others:
        sentences.append(f"The brain was found by the model {others[0]}.")
    if lesion_mask(sidecar):
        sentences.append(
            "Lesions are those of given masks. Before the segmentation, they were filled in the T1w with the "
            "brightness of the white matter around them (an approach of Battaglini et al. 2012)."
        )
    labelled = f"Label maps of {_listed(protocols)} are" if protocols else "The masks are"
    sentences.append(f"{labelled} on the grid of the {suffixes[0]}; volumes were computed by counting voxels.")
    if corrected:
        sentences.append(f"The label maps of {_listed(corrected)} were corrected by hand.")
    references = dict.fromkeys([BIDS_APPS, *(entry for card in cards for entry in card.citation)])
    if lesion_mask(sidecar):
        references[FILLING] = None
    if spaces := output_spaces(sidecar):
        bent = "deformable" in spaces.values()
        way = "affine registration (mutual information, Mattes et al. 2003)"
        way += ", then diffeomorphic demons (Vercauteren et al. 2009)" if bent else ""
        sentences.append(
            f"They were also resampled to the template {_listed(list(spaces))} (TemplateFlow, Ciric et al. 2022) by an "
            f"{way}; each voxel got its most probable label."
        )
        references |= dict.fromkeys([TEMPLATEFLOW, MATTES, *([DEMONS] if bent else [])])
    return Methods(" ".join(sentences), tuple(references))


def _card(model: ModelUsed) -> Card | None:
    """Return the card of a shipped model, if its checksum is the same."""
    try:
        card = find_card(str(model["Name"]))
    except BidssegError:
        return None
    return card if card.sha256 == model.get("SHA256") else None


def _listed(words: Sequence[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last
