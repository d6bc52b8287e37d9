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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from bidsseg.arguments import device_name
from bidsseg.errors import BidssegError, DataError, UsageError, explained
from bidsseg.settings import PRECISIONS, check_memory

if TYPE_CHECKING:
    import nibabel as nib
    import pandas as pd

    from bidsseg.bids.scan import Scan
    from bidsseg.derivative.sidecar_keys import Sidecar
    from bidsseg.image.guard import Finding
    from bidsseg.image.nifti import Source
    from bidsseg.image.volume import Volume
    from bidsseg.labels.protocol import Protocol
    from bidsseg.models.card import Card
    from bidsseg.models.library import Model
    from bidsseg.registration.align import Images
    from bidsseg.segmentation.result import Segmentation

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
) -> Result:
    """Segment one scan.

    Args:
        image: the T1w; or images by suffix, ``{"T1w": ..., "FLAIR": ...}``, for a model that reads a FLAIR, which is
            aligned to the T1w.
        model: name of a shipped model, a model folder, or the result of :func:`load_model`, which is not read again
            at each call.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps`` (a GPU of Apple; not tested).
        precision: ``auto``, ``bf16`` or ``fp32``.
        memory_mb: memory limit (MB), None for the free memory.
        fast: omit the pass over the mirror image; slightly less accurate.
        probabilities: store the probability of every region, for ``Result.probability``.

    Raises:
        UsageError: an argument has an invalid value, or the model needs a FLAIR.
        InputMissing: an image or a model does not exist or cannot be opened.
        DataError: an image or a model cannot be used, or no brain is found.
        TemporaryFailure: memory runs out.
    """
    with _explained():
        images = _by_suffix(image)
        _check(device, precision, memory_mb)
        loaded = load_model(model) if isinstance(model, str | os.PathLike) else model
        return _segment(
            _used(images, loaded.card),
            loaded,
            device=device,
            precision=precision,
            memory_mb=memory_mb,
            fast=fast,
            probabilities=probabilities,
        )


