"""The level ``evaluate``: compare label maps with reference label maps, in tables and on a page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bidsseg.bids.annotations import find_label_maps
from bidsseg.bids.label_kinds import Kind
from bidsseg.bids.names import natural, unpadded, with_extension
from bidsseg.bids.outputs import AgreementPaths, agreement_paths, root_path
from bidsseg.bids.recons import Recons
from bidsseg.bids.scan import LabelMap, source_key
from bidsseg.derivative.ownership import check_agreement_files, check_folder, check_source
from bidsseg.derivative.results import NativeMap, find_native_maps, mixed_weights
from bidsseg.derivative.root import remove_root_halves, write_root_files
from bidsseg.errors import BidssegError, InputMissing, NothingSelected, UsageError, listed
from bidsseg.evaluation.conversion import Conversion, conversion
from bidsseg.evaluation.pairs import About, Left, Pairing, check_holds, one_of_each_scan, pair_up
from bidsseg.execution.machine import choose_processes
from bidsseg.files import remove
from bidsseg.learning.label_sources import LabelSource, label_sources
from bidsseg.models.card import BRAIN, find_card, name_of, protocol_with_lesions
from bidsseg.models.participants import participants
from bidsseg.settings import Settings

CORRECTED = "its label map was corrected by hand, or its lesions were given: it is not the model's"


@dataclass(frozen=True)
class Judged:
    """The evaluated label maps.

    Attributes:
        protocol: name of their protocol.
        wanted: their files in the folder of ``--against``.
        values: conversion to the protocol of the reference.
    """

    protocol: str
    wanted: str | Kind
    values: Conversion = field(default_factory=dict)


def check_labels(settings: Settings) -> None:
    """Raise UsageError without a reference, and InputMissing for a folder without label maps of its protocol.

    UsageError if the evaluated label maps are in protocols without a relation to that of the reference.
    """
    for sources in _references(settings):
        _judged(settings, sources)


def _references(settings: Settings) -> list[list[LabelSource]]:
    """Return the label maps of the reference, those of one protocol together."""
    if not settings.labels:
        raise UsageError("the level evaluate needs a reference: give --labels DIR or --labels PROTOCOL=DIR")
    found: dict[str, list[LabelSource]] = {}
    for source in label_sources(settings.labels):
        if isinstance(source.wanted, Recons):
            raise UsageError(
                f"{source.given}: evaluate compares label maps on the grid of the T1w, and those of a SUBJECTS_DIR "
                "have another: resample them (mri_label2vol, or fMRIPrep's desc-aseg_dseg)"
            )
        check_holds(source.folder, source.protocol.name, "--labels", wanted=source.wanted)
        found.setdefault(source.protocol.name, []).append(source)
    return list(found.values())


def _judged(settings: Settings, sources: Sequence[LabelSource]) -> Judged:
    """Return the evaluated label maps: those in the protocol of the reference, or one that can be converted to it.

    UsageError if there are none, InputMissing for ``--against`` without label maps.
    """
    protocol, against = sources[0].protocol, settings.evaluation.against
    if against is not None:
        return _judged_in(against, sources)
    try:
        card = find_card(settings.model)
        heads = {name: protocol_with_lesions(card, name) for name in card.heads}  # lesions may have been given
    except BidssegError:  # the model of the label maps may be elsewhere now
        return Judged(protocol.name, protocol.name)
    own = [protocol.name] if protocol.name in heads else list(heads)
    for name in own:
        if (values := conversion(heads[name], protocol)) is not None:
            return Judged(name, name, values)
    raise UsageError(
        f"{sources[0].given}: the model {card.name} predicts no regions of {protocol.name} (it predicts "
        f"{', '.join(heads)}): name the regions as in one of these, or select another model with --model"
    )


def _judged_in(against: Path, sources: Sequence[LabelSource]) -> Judged:
    """Return the label maps of ``--against``: those named as the reference, otherwise the only kind of label maps."""
    protocol = sources[0].protocol
    for wanted in dict.fromkeys((protocol.name, *(source.wanted for source in sources))):
        if not isinstance(wanted, Recons) and find_label_maps(against, wanted):
            return Judged(protocol.name, wanted)
    try:
        (found,) = label_sources({"": [against]})
        values = conversion(found.protocol, protocol)
    except BidssegError:
        values = None
    if values is None or isinstance(found.wanted, Recons):
        check_holds(against, protocol.name, "--against")
    assert values is not None and not isinstance(found.wanted, Recons)
    return Judged(found.protocol.name, found.wanted, values)


def evaluate_level(settings: Settings) -> None:
    """Compare label maps with those of ``--labels``.

    NothingSelected if none could be compared; BidssegError (1) if some could not be compared with their reference.
    """
    references = _references(settings)
    output_dir, report = settings.output_dir, settings.report
    if settings.where:
        report.warn("evaluate: --where is not used: all label maps of the selected participants are compared")
    if settings.evaluation.against is None and not output_dir.is_dir():
        raise InputMissing(f"there is no folder {output_dir}: run the level participant first")
    check_folder(output_dir)
    check_source(settings)
    pairings = [_pairing(settings, sources, _judged(settings, sources)) for sources in references]
    for pairing in pairings:
        check_agreement_files(output_dir, _paths(pairing))
        for warning in [*pairing.warnings(), *_leakage(settings, pairing)]:
            report.warn(warning)
        if settings.dry_run:
            report.say(f"{output_dir / _paths(pairing).table}: {len(pairing.pairs)} scans")
    if settings.dry_run:
        return
    remove_root_halves(output_dir)
    report.start(sum(len(pairing.pairs) for pairing in pairings))
    compared = [_evaluate(settings, pairing) for pairing in pairings]
    report.stop()
    if not any(compared):
        raise NothingSelected("no label map could be compared with a reference; see the reasons above")
    if empty := [pairing.protocol.name for pairing, count in zip(pairings, compared, strict=True) if not count]:
        raise BidssegError(f"no label map of {', '.join(empty)} could be compared; see the reasons above")
    total = sum(len(pairing.pairs) + len(pairing.failed) for pairing in pairings)
    if sum(compared) < total:
        raise BidssegError(f"only {sum(compared)} of {total} pairs could be compared; see the reasons above")


def _paths(pairing: Pairing) -> AgreementPaths:
    return agreement_paths(pairing.protocol.name, pairing.about.found, pairing.about.reference)


def _pairing(settings: Settings, sources: Sequence[LabelSource], compared: Judged) -> Pairing:
    """Return the pairs of label maps to compare in a protocol."""
    protocol, model, options = sources[0].protocol, name_of(settings.model), settings.evaluation
    wanted = {source.folder: source.wanted for source in sources if not isinstance(source.wanted, Recons)}
    references = _selected(settings, wanted)
    folders, failed, alone = list(wanted), list[Left](), list[Left]()
    for note in dict.fromkeys(note for source in sources for note in source.notes):
        settings.report.say(note)
    converted = compared.protocol if compared.protocol != protocol.name else ""
    if converted:
        settings.report.say(f"{protocol.name}: compared with label maps of {converted}, converted to its regions")
    if options.against is None:
        found = model
        maps = list(find_native_maps(settings.output_dir, compared.protocol))
        ours = [each for each in maps if each.model == model and settings.selects(each.scan.entities)]
        judged = [each.scan for each in ours if not each.manual]
        if mixed := mixed_weights({each.scan.key: each.weights for each in ours if not each.manual}):
            settings.report.warn(f"{model}, {compared.protocol}: {mixed}")
        alone = [Left(source_key(each.scan.entities), CORRECTED) for each in ours if each.manual]
        if compared.protocol == BRAIN:
            alone += _masks_of_others(maps, model, references)
        lacking = f"not segmented by the model {model}: run the level participant first"
        if others := ", ".join(sorted({each.model for each in maps} - {model})):
            lacking += f", or select one of these models with --model: {others}"
    else:
        found = options.against.resolve().name
        judged, failed = one_of_each_scan(_selected(settings, {options.against: compared.wanted}), model)
        lacking = f"no label map in {options.against}"
    reference = "+".join(folder.resolve().name for folder in folders)
    about = About(found, reference, folders, options.against, options.mask, converted)
    pairing = Pairing(protocol, about, wanted, compared.values, failed=failed, alone=alone)
    pair_up(judged, references, pairing, lacking=lacking)
    return pairing


def _masks_of_others(maps: Iterable[NativeMap], model: str, references: Iterable[LabelMap]) -> list[Left]:
    """Return the scans with a reference whose brain mask, a file that all models share, is from another model."""
    keys = {unpadded(label_map.key) for label_map in references}
    others = {source_key(each.scan.entities): each.model for each in maps if each.model != model}
    reason = "its brain mask is that of the model {0}: run the level participant with --overwrite, or give --model {0}"
    return [Left(key, reason.format(other)) for key, other in others.items() if unpadded(key) in keys]


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
    return [
        f"{pairing.protocol.name}: the model {pairing.about.found} was trained on {len(seen)} of {len(compared)} "
        f"compared participants ({listed(seen)}), so that the results are too good"
    ]


def _selected(settings: Settings, wanted: Mapping[Path, str | Kind]) -> list[LabelMap]:
    """Return the label maps in folders, of the selected participants and sessions."""
    found = [label_map for folder, names in wanted.items() for label_map in find_label_maps(folder, names)]
    return [label_map for label_map in found if settings.selects(label_map.entities)]


def _evaluate(settings: Settings, pairing: Pairing) -> int:
    """Compare the pairs of a protocol, write tables and page, and return how many scans were compared."""
    from bidsseg.evaluation.comparison import PAIR_MB, Case, compare_pairs
    from bidsseg.evaluation.summary import Study
    from bidsseg.evaluation.tables import write_tables
    from bidsseg.registration.label_files import Remarks
    from bidsseg.report.agreement_page import agreement_page

    output_dir, report, paths = settings.output_dir, settings.report, _paths(pairing)
    cases, left, remarks = [], pairing.left, Remarks()
    for pair, outcome in compare_pairs(pairing, choose_processes(settings, len(pairing.pairs), PAIR_MB)):
        if isinstance(outcome, Case):
            cases.append(outcome)
            for path, remark in outcome.notes:
                remarks.add(path, remark)
            report.advance(pair.key, f"{pairing.protocol.name}: mean Dice {outcome.mean_dice:.3f}")
        else:
            left.append(Left(pair.key, str(outcome)))
            report.warn(f"{pairing.protocol.name}: {pair.key} not compared: {outcome}")
            report.advance(pair.key, f"{pairing.protocol.name}: failed")
    for line in remarks.lines():
        report.say(line)
    if cases:
        cases.sort(key=lambda case: natural(case.pair.key))
        study = Study(pairing.protocol, cases, pairing.about, left)
        if not (output_dir / root_path("description")).exists():
            write_root_files(output_dir, settings.bids_dir, {})
        write_tables(output_dir, paths, study)
        page = agreement_page(output_dir, settings.bids_dir, paths, study=study)
        report.say(f"{page}: {study.in_words()}")
    elif _is_corrected(pairing) and not (settings.participants or settings.sessions):
        _remove_earlier(settings, paths)
    return len(cases)


def _is_corrected(pairing: Pairing) -> bool:
    """Return whether there is nothing to compare any more because label maps of the model were corrected."""
    return not (pairing.pairs or pairing.failed) and any(left.reason == CORRECTED for left in pairing.alone)


def _remove_earlier(settings: Settings, paths: AgreementPaths) -> None:
    """Remove the tables and the page of an earlier run, whose label maps cannot be compared any more."""
    files = [settings.output_dir / path for path in (paths.table, paths.summary, paths.page)]
    if any(path.exists() for path in files):
        remove(each for path in files for each in (path, with_extension(path, ".json")))
        settings.report.say(f"{files[-1]}: removed with its tables, since none of its scans can be compared any more")
