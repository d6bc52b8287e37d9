"""Comparison of pairs of label maps, one by one or in several processes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bidsseg.errors import BidssegError, DataError, TemporaryFailure, explained
from bidsseg.evaluation.agreement import Agreement, brain_means, counted, measured, scored_regions
from bidsseg.evaluation.conversion import converted
from bidsseg.evaluation.lesions import Lesions, count_lesions
from bidsseg.evaluation.pairs import Pair, Pairing
from bidsseg.image.volume import Volume
from bidsseg.labels.protocol import Protocol
from bidsseg.registration.label_files import Note, on_same_grid, read_values, with_known_values
from bidsseg.settings import Mask

PAIR_MB = 600
"""Memory (MB) of a process that compares two label maps of 256³ voxels, with a reserve."""


@dataclass(frozen=True, eq=False)
class Case:
    """The comparison of two label maps of one scan.

    Attributes:
        lesions: numbers of lesions; None for a protocol without lesions.
        notes: files, each with a remark on how it was read.
    """

    pair: Pair
    agreement: Agreement
    lesions: Lesions | None
    notes: Sequence[tuple[Path, str]] = ()

    @property
    def mean_dice(self) -> float:
        """Mean Dice of the regions that either map has; NaN if neither map has any."""
        return float(brain_means(self.agreement.dice[None])[0])


def read_pair(
    pair: Pair, protocol: Protocol, mask: Mask, *, note: Note = lambda path, remark: None
) -> tuple[Volume, Volume]:
    """Return the found and the reference label map in a protocol, with background in the voxels that do not count.

    Masks of other values, probabilities, and other forms of the same grid are accepted, with a note, as in training.

    Raises:
        InputMissing: a file does not exist or cannot be opened.
        DataError: the maps are on different grids, or one is not a label map of the protocol.
    """
    found, drawn = read_values(pair.found, note=note), read_values(pair.reference, note=note)
    reference = on_same_grid(drawn, found, other="the other label map", note=partial(note, pair.reference))
    if reference is None:
        shapes = f"{found.shape} and {drawn.shape} voxels"
        raise DataError(f"{pair.found} and {pair.reference} are on different grids ({shapes}): resample one of them")
    try:
        values = converted(found.data, pair.values)
    except DataError as error:
        raise DataError(f"{pair.found}: {error}") from error
    labels, truth = counted(
        with_known_values(values, protocol, pair.found, note=note),
        with_known_values(reference.data, protocol, pair.reference, note=note),
        protocol,
        mask=mask,
    )
    return Volume(labels, found.affine), Volume(truth, reference.affine)


def compare_pair(pair: Pair, protocol: Protocol, mask: Mask) -> Case:
    """Return the comparison of two label maps. It raises the errors of :func:`read_pair`."""
    notes: list[tuple[Path, str]] = []
    found, reference = read_pair(pair, protocol, mask, note=lambda *remark: notes.append(remark))
    agreement = measured(found.data, reference.data, protocol, affine=reference.affine)
    lesions = None
    if protocol.lesions:
        indices = [region.index for region in scored_regions(protocol)]
        lesions = count_lesions(found.data, reference.data, indices, lesions=protocol.lesions)
    return Case(pair, agreement, lesions, notes)


def compare_pairs(pairing: Pairing, processes: int) -> Iterator[tuple[Pair, Case | BidssegError]]:
    """Yield each pair with its comparison, or with the error that prevented it, in the order of completion."""
    compare = partial(_compared, protocol=pairing.protocol, mask=pairing.about.mask)
    if processes == 1:
        yield from ((pair, compare(pair)) for pair in pairing.pairs)
        return
    # Spawned, not forked: library threads that other levels have started do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        waiting = {pool.submit(compare, pair): pair for pair in pairing.pairs}
        try:
            for future in as_completed(waiting):
                yield waiting[future], future.result()
        except BrokenProcessPool as error:
            message = "a process that compares label maps was killed, perhaps out of memory: give fewer --n-cpus"
            raise TemporaryFailure(message) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _compared(pair: Pair, *, protocol: Protocol, mask: Mask) -> Case | BidssegError:
    """Return the comparison, or the error that prevented it."""
    try:
        return compare_pair(pair, protocol, mask)
    except Exception as error:
        if known := explained(error):
            return known
        raise
