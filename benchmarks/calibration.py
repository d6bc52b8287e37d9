"""Calibrate the probabilities and the expected Dice of a model on participants that it was not trained on.

    python benchmarks/calibration.py BIDS_DIR --labels PROTOCOL=DERIVATIVES_DIR ... [--also BIDS_DIR]
        --model MODEL_FOLDER [--table TSV] [--card MODEL_FOLDER]

The participants are those that the model was not trained on, by its card. For each head with labels in its own
protocol, the script finds the temperature with which the mean confidence in the brain is the share of right voxels, and
prints the expected calibration error (Guo et al. 2017, arXiv 1706.04599) without it and with the temperature of the
other participants. For labels in other protocols, it prints confidence and share of right voxels alone.

With these temperatures, each participant is then segmented as it is and in worse copies (noise, blur, thick slices,
shading, contrast), and each label map without an image in several synthetic images, so that Dice varies. The script
prints for each head the calibration and how far the expected Dice is from the Dice, each participant with the
calibration of the others: mean absolute difference of regions and of the means of scans, correlation of these means,
and the area under the curve for finding regions with a Dice below .6, with and without what the calibration adds for
single regions. With --card, temperatures and calibration of all participants are stored on the card of that model,
which may be a model of the same recipe trained on all participants.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import ndimage, stats

from bidsseg.arguments import annotation_folders
from bidsseg.evaluation.agreement import dice
from bidsseg.execution.machine import cpu_precision
from bidsseg.image.volume import Volume
from bidsseg.labels import Protocol
from bidsseg.learning.cases import Case
from bidsseg.learning.datasets import find_sources
from bidsseg.learning.folds import person, seen_by
from bidsseg.learning.prepared import opened_cases
from bidsseg.learning.validation import comparable, comparison, indices_of, synthetic_scan
from bidsseg.models.card import Card, read_card
from bidsseg.models.library import Model, load_model, save_card
from bidsseg.segmentation.expected_dice import calibrate, calibrate_regions, calibrated
from bidsseg.segmentation.predict import segment
from bidsseg.segmentation.result import Probabilities
from bidsseg.settings import Report, Settings, Training

UNCHANGED = "unchanged"
POOR = 0.6
"""Dice below which a region should be found by its expected Dice."""
DRAWS = 5
"""Number of synthetic images of a label map."""
TEMPERATURES = np.arange(0.6, 2.001, 0.02)
"""Temperatures to choose from."""
STRIDE = 11
"""One of so many voxels is used to calibrate probabilities."""
BINS = 15
"""Number of bins of the expected calibration error."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bids_dir", type=Path)
    parser.add_argument("--labels", nargs="+", action="extend", required=True, metavar="PROTOCOL=DIR")
    parser.add_argument("--also", nargs="+", default=[], type=Path, metavar="BIDS_DIR")
    parser.add_argument("--model", required=True)
    parser.add_argument("--card", type=Path, metavar="MODEL_FOLDER", help="store the calibration on this card")
    parser.add_argument("--table", type=Path, help="TSV with one row for each scan, copy, head and region")
    options = parser.parse_args()

    labels = annotation_folders(options.labels, [], options.bids_dir)
    settings = Settings(options.bids_dir, Path("never-written"), labels=labels, training=Training(also=options.also))
    sources = find_sources(settings, Report(), unlabelled=False, synthetic=True)
    model = load_model(options.model)
    sources = [source for source in sources if is_unseen(source.name, model.card)]
    if not sources:
        parser.error(f"{options.model} was, or may have been, trained on all these participants")
    cases = list(opened_cases(sources, model.card.inputs, Report()))
    temperature = temperatures(model, cases)
    plain = dict.fromkeys(model.card.protocols, (0.0, 1.0))
    model = replace(model, card=replace(model.card, temperature=temperature, expected_dice=plain))
    rows = [row for case in cases for row in measured(model, case)]
    table = pd.DataFrame(rows)
    if options.table:
        table.to_csv(options.table, sep="\t", index=False, float_format="%.4f")
    found, by_region = {}, {}
    for head, part in table.groupby("head", sort=False):
        found[str(head)], by_region[str(head)] = calibration(part)
        people = part["case"].map(person).nunique()
        together, single = figures(part)
        print(f"{head} ({people} participants): offset and slope {found[str(head)]}; {single}")
        print(f"    without what is added for single regions: {together}")
    if options.card:
        card = replace(read_card(options.card), expected_dice=found, expected_dice_by_region=by_region)
        save_card(replace(card, temperature=temperature))


