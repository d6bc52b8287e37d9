"""The templates of TemplateFlow, from the list in its client, read without a network or importing the client."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterable
from difflib import get_close_matches
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from bidsseg.errors import UsageError

OWN_GRID = {"anat", "func", "individual", "native", "orig", "run", "sbref"}
"""Names of other programs for the space of a scan itself."""

SURFACES = {"fsaverage", "fsaverage3", "fsaverage4", "fsaverage5", "fsaverage6", "fsLR", "fsnative", "onavg"}

FILE = re.compile(r"tpl-([A-Za-z0-9]+)/tpl-\1_res-0*(\d+)_(T1w|desc-brain_mask)\.nii\.gz")


@cache
def listed() -> dict[str, frozenset[int]]:
    """Return the templates, each with the resolutions that have a T1w and a brain mask; empty without the client."""
    client = find_spec("templateflow")
    if client is None or client.origin is None:
        return {}
    try:
        with zipfile.ZipFile(Path(client.origin).parent / "conf" / "templateflow-skel.zip") as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile):  # another version of the client
        return {}
    found: dict[str, dict[str, set[int]]] = {}
    for name in names:
        if name.startswith("tpl-"):
            kinds = found.setdefault(
                name.partition("/")[0].removeprefix("tpl-"), {"T1w": set(), "desc-brain_mask": set()}
            )
            if match := FILE.fullmatch(name):
                kinds[match[3]].add(int(match[2]))
    return {template: frozenset(set.intersection(*kinds.values())) for template, kinds in found.items()}


def check_template(template: str, resolution: int, cached: Iterable[str] = ()) -> None:
    """Raise UsageError with similar names if TemplateFlow has no such volume.

    Args:
        cached: templates in the user's cache, which may be newer than the client.
    """
    resolutions = listed().get(template)
    if resolutions is None:
        if listed() and template not in set(cached):
            raise UsageError(f"TemplateFlow has no template {template}: {_choice(template)}")
    elif not resolutions:
        raise UsageError(f"{template} is not a volume template with a T1w and a brain mask: {_choice(template)}")
    elif resolution not in resolutions:
        numbers = " or ".join(f"{template}:res-{number}" for number in sorted(resolutions))
        raise UsageError(f"TemplateFlow has no resolution {resolution} of {template}: give {numbers}")


def check_is_volume(template: str) -> None:
    """Raise UsageError for names of other spaces that are known from other programs."""
    if template in OWN_GRID:
        raise UsageError(f"{template} is not a volume template: results on the grid of the scan are always written")
    if template in SURFACES:
        raise UsageError(f"{template} is a surface template, not a volume: {_choice(template)}")


def _choice(template: str) -> str:
    """Return a hint with the most similar templates, or all."""
    names = {name.lower(): name for name, resolutions in listed().items() if resolutions and name not in SURFACES}
    word = template.lower()
    near = get_close_matches(word, names, 3, 0.6) or [name for name in sorted(names) if name.startswith(word)][:3]
    return f"give one of {', '.join(names[name] for name in near or sorted(names))}"
