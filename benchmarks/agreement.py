"""Agreement of label maps that are there with reference label maps: overlap, surfaces, volumes.

    python benchmarks/agreement.py PREDICTIONS REFERENCE --protocol BrainCOLOR [--model NAME] [--mask own|reference]
        [--output STEM]

PREDICTIONS is an output folder of bidsseg or any BIDS derivative with files ``*_seg-PROTOCOL_*dseg.nii.gz`` (or masks
``*_label-PROTOCOL_*mask.nii.gz``), REFERENCE a derivative with label maps of the same scans, protocol and grid. Unlike
``accuracy.py`` it runs no model, so that any program can be measured.

With ``--mask own`` (the default) a label outside the reference brain counts as the mistake that it is. With
``--mask reference`` voxels outside the reference brain, which is all that the reference labels, are not counted. This
is the convention of the published figures of SegNet (de Brébisson and Montana 2015, arXiv 1502.02445), which are
measured inside the true brain: compare only like with like. It needs a reference that labels the whole brain. The voxel
error is inside the reference brain either way.

Writes STEM.tsv (a row for each case and region), STEM.json (means over regions, then over brains, with bootstrap 95 %
intervals over brains; the same for each region; each case) and STEM.png (Dice of each region, sorted), and prints the
means. Scans that only one of the folders has are named, and are in no mean.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bidsseg.bids.annotations import find_annotations, find_label_maps
from bidsseg.bids.names import build_name
from bidsseg.bids.scan import ADDED, LabelMap, Scan
from bidsseg.errors import BidssegError, DataError, NothingSelected, UsageError
from bidsseg.evaluation.agreement import Agreement, Estimate, Mask, brain_means, compare, estimate
from bidsseg.image.nifti import read_labels
from bidsseg.labels import Protocol, Region, load_protocol

MEASURES = {
    "dice": "Dice",
    "hausdorff95_mm": "95 % Hausdorff distance (mm)",
    "surface_distance_mm": "mean surface distance (mm)",
    "volume_difference_mm3": "volume difference (mm³)",
    "volume_difference_percent": "volume difference (%)",
}
"""Measures of a region, by their names in :class:`Agreement`."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("predictions", type=Path)
    parser.add_argument("reference", type=Path)
    parser.add_argument("--protocol", required=True, help="a shipped protocol or a dseg.tsv, in both folders")
    parser.add_argument("--model", help="the desc- of the predictions; needed where there are several")
    parser.add_argument("--mask", default="own", choices=["own", "reference"])
    parser.add_argument("--output", type=Path, default=Path("agreement"), metavar="STEM")
    options = parser.parse_args(arguments)
    try:
        run(options.predictions, options.reference, options.protocol, options.model, options.mask, options.output)
    except BidssegError as error:
        parser.exit(error.code, f"{error}\n")


def run(predictions: Path, reference: Path, protocol_name: str, model: str | None, mask: Mask, output: Path) -> None:
    """Compare, write and print."""
    protocol = load_protocol(protocol_name)
    regions = [region for region in protocol.regions if region.scored and region.index != 0]
    maps = find_predictions(predictions, protocol.name, model)
    model = next(iter(maps.values())).entities.get("desc")
    pairs, alone = pair(maps, reference, protocol.name)
    cases = {}
    for key, (found, truth) in pairs.items():
        agreement = measure(found, truth, protocol, mask)
        if agreement is None:
            alone.append(f"{found}: not on the grid of {truth}")
            continue
        cases[key] = agreement
        print(f"{key}: mean Dice {brain_means(agreement.dice[None])[0]:.3f}", file=sys.stderr)
    for what in alone:
        print(f"passed over: {what}", file=sys.stderr)
    if not cases:
        raise NothingSelected(f"no label map of {predictions} has a reference in {reference}")
    means = overall(cases)
    about = {"protocol": protocol.name, "model": model, "mask": mask, "passed_over": alone}
    content = json.dumps(about | report(cases, regions, means), indent=2, ensure_ascii=False, allow_nan=False)
    output.parent.mkdir(parents=True, exist_ok=True)
    rows(cases, regions).to_csv(f"{output}.tsv", sep="\t", index=False, na_rep="n/a", float_format="%.5g")
    Path(f"{output}.json").write_text(content + "\n", encoding="utf-8")
    picture(cases, regions, means["dice"], f"{protocol.name}, mask: {mask}", Path(f"{output}.png"))
    show(cases, regions, means)


