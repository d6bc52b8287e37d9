"""Train a model on a machine without the data and without most packages, such as one with a GPU for some minutes.

    python benchmarks/train_elsewhere.py pack PACK BIDS_DIR OUTPUT_DIR train ...      # the words of the command
    python benchmarks/train_elsewhere.py fit PACK NAME FITTED --minutes 9 --compile   # there
    python benchmarks/train_elsewhere.py finish FITTED BIDS_DIR OUTPUT_DIR train ...  # the same words as for pack

``pack`` prepares the scans as ``train`` does and writes them to the folder PACK, a few MB each: images have 7 bits, and
voxels more than 16 mm from the brain are 0. A second command adds another model to the same folder; scans that are
there already are not written again. The model is written to PACK/NAME.job, NAME being that of the model or of ``--as``,
which stands before PACK.

``fit`` needs this checkout, the folder PACK and PyTorch, NumPy, SciPy, pandas, safetensors, nibabel and pydantic. It
writes the averaged weights to the file FITTED, with half precision. --compile makes a step on a GPU cheaper,
after some seconds. One model does not keep a GPU busy: fit several at once (with NVIDIA's MPS, if it is there).

Heads that the labels do not determine do not follow the initial model there, as they do in ``train``: give labels of
all heads.

``finish`` evaluates the fitted model on the held-out scans and writes its folder with the card, as ``train`` does.
"""

from __future__ import annotations

import argparse
import json
import lzma
import math
import pickle
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from bidsseg.errors import TemporaryFailure
from bidsseg.files import replacing
from bidsseg.image.grid import dilate
from bidsseg.labels import Protocol
from bidsseg.learning.cases import Annotation, Case
from bidsseg.learning.loop import fit
from bidsseg.learning.processes import Processes
from bidsseg.learning.samples import Plan
from bidsseg.learning.state import Conditions, State
from bidsseg.models.library import build_network
from bidsseg.models.weights import packed, unpacked
from bidsseg.networks.network import Network
from bidsseg.networks.subpixel_unet import ChannelNorm