def load_model(name_or_folder: str | os.PathLike[str]) -> Model:
    """Return a shipped model by name, or the model in a folder, for :func:`segment`.

    Raises:
        InputMissing: the model does not exist, or its weights are missing.
        DataError: the card or the weights are damaged.
    """
    from bidsseg.models import library

    with _explained():
        return library.load_model(os.fspath(name_or_folder))


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
        InputMissing: a file does not exist or cannot be opened.
        DataError: a label map cannot be used, contains values outside the protocol, or is on another grid.
    """
    import pandas as pd

    from bidsseg.evaluation import agreement
    from bidsseg.image.nifti import read_labels

    with _explained():
        table = _protocol(protocol)
        one, other = (read_labels(_source(image)) for image in (found, reference))
        if not one.on_grid_of(other):
            raise DataError(
                f"label maps of {one.shape} and {other.shape} voxels are on different grids: resample one to the other"
            )
        measured = agreement.compare(one.data, other.data, table, spacing_mm=other.spacing_mm.tolist(), mask=mask)
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


@dataclass(frozen=True, eq=False)
class Result:
    """The segmentation of one scan. Its nibabel images have the grid of the T1w and the geometry of its header.

    Attributes:
        model: the model that segmented the scan.
    """

    model: Model
    _scan: Scan
    _images: Images
    _segmentation: Segmentation

    @property
    def protocols(self) -> tuple[str, ...]:
        """Names of the protocols of the label maps."""
        return self.model.card.protocols

    @property
    def quality(self) -> float:
        """Mean probability of the chosen region over the brain, 0 to 1."""
        return self._segmentation.quality

    @property
    def findings(self) -> list[Finding]:
        """Observations about the scan and the result that should be checked, each with ``code`` and ``message``."""
        return [*self._images.findings, *self._segmentation.findings]

    @property
    def notes(self) -> list[str]:
        """Notes on how images were aligned and the result was computed, where this is unusual."""
        return [*self._images.notes, *self._segmentation.notes]

    @property
    def device(self) -> str:
        """Device of the network: ``cpu``, ``cuda:N`` or ``mps``."""
        return self._segmentation.device

    @property
    def precision(self) -> str:
        """Precision of the network: ``bf16`` or ``fp32``."""
        return self._segmentation.precision

    @property
    def brain_mask(self) -> nib.Nifti1Image:
        """The brain mask, uint8: 1 inside, 0 outside."""
        return self._image(self._segmentation.brain)

    @property
    def lesion_mask(self) -> nib.Nifti1Image | None:
        """The lesion mask, uint8: 1 inside, 0 outside; None for a model without lesions."""
        lesion = self._segmentation.lesion
        return None if lesion is None else self._image(lesion)

    def dseg(self, protocol: str) -> nib.Nifti1Image:
        """Return the label map of a protocol, in the smallest unsigned type.

        Raises:
            UsageError: the model has no such protocol.
        """
        return self._image(self._segmentation.labels[self._known(protocol)])

    def regions(self, protocol: str) -> pd.DataFrame:
        """Return the look-up table of a protocol: columns index, name, abbreviation, color, mapping.

        Raises:
            UsageError: the model has no such protocol.
        """
        from io import StringIO

        import pandas as pd

        table = self.model.heads[self._known(protocol)].to_tsv()
        return pd.read_csv(StringIO(table), sep="\t", dtype={"mapping": "Int64"})

    def volumes(self, protocol: str) -> pd.DataFrame:
        """Return the volumes of the regions of a protocol, with the intracranial volume in the last row.

        Columns index, name, abbreviation, voxels, volume-mm3, softvolume-mm3, as in ``morph.tsv``.

        Raises:
            UsageError: the model has no such protocol.
        """
        from bidsseg.derivative.volumes import volume_table

        found, voxel_mm3 = self._segmentation, self._t1w.voxel_volume_mm3
        labels = found.labels[self._known(protocol)]
        return volume_table(
            self.model.heads[protocol], labels, found.soft_mm3[protocol], voxel_volume_mm3=voxel_mm3, brain=found.brain
        )

    def probability(self, protocol: str, index: int) -> nib.Nifti1Image:
        """Return the probability (0 to 1, float32) of the region with an index in the label map.

        Raises:
            UsageError: the model has no such protocol, or probabilities were not stored.
            DataError: the protocol has no such region.
        """
        from bidsseg.image.nifti import map_image

        head = self.model.heads[self._known(protocol)]
        if protocol not in self._segmentation.probabilities:
            raise UsageError("no probabilities were stored: call segment with probabilities=True")
        position = head.regions.index(head.region(index))
        return map_image(self._segmentation.probabilities[protocol].of_region(position), self._t1w)

    def save(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write label maps with look-up tables and sidecars, tables of volumes and masks, and return the files.

        Names are those of ``bidsseg file``. Files are written whole or not at all, and replace files of the same name.

        Raises:
            OutputNotWritable: a file cannot be created.
            IOFailure: writing failed, e.g. the disk is full.
        """
        from bidsseg.bids.names import with_extension
        from bidsseg.bids.outputs import output_paths
        from bidsseg.derivative.sidecars import Origin, dseg_sidecar
        from bidsseg.derivative.volumes import to_tsv
        from bidsseg.files import write_json_atomic, write_text_atomic
        from bidsseg.image.nifti import write_labels

        found, card = self._segmentation, self.model.card
        places = output_paths(self._scan, card.name, self.protocols, lesion=found.lesion is not None)
        masks = [(places.brain, found.brain), (places.lesion, found.lesion)]
        maps = [(place, found.labels[name]) for name, place in places.dseg.items()]
        written = []
        with _explained():
            for place, labels in [*masks, *maps]:
                if place is not None and labels is not None:
                    written.append(Path(folder) / place.name)
                    write_labels(written[-1], labels, self._t1w)
            for name, place in places.dseg.items():
                lookup = Path(folder) / with_extension(place, ".tsv").name
                table = Path(folder) / places.morph[name].name
                write_text_atomic(lookup, self.model.heads[name].to_tsv())
                write_text_atomic(table, to_tsv(self.volumes(name)))
                sidecar = lookup.with_suffix(".json")
                write_json_atomic(sidecar, dseg_sidecar(name, Origin(details=self._details())))
                written += [lookup, table, sidecar]
        return written

    def __repr__(self) -> str:
        found = ", ".join(finding.code for finding in self.findings)
        findings = f", findings {found}" if found else ""
        return f"<bidsseg.Result of {self._scan.key} by {self.model.card.name}: quality {self.quality:.3f}{findings}>"

    @property
    def _t1w(self) -> Volume:
        return self._images.volumes["T1w"]

    def _image(self, labels: Any) -> nib.Nifti1Image:
        from bidsseg.image.nifti import label_image

        return label_image(labels, self._t1w)

    def _details(self) -> Sidecar:
        """Return the entries of a sidecar about models and result."""
        from bidsseg.derivative.sidecars import models_used, result_details

        locator = self.model.locator
        models = models_used([self.model.card, *([locator.card] if locator else [])])
        return {"Models": models, **result_details(self._images, self._segmentation)}

    def _known(self, protocol: str) -> str:
        if protocol not in self._segmentation.labels:
            names = ", ".join(self.protocols) or "none"
            raise UsageError(
                f"the model {self.model.card.name} has no label map of '{protocol}': choose one of: {names}"
            )
        return protocol


def _segment(
    sources: Mapping[str, Source],
    model: Model,
    *,
    device: str,
    precision: str,
    memory_mb: int | None,
    fast: bool,
    probabilities: bool,
) -> Result:
    """Read, align and segment images by suffix."""
    from bidsseg.bids.scan import Scan
    from bidsseg.execution.machine import find_machine
    from bidsseg.execution.pipeline import require_brain, require_room, segment_images
    from bidsseg.image.nifti import name_of
    from bidsseg.registration.align import read_aligned

    machine = find_machine(device, precision, memory_mb)
    if memory_mb is not None:
        require_room(machine, model)
    images = read_aligned(sources)
    found = segment_images(
        images,
        model,
        machine,
        strict=memory_mb is not None,
        fast=fast,
        want_probabilities=probabilities,
        want_entropy=False,
        progress=lambda stage: None,
    )
    name = name_of(sources["T1w"])
    require_brain(found, name)
    return Result(model, Scan.of_files(Path(name)), images, found)


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


def _check(device: str, precision: str, memory_mb: int | None) -> None:
    device_name(device)
    if precision not in PRECISIONS:
        raise UsageError(f"precision '{precision}': give {', '.join(PRECISIONS[:-1])} or {PRECISIONS[-1]}")
    check_memory(memory_mb, f"memory_mb={memory_mb}")


def _protocol(protocol: str | os.PathLike[str] | Protocol) -> Protocol:
    from bidsseg.labels.protocol import load_protocol

    return load_protocol(os.fspath(protocol)) if isinstance(protocol, str | os.PathLike) else protocol


@contextmanager
def _explained() -> Iterator[None]:
    """Raise errors of the system, of decoders and of allocators as BidssegError."""
    try:
        yield
    except BidssegError:
        raise
    except Exception as error:
        if known := explained(error):
            raise known from error
        raise
