"""Cross-entropy and Dice, marginalised over the regions that an annotation allows.

A voxel annotated ``a`` may be any region c with R[a, c]. Its loss is -log of the probability of that set,
-log sum_{c: R[a, c]} p_c. With the identity this is the ordinary cross-entropy; with the background of a lesion dataset
open to all non-lesion regions it is ACE (Roulet et al. 2019, arXiv 1903.03445); see also the label-set losses of Fidon
et al. 2021 (arXiv 2107.03846).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from bidsseg.labels import Relation
from bidsseg.schema import NonNegativeFloat

SMOOTH = 1e-7
"""Added to numerator and denominator of the squared Dice term."""


@dataclass(frozen=True)
class Loss:
    """The training loss: the weights of its two terms, and the form of the second.

    Attributes:
        entropy: weight of the cross-entropy.
        dice: weight of the Dice loss.
        squared: whether the Dice term has squares in the denominator and counts absent regions, as E-NeuroNet's.
        naive: whether the background of every annotation is taken literally as the head's background, as in the
            baselines of ACE.
    """

    entropy: NonNegativeFloat = 1.0
    dice: NonNegativeFloat = 0.5
    squared: bool = False
    naive: bool = False

    def __post_init__(self) -> None:
        if self.entropy == self.dice == 0:
            raise ValueError("entropy and dice are both 0, so that nothing is learned: give one of them a weight")


@dataclass(frozen=True)
class Openness:
    """A relation, prepared for the losses.

    Attributes:
        allowed: (A, C) booleans; the relation itself.
        informative: (A,) booleans; False for values that may be any region, which do not contribute to the loss.
        sets: (S, C) booleans; the different informative rows of ``allowed``.
        inside: (A, S) 1 if a voxel with that value is certainly in the set, otherwise 0.
        sure: (A, S) 1 if it is certainly in or certainly outside of the set, otherwise 0.
    """

    allowed: Tensor
    informative: Tensor
    sets: Tensor
    inside: Tensor
    sure: Tensor

    @staticmethod
    def of(relation: Relation, device: str = "cpu") -> Openness:
        """Prepare a relation."""
        allowed = torch.from_numpy(relation.allowed).to(device)
        informative = ~allowed.all(1)
        sets = torch.unique(allowed[informative], dim=0).flip(0)
        overlap = allowed.float() @ sets.float().T
        inside = (overlap == allowed.sum(1, keepdim=True)).float()
        return Openness(allowed, informative, sets, inside, ((overlap == 0) | (inside > 0)).float())

    @cached_property
    def exact(self) -> bool:
        """Whether each informative value means one region."""
        return bool((self.allowed[self.informative].sum(1) == 1).all())

    @cached_property
    def first(self) -> Tensor:
        """(A,) the first region that each value may be."""
        return self.allowed.int().argmax(1)

    @cached_property
    def singletons(self) -> bool:
        """Whether the sets are the regions themselves, in order."""
        one_by_one = torch.eye(len(self.sets), dtype=torch.bool, device=self.sets.device)
        return self.sets.shape == one_by_one.shape and bool((self.sets == one_by_one).all())


def marginal_cross_entropy(log_probability: Tensor, values: Tensor, openness: Openness) -> Tensor:
    """Return the mean of -log P(allowed set) over the informative voxels.

    Args:
        log_probability: (P, C), log-softmax of the logits, one row for each voxel.
        values: (P,) positions of the voxels' annotations in the annotation's table.
    """
    weight = openness.informative[values].to(log_probability.dtype)
    if openness.exact:
        loss = -log_probability.gather(1, openness.first[values][:, None])[:, 0]
    else:
        loss = -torch.logsumexp(log_probability.masked_fill(~openness.allowed[values], -torch.inf), 1)
    return (loss * weight).sum() / weight.sum().clamp(min=1)


def marginal_dice(log_probability: Tensor, values: Tensor, openness: Openness, *, squared: bool = False) -> Tensor:
    """Return one minus the mean Dice overlap of the sets that the annotation distinguishes and that are present.

    For each set of regions, the probabilities are summed, and compared over the voxels that are certainly inside or
    certainly outside of it. With the identity, this is the ordinary soft Dice of the regions present (Milletari et al.
    2016, no squares). Shapes as in marginal_cross_entropy.

    Args:
        squared: with squares in the denominator, as published by Milletari et al., and with absent sets, which have
            full overlap if nothing is predicted for them.
    """
    probability = log_probability.exp()
    if not openness.singletons:
        probability = probability @ openness.sets.T.to(probability.dtype)
    sure, target = openness.sure[values], openness.inside[values]
    both = (probability * target).sum(0)
    if squared:
        sizes = (probability.square() * sure).sum(0) + target.sum(0)
        return 1 - ((2 * both + SMOOTH) / (sizes + SMOOTH)).mean()
    sizes = (probability * sure).sum(0) + target.sum(0)
    present = target.sum(0) > 0
    if not present.any():
        return log_probability.sum() * 0
    return 1 - (2 * both[present] / sizes[present]).mean()


def distillation(log_probability: Tensor, taught: Tensor, annotations: Iterable[tuple[Tensor, Openness]]) -> Tensor:
    """Return the cross-entropy with a teacher where annotations leave several regions open, mean over all voxels.

    The loss of Hinton et al. 2015 (arXiv 1503.02531), restricted to what is not labelled.

    Args:
        log_probability: (P, C), as in marginal_cross_entropy.
        taught: probabilities of the teacher, (P, C). Only the regions that all annotations allow count.
        annotations: values (P,) of each annotation, and its relation.
    """
    allowed = torch.ones_like(taught, dtype=torch.bool)
    for values, openness in annotations:
        allowed &= openness.allowed[values.long()]
    chance = taught * allowed
    total = chance.sum(1, keepdim=True)
    is_open = (allowed.sum(1, keepdim=True) > 1) & (total > 0)
    return -(torch.where(is_open, chance / total.clamp(min=SMOOTH), 0) * log_probability).sum(1).mean()
