"""Evaluation of a model on scans it was not trained on, through the complete processing of a user's scan."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Generator

from bidsseg.errors import DataError, TemporaryFailure
from bidsseg.evaluation.agreement import brain_means, dice, surface_distances, voxel_counts, voxel_error
from bidsseg.evaluation.bootstrap import estimate
from bidsseg.evaluation.merging import JOINT, with_lesions
from bidsseg.image.volume import Volume
from bidsseg.labels import Protocol, Region, Relation, load_relation
from bidsseg.labels.relation import identity
from bidsseg.learning.augment import Intensity, change_intensity
from bidsseg.learning.case_reading import LEARNING_MM
from bidsseg.learning.cases import Annotation, Case, ListedCase
from bidsseg.learning.folds import person
from bidsseg.learning.synthesis import contrasts_of, synthesise_each
from bidsseg.models.library import Model
from bidsseg.report import Compared
from bidsseg.segmentation.predict import segment
from bidsseg.segmentation.result import Segmentation

ERROR = "voxel error"
"""Name of the row with the share of wrong voxels inside the reference brain."""
MEASURES = ("dice", "hausdorff95-mm", "found-mm3", "reference-mm3")
"""Measures of each region: Dice, 95 % Hausdorff distance and volumes, named as in the tables of ``evaluate``."""
COLUMNS = ("case", "head", "annotation", "region", *MEASURES)
FEW = 5
"""Largest number of regions that are listed completely."""


def validate(
    model: Model,
    cases: Sequence[ListedCase],
    say: Callable[[str], None],
    *,
    precision: str = "fp32",
    lesion_model: Model | None = None,
    stop: Callable[[], bool] = lambda: False,
    show: Callable[[Compared], None] = lambda compared: None,
) -> pd.DataFrame:
    """Return Dice, distance and volumes of every region of every head on every case; see COLUMNS.

    Regions absent from both are omitted, and so are voxels whose annotation allows several regions.

    Args:
        lesion_model: another model, whose lesions replace the tissues of this one before the evaluation.
        stop: called before each case; if it returns True, TemporaryFailure is raised.
        show: called with the label maps of each comparison, for pictures.
    """
    heads = model.heads if lesion_model is None else {JOINT.name: JOINT}
    inputs = max((m.card.inputs for m in (model, lesion_model) if m is not None), key=len)
    contrasts = contrasts_of(inputs, model.card.modality)
    rows: list[dict[str, object]] = []
    for listed in cases:
        if stop():
            raise TemporaryFailure("interrupted during the validation; the training is saved: run again with --resume")
        case = listed.opened()
        image = case.image if case.image is not None else synthetic_scan(case, contrasts)
        scan = {name: Volume(channel.numpy(), np.eye(4)) for name, channel in zip(inputs, image, strict=True)}
        try:
            result = segment(scan, model, precision=precision)
            if lesion_model is not None:
                result = with_lesions(result, segment(scan, lesion_model, precision=precision))
        except DataError as error:
            say(f"{case.name}: {error}")
            result = empty_segmentation(heads, case.brain.shape)
        for head in heads.values():
            for annotation, relation in comparable(case.annotations, head):
                found, truth, sure, regions = comparison(indices_of(result, head), head, annotation, relation=relation)
                found, truth = (np.where(sure, labels, 0) for labels in (found, truth))
                of_case = measured_rows(found, truth, regions)
                base = {"case": case.name, "head": head.name, "annotation": annotation.protocol.name}
                rows += [base | row for row in of_case]
                mean = brain_means(np.array([[row["dice"] for row in of_case[:-1]]], float)).item()
                measured = f"mean Dice {mean:.3f}" if len(of_case) > 1 else "is rightly empty"
                say(f"{case.name}: {head.name} {measured}")
                show(Compared(case.name, head.name, annotation.protocol.name, mean, found, truth, scan[inputs[0]]))
    return pd.DataFrame(rows, columns=COLUMNS)


def empty_segmentation(heads: Iterable[str], shape: Sequence[int]) -> Segmentation:
    """Return a segmentation in which every voxel is background."""
    background = {name: np.zeros(shape, np.uint8) for name in heads}
    return Segmentation(background, {}, np.zeros(shape, bool), np.zeros(shape, bool), 0.0)


def regions_of(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of regions, without those of the voxel error."""
    return table[table.region != ERROR]


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Return the mean over regions, then over the scans of each participant, then over participants.

    There is one row for each head and annotation that has some region, with columns dice and its bootstrap 95 %
    interval over participants (low, high), voxel_error and cases.
    """
    keys = ["head", "annotation"]
    scans = table[table.region != ERROR].groupby([*keys, "case"]).dice.mean()
    regions = participant_means(scans)
    errors = participant_means(table[table.region == ERROR].groupby([*keys, "case"]).dice.mean())
    result = regions.groupby(keys).agg(dice="mean")
    result["cases"] = scans.groupby(keys).count()
    found = {key: estimate(part.to_numpy()) for key, part in regions.groupby(keys)}
    result["low"] = [found[key].low for key in result.index]
    result["high"] = [found[key].high for key in result.index]
    result["voxel_error"] = errors.groupby(keys).mean().reindex(result.index)
    return result.reset_index()


def participant_means(scans: pd.Series) -> pd.Series:
    """Return the mean over the scans of each participant.

    Args:
        scans: values of scans; the last level of their index is the case.
    """
    people = scans.index.get_level_values(-1).map(person)
    return scans.groupby([*scans.index.names[:-1], people], sort=False).mean()


def described(table: pd.DataFrame) -> list[str]:
    """Return lines to print: for each head and annotation its row of the summary, then its regions.

    Few regions are all listed with a bootstrap 95 % interval over participants, otherwise those with the lowest Dice.
    """
    lines = []
    for _, row in summary(table).iterrows():
        interval = f"[{row['low']:.3f}, {row['high']:.3f}]"
        measured = f"{row['head']} (against {row['annotation']}, {row['cases']} scans)"
        lines.append(f"{measured}: Dice {row['dice']:.3f} {interval}, voxel error {row['voxel_error']:.3f}")
        part = table[(table["head"] == row["head"]) & (table["annotation"] == row["annotation"])]
        scans = part[part.region != ERROR].groupby(["region", "case"]).dice.mean()
        regions = participant_means(scans).groupby("region")
        if regions.ngroups <= FEW:
            for name, values in regions:
                mean, count = estimate(values.to_numpy()), len(scans[name])
                lines.append(f"  {name} ({count} scans): Dice {mean.mean:.3f} [{mean.low:.3f}, {mean.high:.3f}]")
        else:
            lowest = regions.mean().nsmallest(FEW)
            lines.append("  lowest: " + ", ".join(f"{name} {value:.2f}" for name, value in lowest.items()))
    return lines


def synthetic_scan(case: Case, contrasts: Sequence[str], draw: int = 0) -> torch.Tensor:
    """Return synthetic whole-head images (C, X, Y, Z) of a label map, always the same for a case and a draw."""
    generator = Generator().manual_seed(sum(case.name.encode()) + 1000 * draw)
    first = case.annotations[0]
    channels = synthesise_each(first.values, first.protocol, realistic=True, contrasts=contrasts, generator=generator)
    plain = Intensity(gamma=0.0, blur=0.0)
    return 1000 * torch.stack([change_intensity(channel, plain, 1.0, generator=generator) for channel in channels])


def indices_of(result: Segmentation, head: Protocol) -> np.ndarray:
    """Return the predicted index of a region of a head for each voxel."""
    masks = {"brain": result.brain, "lesion": result.lesion}
    return result.labels[head.name] if head.name in result.labels else np.asarray(masks[head.name], np.uint8)


def comparable(annotations: Sequence[Annotation], head: Protocol) -> list[tuple[Annotation, Relation]]:
    """Return the annotations to compare a head with, and their relations.

    This is the annotation in the head's own protocol; otherwise the one that determines most of the head's regions, if
    more than half; otherwise all with a coarser protocol to which the head's result can be converted (the relation is
    then from the head to the annotation); otherwise the one in which most structures were drawn. Only determined
    regions are evaluated.
    """
    pairs = [(a, r) for a in annotations if (r := load_relation(a.protocol, head)) is not None]
    own = [pair for pair in pairs if pair[0].protocol.name == head.name]
    fixed = [pair for pair in pairs if fixed_regions(pair[1]).mean() > 0.5]
    fixed.sort(key=lambda pair: fixed_regions(pair[1]).sum())
    coarser = [(a, r) for a in annotations if (r := load_relation(head, a.protocol)) is not None and is_exact(r)]
    drawn = sorted((pair for pair in pairs if is_partial(pair[1])), key=lambda pair: fixed_regions(pair[1]).sum())
    return own or fixed[-1:] or coarser or drawn[-1:]


def fixed_regions(relation: Relation) -> np.ndarray:
    """Return for each region of the head whether some value of the annotation means exactly this region."""
    fixed: np.ndarray = relation.allowed[relation.allowed.sum(1) == 1].any(0)
    return fixed


def is_partial(relation: Relation) -> bool:
    """Return whether an annotation determines some regions of the head, and its other values mean none of these."""
    drawn = fixed_regions(relation) & (np.array(relation.head.indices) != 0)
    several = relation.allowed[relation.allowed.sum(1) > 1]
    return bool(0 < drawn.mean() <= 0.5 and not several[:, drawn].any())


def is_exact(relation: Relation) -> bool:
    """Return whether each value of the annotation means one region of the head."""
    return bool((relation.allowed.sum(1) == 1).all())


def compare(found: np.ndarray, head: Protocol, annotation: Annotation, *, relation: Relation) -> dict[str, float]:
    """Return Dice by region name, and the voxel error, of region indices in the shape of the annotation."""
    found, truth, sure, meant = comparison(found, head, annotation, relation=relation)
    found, truth = found[sure], truth[sure]
    measured = dice(found, truth, [region.index for region in meant])
    scores = {region.name: float(value) for region, value in zip(meant, measured, strict=True) if np.isfinite(value)}
    return scores | {ERROR: voxel_error(found, truth)}


def comparison(
    found: np.ndarray, head: Protocol, annotation: Annotation, *, relation: Relation
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[Region]]:
    """Return found and true region indices, the voxels with one true region, and the regions to compare."""
    if relation.annotation is head and head is not annotation.protocol:
        head, finer = annotation.protocol, relation
        found = np.array(head.indices)[finer.allowed.argmax(1)[finer.rows[found]]]
        relation = identity(head, head)
    values = annotation.values.numpy()
    sure = (relation.allowed.sum(1) == 1)[values]
    truth = np.array(head.indices)[relation.allowed.argmax(1)][values]
    meant = [head.regions[i] for i in np.flatnonzero(fixed_regions(relation)) if head.regions[i].index]
    if is_partial(relation):  # other voxels are surely none of the structures that were drawn
        found = np.where(np.isin(found, [region.index for region in meant]), found, 0)
        truth, sure = np.where(sure, truth, 0), np.ones_like(sure)
    return found, truth, sure, meant


def measured_rows(found: np.ndarray, truth: np.ndarray, regions: Sequence[Region]) -> list[dict[str, object]]:
    """Return the measures of each region that one of two label maps (X, Y, Z) has, and last the voxel error.

    Both maps are on the grid of cases.
    """
    indices = [region.index for region in regions]
    affine, volume_mm3 = np.diag([LEARNING_MM] * 3 + [1]), LEARNING_MM**3
    distances, _ = surface_distances(found, truth, indices, affine=affine)
    volumes = (voxel_counts(labels, indices) * volume_mm3 for labels in (found, truth))
    values = zip(regions, dice(found, truth, indices), distances, *volumes, strict=True)
    rows: list[dict[str, object]] = [
        {"region": region.name, **dict(zip(MEASURES, measures, strict=True))}
        for region, *measures in values
        if np.isfinite(measures[0])
    ]
    return [*rows, {"region": ERROR, "dice": voxel_error(found, truth)}]
