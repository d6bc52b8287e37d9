"""The Python interface: segment one scan in memory, and compare label maps.

    import bidsseg

    result = bidsseg.segment("t1w.nii.gz")
    result.dseg("FreeSurfer")     # a nibabel image on the grid of the scan
    result.volumes("FreeSurfer")  # a pandas table

No function prints, or changes the threads or the settings of torch. The label maps equal those of the command line
for the same scan on the same device, with the same precision and memory. Errors are those of ``bidsseg.errors``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from bidsseg.arguments import device_name
from bidsseg.errors import DataError, UsageError, explaining
from bidsseg.result import Result
from bidsseg.settings import PRECISIONS, check_lesion_rule, check_memory

if TYPE_CHECKING:
    import nibabel as nib
    import numpy as np
    import pandas as pd

    from bidsseg.image.nifti import Source
    from bidsseg.labels.protocol import Protocol
    from bidsseg.models.card import Card
    from bidsseg.models.lesion_rule import LesionRule
    from bidsseg.models.library import Model
    from bidsseg.registration.align import Images

__all__ = ["Image", "Result", "compare", "list_models", "load_model", "segment"]

Image: TypeAlias = "str | os.PathLike[str] | nib.spatialimages.SpatialImage"
"""A file (``.nii``, ``.nii.gz``, ``.mgh``, ``.mgz``) or a nibabel image."""

SUFFIXES = ("T1w", "FLAIR")


def segment(
    image: Image | Mapping[str, Image],
    *,
    model: str | os.PathLike[str] | Model = "wholebrain",
    device: str = "auto",
    precision: str = "auto",
    memory_mb: int | None = None,
    fast: bool = False,
    probabilities: bool = False,
    lesion_threshold: float | None = None,
    least_lesion_mm3: float | None = None,
    least_lesion_peak: float | None = None,
    lesions: Image | None = None,
) -> Result:
    """Segment one scan.

    Args:
        image: the T1w, or an image of another contrast for a model that reads it (``open``); or images by suffix,
            ``{"T1w": ..., "FLAIR": ...}``, for a model that reads a FLAIR, which is aligned to the T1w.
        model: name of a shipped model, a model folder, or the result of :func:`load_model`, which is not read again
            at each call.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps`` (a GPU of Apple; not tested).
        precision: ``auto``, ``bf16`` or ``fp32``.
        memory_mb: memory limit (MB), None for the free memory.
        fast: omit the pass over the mirror image; slightly less accurate.
        probabilities: store the probability of every region, for ``Result.probability``.
        lesion_threshold: least probability of a lesion voxel, above 0 and at most 1; None for that of the model.
        least_lesion_mm3: omit lesions that are smaller (mm³); None for the volume of the model.
        least_lesion_peak: omit lesions in which no voxel has this probability, 0 to 1; None for that of the model.
        lesions: mask of lesions that are given (values above 0, or probabilities of at least .5), on the grid of the
            T1w, which is filled there before it is segmented; not for images of another contrast.

    Raises:
        UsageError: an argument has an invalid value or no effect, or the model needs a FLAIR.
        InputMissing: an image or a model does not exist or cannot be opened.
        DataError: an image or a model cannot be used, or no brain is found.
        TemporaryFailure: memory runs out.
    """
    with explaining():
        images = _by_suffix(image)
        rule = {
            "lesion_threshold": lesion_threshold,
            "least_lesion_mm3": least_lesion_mm3,
            "least_lesion_peak": least_lesion_peak,
        }
        _check_numbers(memory_mb=memory_mb, **rule)
        _check(device, precision, memory_mb)
        check_lesion_rule(*rule.values(), names=tuple(rule))
        if lesions is not None and any(number is not None for number in rule.values()):
            raise UsageError(f"{', '.join(rule)} have no effect on given lesions")
        loaded = load_model(model) if isinstance(model, str | os.PathLike) else model
        if not hasattr(loaded, "card"):
            raise UsageError(f"model {model!r}: give a name, a folder or the result of load_model")
        if loaded.card.lesion is None and (useless := next((key for key, it in rule.items() if it is not None), "")):
            raise UsageError(f"{loaded.card.name} finds no lesions: {useless} has no effect")
        return _segment(
            _used(images, loaded.card),
            loaded,
            device=device,
            precision=precision,
            memory_mb=memory_mb,
            fast=fast,
            probabilities=probabilities,
            lesions=loaded.card.lesion_rule(*rule.values()) if lesions is None else None,
            given=None if lesions is None else _source(lesions),
        )


def load_model(name_or_folder: str | os.PathLike[str]) -> Model:
    """Return a shipped model by name, or the model in a folder, for :func:`segment`.

    Raises:
        InputMissing: the model does not exist, or its weights are missing.
        DataError: the card or the weights are damaged.
    """
    from bidsseg.models.library import load_model as read_model

    with explaining():
        return read_model(os.fspath(name_or_folder))


def list_models() -> list[Card]:
    """Return the cards of the shipped models: name, title, inputs, heads, Dice, licence and more."""
    from bidsseg.models.card import shipped

    return shipped()


def compare(
    found: Image,
    reference: Image,
    protocol: str | os.PathLike[str] | Protocol,
    *,
    mask: Literal["own", "reference"] = "own",
) -> pd.DataFrame:
    """Compute how well two label maps on one grid agree.

    Args:
        found: label map to evaluate.
        reference: reference label map.
        protocol: the meaning of the values of both: name of a shipped protocol, a ``dseg.tsv`` file, or a protocol.
        mask: with ``reference``, only voxels labelled in the reference count.

    Returns:
        One row for each scored region except the background, with the columns index, name, abbreviation, dice,
        hausdorff95-mm, surface-distance-mm, found-mm3 and reference-mm3. Undefined values are NaN: everything but the
        volumes for a region in neither map, distances for a region in only one map.

    Raises:
        UsageError: an argument has an invalid value.
        InputMissing: a file does not exist or cannot be opened.
        DataError: a label map cannot be used, contains values outside the protocol, or is on another grid.
    """
    import pandas as pd

    from bidsseg.evaluation import agreement
    from bidsseg.image.nifti import read_labels
    from bidsseg.registration.label_files import on_same_grid

    if mask not in ("own", "reference"):
        raise UsageError(f"mask {mask!r}: give own or reference")
    with explaining():
        table = _protocol(protocol)
        one, drawn = (read_labels(_source(image)) for image in (found, reference))
        other = on_same_grid(drawn, one)
        if other is None:
            raise DataError(
                f"label maps of {one.shape} and {drawn.shape} voxels are on different grids: resample one to the other"
            )
        measured = agreement.compare(one.data, other.data, table, affine=other.affine, mask=mask)
    regions = [region for region in table.regions if region.scored and region.index != 0]
    return pd.DataFrame(
        {
            "index": [region.index for region in regions],
            "name": [region.name for region in regions],
            "abbreviation": [region.abbreviation for region in regions],
            "dice": measured.dice,
            "hausdorff95-mm": measured.hausdorff95_mm,
            "surface-distance-mm": measured.surface_distance_mm,
            "found-mm3": measured.found_mm3,
            "reference-mm3": measured.reference_mm3,
        }
    )


def _segment(
    sources: Mapping[str, Source],
    model: Model,
    *,
    device: str,
    precision: str,
    memory_mb: int | None,
    fast: bool,
    probabilities: bool,
    lesions: LesionRule | None,
    given: Source | None,
) -> Result:
    """Read, align and segment images by suffix.

    Args:
        lesions: which voxels are lesions; None if they are given.
        given: mask of lesions on the grid of the T1w.
    """
    from bidsseg.bids.scan import Scan
    from bidsseg.derivative.given_lesions import NO_T1W
    from bidsseg.execution.machine import find_machine
    from bidsseg.execution.pipeline import require_brain, require_room, segment_images
    from bidsseg.image.nifti import name_of
    from bidsseg.models.card import written_protocols
    from bidsseg.registration.align import read_aligned
    from bidsseg.segmentation.filling import fill_lesions
    from bidsseg.segmentation.given_lesions import with_given_lesions

    name = name_of(sources["T1w"])
    scan = Scan.of_files(Path(name))
    if given is not None and not (scan.modality == "T1w" and model.card.reads("T1w")):
        raise UsageError(NO_T1W.format(name))
    machine = find_machine(device, precision, memory_mb)
    if memory_mb is not None:
        require_room(machine, model, memory_mb)
    images = read_aligned(sources)
    t1w = images.volumes["T1w"]
    mask = None if given is None else _mask(given, images)
    found = segment_images(
        images,
        model,
        machine,
        strict=memory_mb is not None,
        fast=fast,
        filled=None if mask is None else fill_lesions(t1w, mask),
        lesions=lesions,
        given=mask,
        want_probabilities=probabilities,
        want_entropy=False,
        progress=lambda stage: None,
    )
    protocols = written_protocols(model.card, given_lesions=mask is not None)
    if mask is not None:
        found = with_given_lesions(found, mask, protocols, voxel_mm3=t1w.voxel_volume_mm3)
    require_brain(found, model, name)
    return Result(model, protocols, scan, images, found, lesions, fast)


def _mask(source: Source, images: Images) -> np.ndarray:
    """Return the voxels of a mask, booleans (X, Y, Z). DataError if it is on another grid than the T1w.

    Differences are accepted, with a note among those of the images.
    """
    from bidsseg.image.nifti import name_of
    from bidsseg.registration.label_files import on_same_grid, read_values

    def note(path: Path, text: str) -> None:
        images.notes.append(f"{path.name}: {text}")

    values = read_values(source, note=note, is_mask=True)
    mask = on_same_grid(values, images.volumes["T1w"], note=partial(note, Path(name_of(source))))
    if mask is None:
        raise DataError(f"{name_of(source)}: the mask of lesions is not on the grid of the T1w: resample it")
    found: np.ndarray = mask.data > 0
    return found


def _by_suffix(image: Image | Mapping[str, Image]) -> dict[str, Source]:
    """Return images by suffix, from a mapping or a single image."""
    given = image if isinstance(image, Mapping) else {"T1w": image}
    unknown = [str(suffix) for suffix in given if suffix not in SUFFIXES]
    if unknown or "T1w" not in given:
        raise UsageError(
            f"images by suffix are {{'T1w': ..., 'FLAIR': ...}}, not {', '.join(map(repr, given)) or 'empty'}"
        )
    return {suffix: _source(given[suffix]) for suffix in SUFFIXES if suffix in given}


def _source(image: Image) -> Source:
    from nibabel.spatialimages import SpatialImage

    if isinstance(image, str | os.PathLike):
        return Path(image)
    if not isinstance(image, SpatialImage):
        raise UsageError(f"an image must be a path or a nibabel image, not {type(image).__name__}")
    return image


def _used(images: Mapping[str, Source], card: Card) -> dict[str, Source]:
    """Return the images that a model reads."""
    if missing := card.lacks(images):
        raise UsageError(f"the model {card.name} needs a {missing}: give {{'T1w': ..., '{missing}': ...}}")
    return {suffix: images[suffix] for suffix in card.inputs}


def _check_numbers(**given: object) -> None:
    """Raise UsageError for an argument that is neither a number nor None."""
    for name, value in given.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, Real)):
            raise UsageError(f"{name} {value!r}: give a number")


def _check(device: str, precision: str, memory_mb: int | None) -> None:
    device_name(str(device))
    if precision not in PRECISIONS:
        raise UsageError(f"precision '{precision}': give {', '.join(PRECISIONS[:-1])} or {PRECISIONS[-1]}")
    check_memory(memory_mb, f"memory_mb={memory_mb}")


def _protocol(protocol: str | os.PathLike[str] | Protocol) -> Protocol:
    from bidsseg.labels.protocol import load_protocol

    found = load_protocol(os.fspath(protocol)) if isinstance(protocol, str | os.PathLike) else protocol
    if not hasattr(found, "regions"):
        raise UsageError(f"protocol {protocol!r}: give a name, a table or a protocol")
    return found