LEVELS, BRIGHT = 110, 0.9995
"""Number of grey levels up to the brightness that this share of the voxels near the brain does not exceed."""
NEAR, MARGIN = 16, 18
"""Voxels (mm) around the brain that are shown and kept."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(dest="step", required=True)
    packing, fitting, finishing = (steps.add_parser(name) for name in ("pack", "fit", "finish"))
    packing.add_argument("pack", type=Path)
    packing.add_argument("--as", dest="name")
    fitting.add_argument("pack", type=Path)
    fitting.add_argument("name")
    fitting.add_argument("fitted", type=Path)
    fitting.add_argument("--minutes", type=float, default=math.inf)
    fitting.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    fitting.add_argument("--compile", action="store_true")
    finishing.add_argument("fitted", type=Path)
    for each in (packing, finishing):
        each.add_argument("words", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    if options.step == "fit":
        fit_there(options)
        return 0
    if options.step == "finish":
        return with_learning(options.words, lambda network, *_, **__: fitted(network, options.fitted))

    def pack(network: Network, setup: Any, people: Any, **_: object) -> State:
        name = options.name or setup.recipe.name
        job = {
            "recipe": setup.recipe,
            "heads": setup.heads,
            "seed": setup.options.seed,
            "weights": packed(network.state_dict(), 16),
            "cases": [write_case(case.opened(), options.pack) for case in people.seen],
        }
        write(options.pack / f"{name}.job", job)
        megabytes = sum(path.stat().st_size for path in options.pack.rglob("*.*")) / 1e6
        raise TemporaryFailure(f"{options.pack / name}.job: {len(job['cases'])} scans are packed, {megabytes:.0f} MB")

    return with_learning(options.words, pack)


def with_learning(words: list[str], learn: Callable[..., State]) -> int:
    """Run the command of a training with another function in place of the training itself; return its exit code."""
    from bidsseg.app import cli
    from bidsseg.learning import training

    training.learn = learn
    return cli.main(words)


# -- scans as small files ----------------------------------------------------------------------------------------------


def write_case(case: Case, folder: Path) -> str:
    """Write a scan to a file of its own, and return the name of the file, which begins with a checksum."""
    content = small(case)
    arrays = [content["brain"], *(values for _, values in content["maps"]), *(content["image"] or ())]
    sums = [zlib.crc32(array.numpy().tobytes()) for array in arrays]
    name = f"{zlib.crc32(str(sums).encode()):08x}-{case.name.replace('/', '_')}.case"
    if not (folder / name).exists():
        write(folder / name, content)
    return name


def write(path: Path, content: Any) -> None:
    """Write a compressed file."""
    with replacing(path) as stream:
        stream.write(lzma.compress(pickle.dumps(content)))


def read(path: Path) -> Any:
    """Return the content of a compressed file."""
    return pickle.loads(lzma.decompress(path.read_bytes()))


def small(case: Case) -> dict[str, Any]:
    """Return a case without what is far from the brain; a label map that synthesis needs is kept whole."""
    box = tuple(slice(0, n) for n in case.brain.shape)
    if case.image is not None:
        inside = case.brain.nonzero()
        low, high = (inside.amin(0) - MARGIN).clamp(min=0) // 4 * 4, inside.amax(0) + MARGIN + 1
        box = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))  # from multiples of 4, as `widening`
    coarse = (slice(None), *(slice(side.start // 4, math.ceil(side.stop / 4)) for side in box))
    return {
        "name": case.name,
        "image": None if case.image is None else levels(case.image[(slice(None), *box)], case.brain[box]),
        "maps": [(each.protocol, each.values[box].clone()) for each in case.annotations],
        "brain": case.brain[box].clone(),
        "widening": None if case.widening is None else case.widening[coarse].half(),
    }


def levels(images: Tensor, brain: Tensor) -> tuple[Tensor, Tensor]:
    """Return images (C, X, Y, Z) as grey levels near the brain, 0 elsewhere, and the unit of each, (C, 1, 1, 1)."""
    near = dilate(brain, NEAR)
    shown = images[:, near]
    thin = shown[:, :: max(1, shown.shape[1] // 1_000_000)]
    unit = torch.quantile(thin, BRIGHT, dim=1).clamp(min=1e-6)[:, None, None, None] / LEVELS
    found = (images / unit).round().clamp(0, 255)
    return (torch.where(images > 0, found.clamp(min=1), 0) * near).to(torch.uint8), unit


def opened(content: dict[str, Any]) -> Case:
    """Return the case of a file."""
    image = None if content["image"] is None else content["image"][0] * content["image"][1]
    widening = None if content["widening"] is None else content["widening"].float()
    maps = tuple(Annotation(protocol, values) for protocol, values in content["maps"])
    return Case(content["name"], image, maps, content["brain"], widening)


# -- training ----------------------------------------------------------------------------------------------------------


def fit_there(options: argparse.Namespace) -> None:
    """Train a packed model, and write its averaged weights and its curve to a file."""
    started = time.monotonic()
    job = read(options.pack / f"{options.name}.job")
    heads: tuple[Protocol, ...] = job["heads"]
    outputs = {head.name: len(head.regions) for head in heads}
    network = build_network(job["recipe"].network, job["recipe"].inputs, outputs, where=options.name)
    network.load_state_dict(unpacked(job["weights"]))
    cases = [opened(read(options.pack / name)) for name in job["cases"]]
    if options.compile:
        compile_norms()
    conditions = Conditions(
        options.fitted.parent / options.name,
        60 * options.minutes - (time.monotonic() - started),
        lambda: False,
        lambda line: print(f"{options.name}: {line}", flush=True),
        torch.bfloat16 if options.device != "cpu" else torch.float32,
        Processes(device=options.device),
    )
    conditions.folder.mkdir(parents=True, exist_ok=True)
    state = fit(network, cases, [], plan=Plan(job["recipe"], heads, job["seed"]), conditions=conditions)
    about = json.dumps({"step": state.step, "elapsed_s": state.elapsed_s, "curve": state.curve})
    save_file(packed(network.cpu().state_dict(), 16), options.fitted, {"state": about})


def compile_norms() -> None:
    """Compile the normalisation of the network: the kernels of PyTorch are slow for rows of few channels."""
    torch._dynamo.config.recompile_limit = 64  # each resolution has its own shape
    norm = torch.compile(lambda x, weight, bias: F.layer_norm(x, weight.shape, weight, bias), dynamic=False)
    ChannelNorm.rows = lambda self, x: norm(x, self.weight.to(x.dtype), self.bias.to(x.dtype))  # type: ignore[method-assign]


def fitted(network: Network, path: Path) -> State:
    """Put fitted weights into a network, and return the state at the end of its training."""
    with safe_open(path, "pt") as stored:
        network.load_state_dict(unpacked({name: stored.get_tensor(name) for name in stored.keys()}))  # noqa: SIM118
        return State(**json.loads(stored.metadata()["state"]))


if __name__ == "__main__":
    sys.exit(main())