def is_unseen(name: str, card: Card) -> bool:
    """Return whether a model was certainly not trained on the participant of a case."""
    return seen_by(card, [person(name)]) == ([], [])


def temperatures(model: Model, cases: Iterable[Case]) -> dict[str, float]:
    """Return the temperature of each head with labels in its own protocol, and print the calibration errors.

    Heads compared with labels of other protocols are printed without a temperature.
    """
    plain = replace(model, card=replace(model.card, temperature={}))
    seen: dict[tuple[str, str], list[tuple[str, Seen]]] = {}
    for case in cases:
        _, image = next(copies(case))
        result = segment({"T1w": Volume(image, np.eye(4))}, plain, precision=cpu_precision(), want_probabilities=True)
        for head in (model.heads[name] for name in model.card.protocols):
            for annotation, relation in comparable(case.annotations, head):
                found, truth, sure, _ = comparison(indices_of(result, head), head, annotation, relation=relation)
                known, right = sure & (truth > 0) & result.brain, found == truth
                here = seen_at(known, result.probabilities[head.name], right)
                seen.setdefault((head.name, annotation.protocol.name), []).append((person(case.name), here))
    chosen: dict[str, float] = {}
    for (name, reference), pairs in seen.items():
        people, each = zip(*pairs, strict=True)
        plainly = [at_temperature(one, 1.0) for one in each]
        confidence, right = (np.mean([part.mean() for part in parts]) for parts in zip(*plainly, strict=True))
        print(f"{name} against {reference}: mean confidence {confidence:.3f}, right {right:.3f}", flush=True)
        if name == reference and len(set(people)) > 1:
            chosen[name] = balanced(each)
            others = [balanced([other for them, other in pairs if them != mine]) for mine in people]
            after = error([at_temperature(one, value) for one, value in zip(each, others, strict=True)])
            errors = f"{error(plainly):.3f}, then {after:.3f}"
            print(f"{name}: temperature {chosen[name]:.2f}, expected calibration error {errors}", flush=True)
    return chosen


Seen = tuple[np.ndarray, np.ndarray]
"""Probabilities (N, R) at voxels of a participant, and whether the most probable region is right (N,)."""


def seen_at(known: np.ndarray, chances: Probabilities, right: np.ndarray) -> Seen:
    """Return the probabilities at some of the known voxels (X, Y, Z), and whether labels are right there."""
    inside = np.flatnonzero(known.reshape(-1)[chances.voxels])[::STRIDE]
    return chances.table[inside].astype(np.float32), right.reshape(-1)[chances.voxels[inside]]


def at_temperature(seen: Seen, value: float) -> Seen:
    """Return the confidence (N,) at a temperature, and which voxels are right (N,)."""
    chance, right = seen
    raised = chance ** np.float32(1 / value)
    return raised.max(1) / raised.sum(1), right


def balanced(seen: Sequence[Seen]) -> float:
    """Return the temperature with which the mean confidence of participants is nearest to the share of right voxels."""
    right = np.mean([right.mean() for _, right in seen])
    means = [np.mean([at_temperature(one, value)[0].mean() for one in seen]) for value in TEMPERATURES]
    return round(float(TEMPERATURES[np.abs(np.array(means) - right).argmin()]), 2)


def error(seen: Sequence[Seen]) -> float:
    """Return the expected calibration error: the mean difference of confidence and share of right voxels in bins."""
    confidence, right = (np.concatenate(parts) for parts in zip(*seen, strict=True))
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    return float(np.abs(np.bincount(bins, confidence - right, BINS)).sum() / len(right))


