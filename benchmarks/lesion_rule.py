"""Threshold, smallest volume and least peak of lesions, chosen by cross-validation.

    python benchmarks/lesion_rule.py BIDS_DIR LABELS --fold MODEL_FOLDER PARTICIPANT ... [--card MODEL_FOLDER]

Each fold is a model and the participants that it was not trained on. The script segments every participant with the
model of its fold and compares the lesions with the masks ``label-lesion_mask`` of the derivative dataset LABELS, for a
grid of thresholds of the probability (``--lesion-threshold``; the word ``argmax`` where a lesion is the most probable
region), of smallest volumes (``--min-lesion-volume``) and of least peaks (``--min-lesion-peak``). It prints the mean
Dice, the mean lesion-wise F1 and the mean ratio of the volumes over scans, and the choice with the highest sum of Dice
and F1. It also prints the results of each scan under the choice made without all scans of this participant: they are
not biased by the choice. --card stores the choice on the card of a model, where it becomes the default.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bidsseg.bids.annotations import find_annotations
from bidsseg.bids.query import find_scans
from bidsseg.evaluation.lesions import count_lesions
from bidsseg.image.nifti import read_labels
from bidsseg.models.card import read_card
from bidsseg.models.lesion_rule import LesionRule
from bidsseg.models.library import Model, load_model, save_card
from bidsseg.models.participants import participants
from bidsseg.registration.align import read_aligned
from bidsseg.segmentation.lesions import selected
from bidsseg.segmentation.predict import segment

THRESHOLDS = ("argmax", "0.2", "0.3", "0.4", "0.5", "0.6", "0.7", "0.8")
VOLUMES_MM3 = (0.0, 3.0, 5.0, 10.0, 20.0, 40.0)
PEAKS = (0.0, 0.9, 0.95, 0.98)


@dataclass(frozen=True)
class Agreement:
    """Agreement of the lesions of one participant with the mask: Dice, lesion-wise F1 and ratio of the volumes."""

    dice: float
    f1: float
    ratio: float


Results = Mapping[LesionRule, Mapping[str, Agreement]]


def main() -> None:
    """Print the grid and the choice."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bids_dir", type=Path)
    parser.add_argument("labels", type=Path)
    parser.add_argument("--fold", nargs="+", action="append", required=True, metavar="MODEL_FOLDER PARTICIPANT")
    parser.add_argument("--thresholds", nargs="+", default=THRESHOLDS)
    parser.add_argument("--volumes", nargs="+", type=float, default=VOLUMES_MM3, metavar="MM3")
    parser.add_argument("--peaks", nargs="+", type=float, default=PEAKS, metavar="P")
    parser.add_argument("--card", type=Path, metavar="MODEL_FOLDER")
    options = parser.parse_args()
    thresholds = [None if word == "argmax" else float(word) for word in options.thresholds]
    rules = [LesionRule(*pair) for pair in itertools.product(thresholds, options.volumes, options.peaks)]
    results: dict[LesionRule, dict[str, Agreement]] = {rule: {} for rule in rules}
    for folder, *people in options.fold:
        model = load_model(folder)
        labels = [label.removeprefix("sub-") for label in people]
        if not labels:
            parser.error(f"--fold {folder}: name the participants that the model was not trained on")
        if known := trained_on(model, options.bids_dir, labels):
            parser.error(f"--fold {folder}: the model was trained on {', '.join(known)}")
        for name, found in agreements(model, options.bids_dir, options.labels, people=labels, rules=rules):
            for rule, agreement in found.items():
                results[rule][name] = agreement
    report(results)
    if options.card is not None:
        best = chosen(results)
        card = read_card(options.card)
        card = replace(card, lesion_threshold=best.threshold, least_lesion_mm3=best.least_mm3)
        save_card(replace(card, least_lesion_peak=best.least_peak))


def trained_on(model: Model, bids_dir: Path, labels: Iterable[str]) -> list[str]:
    """Return the participants of a dataset that the card of a model lists as used for training."""
    used = participants(model.card.trained_on)
    return [label for label in labels if f"{bids_dir.resolve().name}/sub-{label}" in used]


def agreements(
    model: Model, bids_dir: Path, labels: Path, *, people: Sequence[str], rules: Sequence[LesionRule]
) -> Iterable[tuple[str, dict[LesionRule, Agreement]]]:
    """Yield the name of each scan of some participants and its agreement under each rule."""
    for scan in find_scans(bids_dir, participants=people):
        truth = find_annotations(labels, scan, "lesion")
        if truth is None:
            raise SystemExit(f"{labels} has no label-lesion_mask of {scan.key}")
        images = read_aligned(scan.images(model.card.inputs)).volumes
        found = segment(images, model, lesions=LesionRule())
        assert found.lesion is not None and found.lesion_probability is not None
        reference, voxel_mm3 = read_labels(truth).data > 0, images["T1w"].voxel_volume_mm3
        measured = {}
        for rule in rules:
            mask = found.lesion if rule.threshold is None else found.lesion_probability >= rule.threshold
            mask = selected(mask, found.lesion_probability, rule, voxel_mm3=voxel_mm3)
            measured[rule] = agreement(mask, reference)
        yield scan.key, measured


def agreement(found: np.ndarray, reference: np.ndarray) -> Agreement:
    """Return the agreement of two masks (X, Y, Z); two empty masks agree."""
    both, sizes = np.count_nonzero(found & reference), (np.count_nonzero(found), np.count_nonzero(reference))
    f1 = float(count_lesions(found.astype(np.uint8), reference.astype(np.uint8), [1], lesions=[1]).f1[0])
    dice = 2 * both / sum(sizes) if sum(sizes) else 1.0
    return Agreement(dice, 1.0 if np.isnan(f1) else f1, sizes[0] / sizes[1] if sizes[1] else float("nan"))


def score(found: Iterable[Agreement]) -> float:
    """Return the mean sum of Dice and F1."""
    return float(np.mean([one.dice + one.f1 for one in found]))


def person(scan: str) -> str:
    """Return the participant of a scan (``sub-01`` of ``sub-01_ses-2``)."""
    return scan.partition("_")[0]


def chosen(results: Results, without: str = "") -> LesionRule:
    """Return the rule with the highest score, the first of equal ones, over all scans but those of one participant."""
    scores = {
        rule: score(one for name, one in found.items() if person(name) != without) for rule, found in results.items()
    }
    return max(scores, key=lambda rule: scores[rule])


def report(results: Results) -> None:
    """Print the grid, the choice, and each scan under the choice made without its participant."""
    print("threshold  mm3  peak   Dice    F1  volume ratio")
    for rule, found in results.items():
        print(f"{line(rule)}  {means(found.values())}")
    print(f"chosen: {line(chosen(results))}")
    names = list(next(iter(results.values())))
    if len({person(name) for name in names}) > 1:
        for name in names:
            rule = chosen(results, without=person(name))
            print(f"{name}, with the choice of the others: {line(rule)}  {means([results[rule][name]])}")


def line(rule: LesionRule) -> str:
    """Return a rule in columns of fixed width."""
    threshold = "argmax" if rule.threshold is None else f"{rule.threshold:g}"
    return f"{threshold:9} {rule.least_mm3:4g}  {rule.least_peak:4g}"


def means(found: Iterable[Agreement]) -> str:
    """Return mean Dice, F1 and ratio of the volumes in columns of fixed width."""
    values = np.array([[one.dice, one.f1, one.ratio] for one in found]).mean(0)
    return f"{values[0]:.3f} {values[1]:.3f} {values[2]:.2f}"


if __name__ == "__main__":
    main()