# -- which label maps belong together ----------------------------------------------------------------------------------


def find_predictions(folder: Path, protocol: str, model: str | None) -> dict[str, LabelMap]:
    """The label maps of a model (None: of the only one there is) by their scans."""
    maps = find_label_maps(folder, protocol)
    models = sorted({found.entities.get("desc", "") for found in maps})
    if model is None and len(models) > 1:
        names = ", ".join(name or "none" for name in models)
        raise UsageError(f"{folder} has predictions of several models ({names}): choose one with --model")
    predictions: dict[str, LabelMap] = {}
    for found in maps:
        if model is not None and found.entities.get("desc") != model:
            continue
        key = build_name(source(found))
        if key in predictions:
            raise DataError(f"{found.path} and {predictions[key].path.name} are of one scan: keep only one")
        predictions[key] = found
    if not predictions:
        wanted = f" and desc-{model}" if model is not None else ""
        raise NothingSelected(f"no label map with seg-{protocol}{wanted} in {folder}")
    return predictions


def source(found: LabelMap) -> dict[str, str]:
    """Entities of the scan, with the space, because a map in another space is another case."""
    return {name: label for name, label in found.entities.items() if name == "space" or name not in ADDED}


def pair(
    predictions: Mapping[str, LabelMap], reference: Path, protocol: str
) -> tuple[dict[str, tuple[Path, Path]], list[str]]:
    """Prediction and reference of each scan, and what has no partner."""
    pairs: dict[str, tuple[Path, Path]] = {}
    alone: list[str] = []
    for key, found in predictions.items():
        # A prediction lies on the grid of its scan and stands in for it.
        truth = find_annotations(reference, Scan(source(found), found.path), protocol)
        if truth is None:
            alone.append(f"{found.path}: no reference")
        else:
            pairs[key] = found.path, truth
    used = {truth for _, truth in pairs.values()}
    left = [truth.path for truth in find_label_maps(reference, protocol) if truth.path not in used]
    return pairs, alone + [f"{path}: no prediction" for path in left]


# -- measures ----------------------------------------------------------------------------------------------------------


def measure(found: Path, truth: Path, protocol: Protocol, mask: Mask) -> Agreement | None:
    """The agreement of two files; None if they do not lie on one grid."""
    labels, reference = read_labels(found), read_labels(truth)
    if labels.shape != reference.shape or not np.allclose(labels.affine, reference.affine, atol=1e-2):
        return None
    try:
        return compare(labels.data, reference.data, protocol, reference.spacing_mm.tolist(), mask)
    except DataError as error:
        raise DataError(f"{found}, {truth}: {error}") from error


def values(cases: Mapping[str, Agreement], name: str) -> np.ndarray:
    """A measure of all cases, shape (B, R)."""
    return np.stack([getattr(case, name) for case in cases.values()])


def overall(cases: Mapping[str, Agreement]) -> dict[str, Estimate]:
    """Every measure as mean over regions, then over brains; of volumes also without sign; and the voxel error."""
    means = {name: estimate(brain_means(values(cases, name))) for name in MEASURES}
    absolute = np.abs(values(cases, "volume_difference_percent"))
    means["absolute_volume_difference_percent"] = estimate(brain_means(absolute))
    means["voxel_error"] = estimate(np.array([case.voxel_error for case in cases.values()]))
    return means


def one_sided(cases: Mapping[str, Agreement]) -> tuple[int, int]:
    """Regions, over all brains, that only the reference has, and that only the prediction has."""
    found, reference = values(cases, "found_mm3") > 0, values(cases, "reference_mm3") > 0
    return int((reference & ~found).sum()), int((found & ~reference).sum())


# -- what is written ---------------------------------------------------------------------------------------------------


