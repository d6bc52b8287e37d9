"""The level ``evaluate``: how far label maps agree with those that serve as reference, in tables and on a page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bidsseg.bids.annotations import find_label_maps
from bidsseg.bids.outputs import AgreementPaths, agreement_paths, root_path
from bidsseg.bids.scan import Scan
from bidsseg.derivative.ownership import check_agreement_files, check_folder, check_source
from bidsseg.derivative.results import find_native_maps, natural
from bidsseg.derivative.sidecars import write_root_files
from bidsseg.errors import BidssegError, InputMissing, NothingSelected, UsageError
from bidsseg.evaluation.pairs import About, Left, Pairing, check_holds, one_of_each_scan, pair_up
from bidsseg.execution.machine import choose_processes
from bidsseg.labels.protocol import Protocol, load_protocol
from bidsseg.models.card import find_card
from bidsseg.settings import Settings


@dataclass(frozen=True)
class Task:
    """The comparison of the label maps of one protocol."""

    protocol: Protocol
    about: About
    pairing: Pairing

    @property
    def paths(self) -> AgreementPaths:
        """Where its tables and its page go, relative to the output folder."""
        return agreement_paths(self.protocol.name, self.about.found, self.about.reference)


def check_labels(settings: Settings) -> None:
    """Raise UsageError without a reference, and InputMissing for a folder that holds no label map of its protocol."""
    options = settings.evaluation
    if not options.reference:
        raise UsageError("the level evaluate needs a reference: give --labels PROTOCOL=DIR")
    for name, folders in options.reference.items():
        for folder in folders:
            check_holds(folder, load_protocol(name).name, "--labels")
        if options.against is not None:
            check_holds(options.against, load_protocol(name).name, "--against")


def evaluate_level(settings: Settings) -> None:
    """Compare label maps with those of ``--labels``.

    Raises:
        NothingSelected: no label map could be compared.
        BidssegError: with code 1 if some could not be compared with their reference.
    """
    check_labels(settings)
    output_dir, report = settings.output_dir, settings.report
    if settings.evaluation.against is None and not output_dir.is_dir():
        raise InputMissing(f"there is no folder {output_dir}: run the level participant first")
    check_folder(output_dir)
    check_source(settings)
    tasks = [_task(settings, name) for name in settings.evaluation.reference]
    for task in tasks:
        check_agreement_files(output_dir, task.paths)
        for left in [*task.pairing.failed, *task.pairing.alone]:
            report.warn(f"{left.key} is not compared: {left.reason}")
        if settings.dry_run:
            report.say(f"{output_dir / task.paths.table}: {len(task.pairing.pairs)} scans")
    if settings.dry_run:
        return
    total = sum(len(task.pairing.pairs) for task in tasks)
    report.start(total)
    compared = sum(_evaluate(settings, task) for task in tasks)
    report.stop()
    if not compared:
        raise NothingSelected("no label map could be compared with a reference; the reasons stand above")
    if failed := total - compared + sum(len(task.pairing.failed) for task in tasks):
        raise BidssegError(f"{failed} of {failed + compared} scans could not be compared; the reasons stand above")


def _task(settings: Settings, name: str) -> Task:
    """Find what is compared in a protocol."""
    protocol, options = load_protocol(name), settings.evaluation
    folders = options.reference[name]
    try:
        model = find_card(settings.model).name
    except InputMissing:  # label maps may outlive the model that made them
        model = Path(settings.model).name
    if options.against is None:
        found = model
        maps = list(find_native_maps(settings.output_dir, protocol.name))
        judged, failed = [scan for maker, scan in maps if maker == model], list[Left]()
        others = ", ".join(sorted({maker for maker, _ in maps} - {model}))
        other = f", or choose one of these with --model: {others}" if others else ""
        lacking = f"the scan was not segmented by the model {model}: run the level participant first{other}"
    else:
        found = options.against.resolve().name
        judged, failed = one_of_each_scan(find_label_maps(options.against, protocol.name), model)
        lacking = f"the scan has no label map in {options.against}"
    references = [label_map for folder in folders for label_map in find_label_maps(folder, protocol.name)]
    wanted = [label_map for label_map in references if settings.selects(label_map.entities)]
    scans: list[Scan] = [scan for scan in judged if settings.selects(scan.entities)]
    pairing = pair_up(scans, wanted, folders, protocol=protocol.name, lacking=lacking)
    pairing.failed += failed
    reference = "+".join(folder.resolve().name for folder in folders)
    return Task(protocol, About(found, reference, folders, options.against, options.mask), pairing)


def _evaluate(settings: Settings, task: Task) -> int:
    """Compare the pairs of a protocol, write tables and page, and return how many scans were compared."""
    from bidsseg.evaluation.comparison import PAIR_MB, Case, compare_pairs
    from bidsseg.evaluation.summary import Study
    from bidsseg.evaluation.tables import write_tables
    from bidsseg.report import agreement_page

    pairing, report, paths = task.pairing, settings.report, task.paths
    processes = choose_processes(settings, len(pairing.pairs), PAIR_MB)
    cases, left = [], [*pairing.failed, *pairing.alone]
    for pair, outcome in compare_pairs(pairing.pairs, task.protocol, task.about.mask, processes=processes):
        if isinstance(outcome, Case):
            cases.append(outcome)
            report.advance(pair.key, f"{task.protocol.name}: mean Dice {outcome.mean_dice:.3f}")
        else:
            left.append(Left(pair.key, str(outcome)))
            report.warn(f"{pair.key} is not compared: {outcome}")
            report.advance(pair.key, f"{task.protocol.name}: failed")
    if cases:
        study = Study(task.protocol, sorted(cases, key=lambda case: natural(case.pair.key)), task.about, left)
        if not (settings.output_dir / root_path("description")).exists():
            write_root_files(settings.output_dir, settings.bids_dir, {})
        write_tables(settings.output_dir, paths, study)
        page = agreement_page(settings.output_dir, settings.bids_dir, paths, study=study)
        report.say(f"{settings.output_dir / paths.table}: {study.in_words()}")
        report.say(str(page))
    return len(cases)
