"""Label maps in the output of FreeSurfer or FastSurfer, a ``SUBJECTS_DIR``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bidsseg.bids.names import build_name, parse_name, unpadded
from bidsseg.bids.scan import LabelMap, Scan

VOLUMES: Mapping[str, Sequence[str]] = {
    "aseg": ("aseg", "aseg.auto_noCCseg"),
    "DesikanKilliany": ("aparc+aseg",),
    "DKT": (
        "aparc.DKTatlas+aseg",
        "aparc.DKTatlas+aseg.mapped",
        "aparc.DKTatlas+aseg.deep.withCC",
        "aparc.DKTatlas+aseg.deep",
    ),
}
"""Files in the folder ``mri`` with labels of a shipped protocol, the preferred one first."""
NAMES: Mapping[str, Sequence[str]] = {
    "aseg": ("aseg",),
    "DesikanKilliany": ("DesikanKilliany", "DK", "aparcaseg", "aparc", "aparc+aseg"),
    "DKT": ("DKT", "aparcDKTatlasaseg", "aparcDKTaseg", "DKTatlas", "aparc.DKTatlas+aseg", "aparc.DKTatlas+aseg.deep"),
}
"""Names of these protocols, as users and other programs write them."""


def freesurfer_protocol(name: str) -> str | None:
    """Return the shipped protocol that FreeSurfer, FastSurfer or fMRIPrep call by a name; None if there is none."""
    spoken = name.casefold()
    return next((own for own, names in NAMES.items() if spoken in {each.casefold() for each in names}), None)


@dataclass(frozen=True)
class Recons:
    """The label maps of one protocol in a ``SUBJECTS_DIR``."""

    folder: Path
    protocol: str

    def find(self, scan: Scan, among: Sequence[Scan]) -> Path | None:
        """Return the label map of a scan; None if there is none.

        The folder of the scan is named by its entities (``sub-01_ses-1``). A name with fewer entities, such as
        ``sub-01``, belongs to the scan if no other scan has these entities.

        Args:
            among: all scans of the dataset.
        """
        names = ("subject", "session", "acquisition", "reconstruction", "run")
        for count in range(len(names), 0, -1):
            entities = {name: scan.entities[name] for name in names[:count] if name in scan.entities}
            rivals = [other for other in among if entities.items() <= other.entities.items()]
            if scan.entities != entities and len(rivals) > 1:
                continue
            path = self._named(build_name(entities))
            if path is not None:
                return path
        return None

    def label_maps(self) -> list[LabelMap]:
        """Return all label maps, of the folders that are named after participants."""
        found = []
        for place in _recon_folders(self.folder):
            parsed = parse_name(f"{place.name}_T1w.nii")
            path = self._volume(place)
            if path is not None and parsed is not None and "subject" in parsed[0]:
                found.append(LabelMap(parsed[0], path))
        return found

    def _named(self, name: str) -> Path | None:
        """Return the label map in a folder, or in one whose name differs in zeros before the number of the run."""
        alike = sorted(self.folder.glob(unpadded(name).replace("_run-", "_run-*")))
        places = [self.folder / name, *(place for place in alike if unpadded(place.name) == unpadded(name))]
        return next(filter(None, map(self._volume, places)), None)

    def _volume(self, place: Path) -> Path | None:
        paths = (place / "mri" / f"{name}.mgz" for name in VOLUMES[self.protocol])
        return next((path for path in paths if path.is_file()), None)


def recons_in(folder: Path) -> list[Recons]:
    """Return the label maps in a folder by protocol; empty if it is not a ``SUBJECTS_DIR``."""
    found = (Recons(folder, protocol) for protocol in VOLUMES) if _recon_folders(folder) else ()
    return [recons for recons in found if recons.label_maps()]


def _recon_folders(folder: Path) -> list[Path]:
    """Return the folders of participants in a ``SUBJECTS_DIR``."""
    return sorted(path.parent for path in folder.glob("sub-*/mri"))
