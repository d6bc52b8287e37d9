"""Launcher for brainlife.io: segment the images of one participant and write the data types of the platform.

Reads ``config.json`` in the working folder and writes there

- ``parc/parc.nii.gz``, ``parc/label.json``, ``parc/key.txt``: the label map of one protocol and its regions,
- ``mask/mask.nii.gz``: lesions, from models with lesions,
- ``product.json``: volumes as a plot, a picture, warnings,
- ``output/``: all outputs, as a BIDS derivative dataset.

Keys of the configuration: ``t1``, ``t2``, ``flair`` (paths; a missing file counts as not given), ``model`` and
``protocol`` (of ``parc``; by default, the first of the model). The first image whose contrast the model reads is
segmented.
"""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bidsseg import __version__
from bidsseg.app import cli
from bidsseg.app.terminal import write_line
from bidsseg.bids.names import with_extension
from bidsseg.bids.outputs import output_paths
from bidsseg.bids.scan import Scan
from bidsseg.derivative.results import Result
from bidsseg.derivative.root import BIDS_VERSION
from bidsseg.derivative.sidecar_keys import messages
from bidsseg.errors import BidssegError, InputMissing, UsageError
from bidsseg.files import write_json_atomic, write_text_atomic
from bidsseg.models.card import BRAIN, Card, find_card
from bidsseg.reading import read_object
from bidsseg.settings import Settings

CONFIG = "config.json"
IMAGES = {"t1": "T1w", "t2": "T2w", "flair": "FLAIR"}
"""Suffixes of the images of the platform, by the names of their files there."""
SHARES = {"--n-cpus": "SLURM_CPUS_PER_TASK", "--nprocs": "PBS_NUM_PPN", "--mem": "SLURM_MEM_PER_NODE"}
"""Variables in which batch systems give the CPUs and the memory (MB) of a job."""
PICTURE_PIXELS = 480
"""Width of the picture in product.json, which should be small."""


def main(folder: Path | None = None) -> int:
    """Segment the images named by the configuration in a folder, and return the exit code."""
    folder = folder or Path.cwd()
    try:
        config = read_config(folder / CONFIG)
        model = config.get("model") or Settings.model
        card = find_card(model)
        protocol = config.get("protocol") or next(iter(card.protocols), None)
        if protocol not in card.protocols:
            raise UsageError(f"{CONFIG}: protocol {protocol!r} is not one of {', '.join(card.protocols)}")
        output = folder / "output"
        with tempfile.TemporaryDirectory() as scratch:
            label, suffixes = make_dataset(config, folder, Path(scratch))
            modality = next((suffix for suffix in suffixes if card.reads(suffix)), card.suffix)
            words = [scratch, str(output), "participant", "--participant-label", label, "--skip-bids-validation"]
            words += [
                word for flag, name in SHARES.items() if os.environ.get(name) for word in (flag, os.environ[name])
            ]
            code = cli.main([*words, "--model", model, "--anat-modality", modality])
        if code == 0:
            write_products(output, label, card, protocol=protocol, folder=folder)
        return code
    except BidssegError as error:
        write_line(f"bidsseg: {error}", sys.stderr)
        return error.code


def read_config(path: Path) -> dict[str, Any]:
    """Return the configuration; UsageError if it does not name an image."""
    if not path.is_file():
        raise InputMissing(f"no file {path}: run in the folder that contains it")
    config = read_object(path, UsageError)
    if not any(config.get(key) for key in IMAGES):
        raise UsageError(f"{path}: give the path of a T1w as 't1' (see config.json.sample)")
    for key, suffix in IMAGES.items():
        if not isinstance(config.get(key) or "", str):
            raise UsageError(f"{path}: give the path of one {suffix} as '{key}', or none")
    return config


