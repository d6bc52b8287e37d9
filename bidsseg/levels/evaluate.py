"""The level ``evaluate``: compare label maps with reference label maps, in tables and on a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bidsseg.bids.annotations import find_label_maps
from bidsseg.bids.names import build_name
from bidsseg.bids.outputs import AgreementPaths, agreement_paths, root_path
from bidsseg.bids.scan import LabelMap, without_added
from bidsseg.derivative.ownership import check_agreement_files, check_folder, check_source
from bidsseg.derivative.results import find_native_maps, natural
from bidsseg.derivative.sidecars import write_root_files
from bidsseg.errors import BidssegError, InputMissing, NothingSelected, UsageError
from bidsseg.evaluation.pairs import About, Left, Pairing, check_holds, one_of_each_scan, pair_up
from bidsseg.execution.machine import choose_processes
from bidsseg.labels.protocol import Protocol, load_protocol
from bidsseg.models.card import find_card, name_of
from bidsseg.models.participants import participants
from bidsseg.settings import Settings

CORRECTED = "its label map was corrected by hand, and is not the model's"
NAMED = 5
"""Largest number of participants in a warning."""


def check_labels(settings: Settings) -> None:
    """Raise UsageError without a reference, and InputMissing for a folder without label maps of its protocol."""
    against = settings.evaluation.against
    if not settings.labels or "" in settings.labels:
        raise UsageError("the level evaluate needs a reference: give --labels PROTOCOL=DIR")
    for name, folders in settings.labels.items():
        for folder in folders:
            check_holds(folder, load_protocol(name).name, "--labels")
        if against is not None:
            check_holds(against, load_protocol(name).name, "--against")


def evaluate_level(settings: Settings) -> None:
    """Compare label maps with those of ``--labels``.

    NothingSelected if none could be compared; BidssegError (1) if some could not be compared with their reference.
    """
    check_labels(settings)
    output_dir, report = settings.output_dir, settings.report
    if settings.evaluation.against is None and not output_dir.is_dir():
        raise InputMissing(f"there is no folder {output_dir}: run the level participant first")
    check_folder(output_dir)
    check_source(settings)
    pairings = [_pairing(settings, name) for name in settings.labels]
    for pairing in pairings:
        check_agreement_files(output_dir, _paths(pairing))
        for warning in [*pairing.warnings(), *_leakage(settings, pairing)]:
            report.warn(warning)
        if settings.dry_run:
            report.say(f"{output_dir / _paths(pairing).table}: {len(pairing.pairs)} scans")
    if settings.dry_run:
        return
    report.start(sum(len(pairing.pairs) for pairing in pairings))
    compared = [_evaluate(settings, pairing) for pairing in pairings]
    report.stop()
    if not any(compared):
        raise NothingSelected("no label map could be compared with a reference; see the reasons above")
    total = sum(len(pairing.pairs) + len(pairing.failed) for pairing in pairings)
    if not all(compared) or sum(compared) < total:
        raise BidssegError(f"only {sum(compared)} of {total} pairs could be compared; see the reasons above")


def _paths(pairing: Pairing) -> AgreementPaths:
    return agreement_paths(pairing.protocol.name, pairing.about.found, pairing.about.reference)


def _pairing(settings: Settings, name: str) -> Pairing:
    """Return the pairs of label maps to compare in a protocol."""
    protocol, model, options = load_protocol(name), name_of(settings.model), settings.evaluation
    folders, failed, manual = settings.labels[name], list[Left](), list[Left]()
    if options.against is None:
        found = model
        maps = list(find_native_maps(settings.output_dir, protocol.name))
        ours = [each for each in maps if each.model == model and settings.selects(each.scan.entities)]
        judged = [each.scan for each in ours if not each.manual]
        manual = [Left(build_name(without_added(each.scan.entities)), CORRECTED) for each in ours if each.manual]
        lacking = f"not segmented by the model {model}: run the level participant first"
        if others := ", ".join(sorted({each.model for each in maps} - {model})):
            lacking += f", or select one of these models with --model: {others}"
    else:
        found = options.against.resolve().name
        judged, failed = one_of_each_scan(_selected(settings, [options.against], protocol), model)
        lacking = f"no label map in {options.against}"
    reference = "+".join(folder.resolve().name for folder in folders)
    pairing = Pairing(
        protocol, About(found, reference, folders, options.against, options.mask), failed=failed, alone=manual
    )
    pair_up(judged, _selected(settings, folders, protocol), pairing, lacking=lacking)
    return pairing


def _leakage(settings: Settings, pairing: Pairing) -> list[str]:
    """Return a warning if the evaluated model was trained on participants that are compared."""
    if pairing.about.against is not None:
        return []
    try:
        known = participants(find_card(settings.model).trained_on)
    except BidssegError:  # the model of the label maps may be elsewhere now
        return []
    compared = {f"{settings.bids_dir.name}/sub-{pair.source.get('subject')}" for pair in pairing.pairs}
    if not (seen := sorted(compared & known)):
        return []
    named = f"{', '.join(seen[:NAMED])}{', …' if len(seen) > NAMED else ''}"
    return [
        f"{pairing.protocol.name}: the model {pairing.about.found} was trained on {len(seen)} of {len(compared)} "
        f"compared participants ({named}), so that the results are too good"
    ]


def _selected(settings: Settings, folders: Sequence[Path], protocol: Protocol) -> list[LabelMap]:
    """Return the label maps of the selected participants and sessions."""
    found = [label_map for folder in folders for label_map in find_label_maps(folder, protocol.name)]
    return [label_map for label_map in found if settings.selects(label_map.entities)]


def _evaluate(settings: Settings, pairing: Pairing) -> int:
    """Compare the pairs of a protocol, write tables and page, and return how many scans were compared."""
    from bidsseg.evaluation.comparison import PAIR_MB, Case, compare_pairs
    from bidsseg.evaluation.summary import Study
    from bidsseg.evaluation.tables import write_tables
    from bidsseg.report import agreement_page

    output_dir, report, paths = settings.output_dir, settings.report, _paths(pairing)
    cases, left = [], pairing.left
    for pair, outcome in compare_pairs(pairing, choose_processes(settings, len(pairing.pairs), PAIR_MB)):
        if isinstance(outcome, Case):
            cases.append(outcome)
            report.advance(pair.key, f"{pairing.protocol.name}: mean Dice {outcome.mean_dice:.3f}")
        else:
            left.append(Left(pair.key, str(outcome)))
            report.warn(f"{pairing.protocol.name}: {pair.key} not compared: {outcome}")
            report.advance(pair.key, f"{pairing.protocol.name}: failed")
    if cases:
        cases.sort(key=lambda case: natural(case.pair.key))
        study = Study(pairing.protocol, cases, pairing.about, left)
        if not (output_dir / root_path("description")).exists():
            write_root_files(output_dir, settings.bids_dir, {})
        write_tables(output_dir, paths, study)
        page = agreement_page(output_dir, settings.bids_dir, paths, study=study)
        report.say(f"{page}: {study.in_words()}")
    return len(cases)