def rows(cases: Mapping[str, Agreement], regions: Sequence[Region]) -> pd.DataFrame:
    """One row for each case and region that either map has."""
    names = [*MEASURES, "found_mm3", "reference_mm3"]
    table = [
        {"case": key, "index": region.index, "region": region.name, "abbreviation": region.abbreviation}
        | {name: getattr(case, name)[i] for name in names}
        for key, case in cases.items()
        for i, region in enumerate(regions)
        if np.isfinite(case.dice[i])
    ]
    return pd.DataFrame(table, columns=["case", "index", "region", "abbreviation", *names])


def report(cases: Mapping[str, Agreement], regions: Sequence[Region], means: Mapping[str, Estimate]) -> dict[str, Any]:
    """Means over all regions, of each region, and of each case; null is what is not defined."""
    missed, invented = one_sided(cases)
    columns = {name: values(cases, name) for name in MEASURES}
    own = {name: brain_means(column) for name, column in columns.items()}
    own["voxel_error"] = np.array([case.voxel_error for case in cases.values()])
    return {
        "brains": len(cases),
        "regions_missed": missed,
        "regions_invented": invented,
        "means": {name: as_json(mean) for name, mean in means.items()},
        "regions": {
            region.name: {name: as_json(estimate(column[:, i])) for name, column in columns.items()}
            for i, region in enumerate(regions)
            if np.isfinite(columns["dice"][:, i]).any()
        },
        "cases": {key: {name: number(column[b]) for name, column in own.items()} for b, key in enumerate(cases)},
    }


def as_json(mean: Estimate) -> dict[str, float | int | None]:
    """A mean with its interval."""
    return {"mean": number(mean.mean), "low": number(mean.low), "high": number(mean.high), "brains": mean.brains}


def number(value: float) -> float | None:
    """A number as JSON can hold it, to six digits."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def picture(cases: Mapping[str, Agreement], regions: Sequence[Region], mean: Estimate, title: str, path: Path) -> None:
    """Dice of every region, the best on top: quartiles as a box, each brain as a point, the overall mean as a line."""
    from matplotlib.figure import Figure

    dice = values(cases, "dice")
    known = [column[np.isfinite(column)] for column in dice.T]
    order = sorted((i for i in range(len(regions)) if len(known[i])), key=lambda i: float(known[i].mean()))
    figure = Figure(figsize=(8, 1.2 + 0.16 * len(order)), layout="constrained")
    axes = figure.subplots()
    axes.boxplot(
        [known[i] for i in order],
        positions=range(len(order)),
        orientation="horizontal",
        tick_labels=[regions[i].name for i in order],
        whis=(0, 100),
        medianprops={"color": "black"},
    )
    for place, i in enumerate(order):
        axes.plot(known[i], np.full(len(known[i]), place), ".", color="tab:blue", markersize=3, alpha=0.6)
    axes.axvline(mean.mean, color="tab:red", linewidth=0.8)
    axes.set(title=f"{title}; {len(cases)} brains, mean Dice {mean.mean:.3f}", xlabel="Dice", xlim=(-0.01, 1.01))
    axes.tick_params(axis="y", labelsize=6)
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=120)


def show(cases: Mapping[str, Agreement], regions: Sequence[Region], means: Mapping[str, Estimate]) -> None:
    """Print the means, and the regions with the lowest Dice."""
    titles = MEASURES | {
        "absolute_volume_difference_percent": "volume difference without sign (%)",
        "voxel_error": "voxel error inside the reference brain",
    }
    print(f"{'mean over regions, then over brains':40}{'mean':>10}   95 % interval   ({len(cases)} brains)")
    for name, mean in means.items():
        print(f"{titles[name]:40}{mean.mean:10.3f}   {mean.low:.3f} to {mean.high:.3f}")
    missed, invented = one_sided(cases)
    print(f"regions without a distance: {missed} that only the reference has, {invented} that only the prediction has")
    dice = brain_means(values(cases, "dice").T)
    worst = [i for i in np.argsort(dice) if np.isfinite(dice[i])][:5]
    print("lowest Dice: " + ", ".join(f"{regions[i].name} {dice[i]:.2f}" for i in worst))


if __name__ == "__main__":
    main()
