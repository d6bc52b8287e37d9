"""Pairs of label maps, read and measured one by one or by several processes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial

from bidsseg.errors import BidssegError, DataError, TemporaryFailure, explained
from bidsseg.evaluation.agreement import Agreement, Mask, brain_means, counted, measured, scored_regions
from bidsseg.evaluation.lesions import Lesions, count_lesions
from bidsseg.evaluation.pairs import Pair, Pairing
from bidsseg.image.nifti import read_labels
from bidsseg.image.volume import Volume
from bidsseg.labels.protocol import Protocol

PAIR_MB = 600
"""Memory (MB) of a process that compares two label maps of 256³ voxels, with some to spare."""


@dataclass(frozen=True, eq=False)
class Case:
    """Two label maps of one scan, compared.

    Attributes:
        lesions: None for a protocol without lesions.
    """

    pair: Pair
    agreement: Agreement
    lesions: Lesions | None

    @property
    def mean_dice(self) -> float:
        """Mean Dice of the regions that any map has; NaN without any."""
        return float(brain_means(self.agreement.dice[None])[0])


def read_pair(pair: Pair, protocol: Protocol, mask: Mask) -> tuple[Volume, Volume]:
    """Return both label maps as far as their voxels count, the judged one first.

    Raises:
        InputMissing: a file does not exist or cannot be opened.
        DataError: the maps lie on two grids, or one is no label map of the protocol.
    """
    found, reference = read_labels(pair.found), read_labels(pair.reference)
    if not found.on_grid_of(reference):
        shapes = f"{found.shape} and {reference.shape} voxels"
        raise DataError(f"{pair.found} and {pair.reference} lie on two grids ({shapes}): resample one to the other")
    try:
        labels, truth = counted(found.data, reference.data, protocol, mask=mask)
    except DataError as error:
        raise DataError(f"{pair.found}, {pair.reference}: {error}") from error
    return Volume(labels, found.affine), Volume(truth, reference.affine)


def compare_pair(pair: Pair, protocol: Protocol, mask: Mask) -> Case:
    """Measure how far two label maps agree. Errors are those of :func:`read_pair`."""
    found, reference = read_pair(pair, protocol, mask)
    agreement = measured(found.data, reference.data, protocol, spacing_mm=reference.spacing_mm.tolist())
    lesions = None
    if protocol.lesions:
        indices = [region.index for region in scored_regions(protocol)]
        lesions = count_lesions(found.data, reference.data, indices, lesions=protocol.lesions)
    return Case(pair, agreement, lesions)


def compare_pairs(pairing: Pairing, processes: int) -> Iterator[tuple[Pair, Case | BidssegError]]:
    """Yield each pair with its measures, or with the reason why there are none, as they come."""
    compare = partial(_compared, protocol=pairing.protocol, mask=pairing.about.mask)
    if processes == 1:
        yield from ((pair, compare(pair)) for pair in pairing.pairs)
        return
    # Not forked: threads of libraries that other levels have started do not survive that.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        waiting = {pool.submit(compare, pair): pair for pair in pairing.pairs}
        try:
            for future in as_completed(waiting):
                yield waiting[future], future.result()
        except BrokenProcessPool as error:
            message = "a process that compares label maps was killed, perhaps for want of memory: give fewer --n-cpus"
            raise TemporaryFailure(message) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _compared(pair: Pair, *, protocol: Protocol, mask: Mask) -> Case | BidssegError:
    """Return the case, or the error for which there is none."""
    try:
        return compare_pair(pair, protocol, mask)
    except Exception as error:
        if known := explained(error):
            return known
        raise
