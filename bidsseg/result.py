"""The segmentation of one scan in memory, which ``bidsseg.segment`` returns."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bidsseg.errors import UsageError, explaining

if TYPE_CHECKING:
    import nibabel as nib
    import pandas as pd

    from bidsseg.bids.scan import Scan
    from bidsseg.derivative.sidecar_keys import Sidecar
    from bidsseg.image.guard import Finding
    from bidsseg.image.volume import Volume
    from bidsseg.labels.protocol import Protocol
    from bidsseg.models.lesion_rule import LesionRule
    from bidsseg.models.library import Model
    from bidsseg.registration.align import Images
    from bidsseg.segmentation.result import Segmentation


@dataclass(frozen=True, eq=False)
class Result:
    """The segmentation of one scan. Its nibabel images have the grid of the T1w and the geometry of its header.

    Attributes:
        model: the model that segmented the scan.
    """

    model: Model
    _protocols: Mapping[str, Protocol]
    _scan: Scan
    _images: Images
    _segmentation: Segmentation
    _lesions: LesionRule | None
    _fast: bool

    @property
    def protocols(self) -> tuple[str, ...]:
        """Names of the protocols of the label maps."""
        return self.model.card.protocols

    @property
    def quality(self) -> float:
        """Expected mean Dice of the first protocol, 0 to 1; see ``Segmentation.quality``."""
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
        """The lesion mask, given or found, uint8: 1 inside, 0 outside; None if there is none."""
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

        table = self._protocols[self._known(protocol)].to_tsv()
        # NA or None may be the name of a region.
        return pd.read_csv(
            StringIO(table), sep="\t", dtype={"mapping": "Int64"}, keep_default_na=False, na_values=["n/a"]
        )

    def volumes(self, protocol: str) -> pd.DataFrame:
        """Return the volumes of the regions of a protocol, and in the last rows of the brain mask and inside the skull.

        The row "estimated total intracranial volume" is NaN if the image does not show the skull or the model is not
        trained on it.

        Columns index, name, abbreviation, voxels, volume-mm3, softvolume-mm3, expected-dice, as in ``morph.tsv``.

        Raises:
            UsageError: the model has no such protocol.
        """
        from bidsseg.derivative.volumes import volume_table

        found, voxel_mm3 = self._segmentation, self._t1w.voxel_volume_mm3
        labels = found.labels[self._known(protocol)]
        return volume_table(
            self._protocols[protocol],
            labels,
            found.soft_mm3[protocol],
            voxel_volume_mm3=voxel_mm3,
            brain=found.brain,
            expected_dice=found.expected_dice.get(protocol),
            intracranial_mm3=found.intracranial.mm3,
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
            UsageError: the folder is no path.
            OutputNotWritable: a file cannot be created.
            IOFailure: writing failed, e.g. the disk is full.
        """
        from bidsseg.bids.names import with_extension
        from bidsseg.bids.outputs import output_paths
        from bidsseg.derivative.sidecars import Origin, dseg_sidecar
        from bidsseg.files import write_json_atomic, write_table, write_text_atomic
        from bidsseg.image.nifti import write_labels

        if not isinstance(folder, str | os.PathLike):
            raise UsageError(f"folder {folder!r}: give a path")
        found, card = self._segmentation, self.model.card
        places = output_paths(self._scan, card.name, self.protocols, lesion=found.lesion is not None)
        masks = [(places.brain, found.brain), (places.lesion, found.lesion)]
        maps = [(place, found.labels[name]) for name, place in places.dseg.items()]
        written = []
        with explaining():
            for place, labels in [*masks, *maps]:
                if place is not None and labels is not None:
                    written.append(Path(folder) / place.name)
                    write_labels(written[-1], labels, self._t1w)
            for name, place in places.dseg.items():
                lookup = Path(folder) / with_extension(place, ".tsv").name
                table = Path(folder) / places.morph[name].name
                write_text_atomic(lookup, self._protocols[name].to_tsv())
                write_table(table, self.volumes(name))
                sidecar = lookup.with_suffix(".json")
                origin = Origin(details=self._details())
                shows_given = self._lesions is None and self._protocols[name].lesions
                write_json_atomic(sidecar, dseg_sidecar(name, origin.given(is_drawn=False) if shows_given else origin))
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
        """Return the entries of a sidecar about models, choices of the user and result."""
        from bidsseg.derivative.sidecars import choices, models_used, result_details

        card, locator = self.model.card, self.model.locator
        models = models_used([card, *([locator.card] if locator else [])])
        chosen = choices(card, fast=self._fast, lesions=self._lesions)
        return {"Models": models, **chosen, **result_details(self._images, self._segmentation)}

    def _known(self, protocol: str) -> str:
        if protocol not in self._segmentation.labels:
            names = ", ".join(self.protocols) or "none"
            raise UsageError(
                f"the model {self.model.card.name} has no label map of '{protocol}': choose one of: {names}"
            )
        return protocol