def make_dataset(config: Mapping[str, Any], folder: Path, dataset: Path) -> tuple[str, list[str]]:
    """Create a BIDS dataset of links to the images, and return the label of its participant and their suffixes."""
    inputs = config.get("_inputs") or [{}]
    label = re.sub("[^A-Za-z0-9]", "", str((inputs[0].get("meta") or {}).get("subject", ""))) or "01"
    anat = dataset / f"sub-{label}" / "anat"
    anat.mkdir(parents=True)
    write_json_atomic(dataset / "dataset_description.json", {"Name": "brainlife", "BIDSVersion": BIDS_VERSION})
    given = {suffix: folder / config[key] for key, suffix in IMAGES.items() if config.get(key)}
    images = {suffix: image for suffix, image in given.items() if image.is_file()}
    if not images:
        raise InputMissing(f"{CONFIG}: no file {' or '.join(map(str, given.values()))}")
    for suffix, image in images.items():
        extension = ".nii" if image.suffix == ".nii" else ".nii.gz"
        (anat / f"sub-{label}_{suffix}{extension}").symlink_to(image.resolve())
    return label, list(images)


def write_products(output: Path, label: str, card: Card, *, protocol: str, folder: Path) -> None:
    """Write the outputs of a participant as data types of the platform."""
    from bidsseg.labels import load_protocol

    source = {"subject": label}
    paths = output_paths(Scan(source, Path()), card.name, [BRAIN, protocol], lesion=card.lesion is not None)
    dseg = output / paths.dseg[protocol]
    parc = folder / "parc"
    parc.mkdir(exist_ok=True)
    shutil.copyfile(dseg, parc / "parc.nii.gz")
    regions = [r for r in load_protocol(str(with_extension(dseg, ".tsv"))).regions if r.index]
    labels = [
        {"name": r.name, "label": str(r.index), "voxel_value": r.index} | dict(zip("rgb", r.rgb, strict=True))
        for r in regions
    ]
    write_text_atomic(parc / "label.json", json.dumps(labels, indent=1) + "\n")
    write_text_atomic(parc / "key.txt", "".join(f"{r.index} -> {r.index} == {r.name}\n" for r in regions))
    if paths.lesion is not None:
        (folder / "mask").mkdir(exist_ok=True)
        shutil.copyfile(output / paths.lesion, folder / "mask" / "mask.nii.gz")
    result = Result(source, card.name, protocol, output / paths.morph[protocol])
    layers = [output / path for path in paths.figures.values()]
    write_json_atomic(folder / "product.json", product(result, card, layers))


def product(result: Result, card: Card, figures: Sequence[Path]) -> dict[str, Any]:
    """Return the content of product.json: what the platform shows of a result."""
    protocol, sidecar, volumes = result.protocol, result.sidecar(), result.volumes()
    known = [row for row in volumes if row.is_known]
    names, sizes = [row.name for row in known], [round(row.volume_mm3) for row in known]
    warnings = messages(sidecar)
    shown: list[dict[str, Any]] = [
        {"type": "info", "msg": f"bidsseg {__version__}, model {card.name}: {card.title}. Not a medical device."},
        *({"type": "warning", "msg": warning} for warning in warnings),
        {
            "type": "plotly",
            "name": f"Volumes ({protocol})",
            "data": [{"type": "bar", "x": names, "y": sizes}],
            "layout": {"yaxis": {"title": "mm³"}},
        },
        {"type": "image/png", "name": f"Slices ({protocol})", "base64": picture(figures)},
    ]
    return {
        "brainlife": shown,
        "tags": [protocol, card.name],
        "meta": {"bidsseg": __version__, "model": card.name, "sha256": card.sha256, "protocol": protocol},
        "volumes_mm3": dict(zip(names, sizes, strict=True)),
    }


def picture(layers: Sequence[Path]) -> str:
    """Return a small copy of overlaid PNGs, in base64."""
    from PIL import Image

    image = Image.open(layers[0]).convert("RGBA")
    for path in layers[1:]:
        image = Image.alpha_composite(image, Image.open(path).convert("RGBA"))
    image = image.convert("RGB")  # palette colours cannot be averaged
    image.thumbnail((PICTURE_PIXELS, 10 * PICTURE_PIXELS))
    small = io.BytesIO()
    image.quantize(64).save(small, "png", optimize=True)
    return base64.b64encode(small.getvalue()).decode()


if __name__ == "__main__":
    sys.exit(main())