def measured(model: Model, case: Case) -> Iterator[dict[str, object]]:
    """Yield the estimate and the Dice of each region of a participant, in all copies."""
    for name, image in copies(case):
        result = segment({"T1w": Volume(image, np.eye(4))}, model, precision=cpu_precision())
        means = []
        for head in (model.heads[name] for name in model.card.protocols):
            estimates = by_name(head, result.expected_dice[head.name])
            for annotation, relation in comparable(case.annotations, head):
                found, truth, sure, regions = comparison(indices_of(result, head), head, annotation, relation=relation)
                found, truth = (np.where(sure, labels, 0) for labels in (found, truth))
                values = dice(found, truth, [region.index for region in regions])
                pairs = [(each.name, value) for each, value in zip(regions, values, strict=True)]
                known = [(region, value) for region, value in pairs if np.isfinite([value, estimates[region]]).all()]
                means.append(f"{head.name} {np.mean([value for _, value in known]):.3f}")
                for region, value in known:
                    base = {"case": case.name, "copy": name, "head": head.name, "annotation": annotation.protocol.name}
                    yield {**base, "region": region, "estimate": estimates[region], "dice": value}
        print(f"{case.name}, {name}: {', '.join(means)}", flush=True)


def by_name(head: Protocol, values: np.ndarray) -> dict[str, float]:
    """Return the values (R,) of a head's regions by their names."""
    return {region.name: float(value) for region, value in zip(head.regions, values, strict=True)}


def copies(case: Case) -> Iterator[tuple[str, np.ndarray]]:
    """Yield images (X, Y, Z) of a case, each with a name: copies of its T1w, or synthetic images of its label map."""
    if case.image is None:
        for draw in range(DRAWS):
            yield UNCHANGED, synthetic_scan(case, ("T1w",), draw)[0].numpy()
        return
    image = case.image[0].numpy()
    inside = image > 0
    bright, random = float(np.percentile(image[inside], 90)), np.random.default_rng(sum(case.name.encode()))

    def kept(changed: np.ndarray) -> np.ndarray:
        return np.where(inside, changed, 0).astype(np.float32)

    yield UNCHANGED, image
    for share in (0.1, 0.2):
        yield f"noise {share}", kept(np.abs(image + random.normal(0, share * bright, image.shape)))
    for width in (1.0, 1.7):
        yield f"blur {width}", kept(ndimage.gaussian_filter(image, width))
    yield "thick slices", kept(ndimage.gaussian_filter1d(image, 2.0, axis=2))
    yield "shading", kept(image * (0.5 + np.linspace(0, 1, image.shape[1])[None, :, None]))
    yield "contrast", kept(bright * (np.clip(image, 0, None) / bright) ** 0.6)


def calibration(table: pd.DataFrame) -> tuple[tuple[float, float], dict[str, float]]:
    """Return offset and slope of one head, and what is added to the offset for single regions."""
    estimate, true = table.estimate.to_numpy(), table.dice.to_numpy()
    found = calibrate(estimate, true)
    return found, calibrate_regions(
        estimate, true, found, regions=table.region.tolist(), participants=table["case"].map(person).tolist()
    )


def figures(table: pd.DataFrame) -> list[str]:
    """Return the figures of one head, each participant with the calibration of the others.

    The first are those without what is added for single regions, the second those with it.
    """
    parts = []
    people = table["case"].map(person)
    for name, part in table.groupby(people):
        of_others, by_region = calibration(table[people != name])
        estimate, added = part.estimate.to_numpy(), part.region.map(by_region).fillna(0.0).to_numpy()
        parts.append([part.assign(expected=calibrated(estimate, of_others, each)) for each in (0.0, added)])
    return [figures_of(pd.concat(found)) for found in zip(*parts, strict=True)]


def figures_of(found: pd.DataFrame) -> str:
    """Return how far the expected Dice is from the Dice."""
    numbered = found.groupby(["case", "copy"], sort=False)[["expected", "dice"]].mean()
    lines = [
        f"regions {(found.expected - found.dice).abs().mean():.3f}",
        f"scans {(numbered.expected - numbered.dice).abs().mean():.3f}",
        f"r {float(numbered.expected.corr(numbered.dice)):.2f}",
    ]
    poor = found.dice < POOR
    if poor.any():
        wins = float(stats.mannwhitneyu(-found.expected[poor], -found.expected[~poor]).statistic)
        area = wins / (poor.sum() * (~poor).sum())
        lines.append(f"area under the curve {area:.3f} ({poor.sum()} below {POOR})")
    return ", ".join(lines)


if __name__ == "__main__":
    main()
