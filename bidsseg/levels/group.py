"""The level ``group``: one table for each protocol of each model, and one page for the cohort."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from bidsseg.bids.annotations import annotations_of_scan
from bidsseg.bids.marks import Marks
from bidsseg.bids.names import build_name, parse_name, suffix_of, with_extension
from bidsseg.bids.outputs import group_changes, group_report, group_table, report_path
from bidsseg.bids.particulars import Particulars, read_particulars
from bidsseg.bids.query import find_scans, has_image, images_of
from bidsseg.bids.scan import Scan, without_desc
from bidsseg.derivative.change_cohort import Changes, find_comparisons, outdated_changes, write_changes
from bidsseg.derivative.cohort import Cohort, collect, write_table
from bidsseg.derivative.cohort_numbers import Flags, People, gather
from bidsseg.derivative.cohort_tables import measured_columns, wide_tables, write_long, write_wide
from bidsseg.derivative.corrections import is_halfway, is_of_another_model, maps_of_comparisons
from bidsseg.derivative.lesion_cohort import (
    LesionCohort,
    collect_lesions,
    find_all_lesions,
    lesion_dictionary,
    outdated_tables,
    region_dictionary,
    rules_differ,
    write_lesion_table,
    write_region_table,
)
from bidsseg.derivative.lesion_tables import LesionFiles, update_lesion_tables
from bidsseg.derivative.measures import find_measures
from bidsseg.derivative.norms import Controls, Norms, Z, find_norms
from bidsseg.derivative.ownership import (
    check_change_files,
    check_folder,
    check_group_files,
    check_lesion_files,
    check_source,
    is_change_table,
    is_lesion_table,
)
from bidsseg.derivative.results import Fate, Result, find_fates, find_results, is_own_page
from bidsseg.derivative.root import remove_root_halves
from bidsseg.derivative.sidecar_keys import corrections, read_sidecar, source_paths
from bidsseg.errors import BidssegError, InputMissing, NothingSelected, listed
from bidsseg.files import fingerprint, remove, write_json_atomic
from bidsseg.models.card import find_card, shipped
from bidsseg.settings import Settings

SHOWN_PROBLEMS = 5
Named = tuple[Mapping[str, str], str]
"""Entities and file name of an image."""


def group_level(settings: Settings) -> None:
    """Collect the results in the output folder; list scans of the dataset without a result, with their reason.

    Raises:
        InputMissing: the output folder does not exist.
        NothingSelected: it contains no result of the selected participants and sessions.
    """
    output_dir, report = settings.output_dir, settings.report
    if not output_dir.is_dir():
        raise InputMissing(f"no folder {output_dir}: run the level participant first")
    check_folder(output_dir)
    check_source(settings)
    fates = find_fates(output_dir)
    marks = Marks(settings.bids_dir)
    expected = _expected(settings, marks, {key for _, key in fates})
    cohorts = collect(_results(settings), expected, fates)
    segmented = {(cohort.model, key) for cohort in cohorts for key in cohort.done}
    lesions = collect_lesions(_lesions(settings), expected, fates, segmented=segmented)
    changes = find_comparisons(output_dir, settings.participants)
    if not (cohorts or lesions or changes):
        raise NothingSelected(f"no result of the selected scans in {output_dir}: run the level participant first")
    check_group_files(output_dir, cohorts)
    check_lesion_files(output_dir, [table for cohort in lesions for table in cohort.tables])
    check_change_files(output_dir, changes)
    _warn(settings, list(_earlier_results(cohorts, fates)))
    if settings.corrections is not None and not settings.dry_run:  # in a dry run, participant has not used them yet
        _warn(settings, list(_without_correction(settings.corrections, list(_results(settings)))))
        _warn(settings, list(_changes_without_correction(settings.corrections, changes)))
    images = _images(settings, lesions)
    unmarked = _unmarked(settings, marks, images)
    changes = _marked(settings, marks, changes)
    particulars = Particulars() if settings.dry_run else _particulars(settings, cohorts, changes)
    controls = _controls(settings, marks, images)
    if not settings.dry_run:
        remove_root_halves(output_dir)
        report.start(len(cohorts) + 2, "step")
    problems: dict[str, None] = {}  # of a model, once for all of its protocols
    for cohort in cohorts:
        path = output_dir / group_table(cohort.model, cohort.protocol)
        if not settings.dry_run:
            report.stage(path.name, "volumes")
            problems |= dict.fromkeys(_write(settings, cohort, particulars, unmarked=unmarked, controls=controls))
            report.advance(path.name, "done")
        report.say(f"{path}: {_count(cohort)}")
        if (long := _long_table(settings, cohort)) is not None:
            report.say(f"{long}: a row for each scan and region")
    _warn(settings, list(problems))
    _write_changes(settings, changes, particulars)
    for of_model in lesions:
        of_labels = (cohort.uncounted for cohort in cohorts if cohort.model == of_model.model)
        uncounted = next(of_labels, None)  # without label maps, the runs are chosen among the results about lesions
        uncounted = of_model.other_runs(settings.runs, unmarked) if uncounted is None else uncounted
        _write_lesions(settings, of_model, uncounted | unmarked)
    if not settings.dry_run:
        _remove_outdated(output_dir, lesions, changes)
        _write_pages(settings, cohorts, lesions, changes=changes)
    report.say(str(output_dir / group_report()))


def _write_pages(settings: Settings, cohorts: list[Cohort], lesions: list[LesionCohort], *, changes: Changes) -> None:
    """Write the page of the cohort, and the cohort beside the volumes on the pages of the scans."""
    from bidsseg.report import compare_pages, group_page, read_lesions, read_table

    output_dir, report = settings.output_dir, settings.report
    report.stage(group_report().name, "page")
    tables = [read_table(output_dir, cohort) for cohort in cohorts]
    for table in tables:
        write_json_atomic(with_extension(output_dir / table.address, ".json"), table.data_dictionary())
    group_page(output_dir, tables, [read_lesions(output_dir, cohort) for cohort in lesions], changes=changes)
    report.advance(group_report().name, "done")
    report.stage("pages of the scans", "the cohort beside their volumes")
    report.advance("pages of the scans", f"{compare_pages(output_dir, tables)} with the cohort beside their volumes")
    report.stop()


def _particulars(settings: Settings, cohorts: list[Cohort], changes: Changes) -> Particulars:
    """Return what the dataset says about the participants and sessions of all scans."""
    done = {key.removeprefix("sub-").partition("_")[0] for cohort in cohorts for key in cohort.done}
    absent = {item.source["subject"] for cohort in cohorts for item in cohort.absent if "subject" in item.source}
    compared = {one.subject for comparisons in changes.values() for one in comparisons}
    particulars = read_particulars(settings.bids_dir, sorted(done | absent | compared))
    _warn(settings, particulars.problems)
    return particulars


def _images(settings: Settings, lesions: Iterable[LesionCohort]) -> dict[str, Named]:
    """Return entities and file name of the image of each scan with a result, by its key; none without conditions."""
    if not (settings.where or settings.controls):
        return {}
    of_lesions = [files for cohort in lesions for files in cohort.scans]
    about = {files.key: (files.source, read_sidecar(with_extension(files.table, ".json"))) for files in of_lesions}
    first = {result.key: result for result in reversed(list(_results(settings)))}  # one of all protocols
    about |= {key: (result.source, result.sidecar()) for key, result in first.items()}
    return {
        key: (source, next((path.name for path in source_paths(sidecar)), key))
        for key, (source, sidecar) in about.items()
    }


def _unmarked(settings: Settings, marks: Marks, images: Mapping[str, Named]) -> set[str]:
    """Return the keys of the scans with a result that do not meet the conditions of ``--where``.

    Raises:
        UsageError: no table of the dataset has the column of a condition.
        NothingSelected: no scan meets them.
    """
    if not settings.where:
        return set()
    unmet = {key for key, image in images.items() if marks.unmet(settings.where, *image)}
    marks.check(settings.where, "--where")
    if images and len(unmet) == len(images):
        raise NothingSelected(f"--where: no scan with a result meets {' and '.join(settings.where)}")
    return unmet


def _controls(settings: Settings, marks: Marks, images: Mapping[str, Named]) -> Controls | None:
    """Return what the dataset says about the scans with a result and which are controls; None without any.

    Raises:
        UsageError: no table of the dataset has the column of a condition, or of a covariate.
        NothingSelected: no scan meets the conditions.
    """
    if not (settings.controls and images):
        return None
    met = {key for key, image in images.items() if not marks.unmet(settings.controls, *image)}
    marks.check(settings.controls, "--controls")
    for column in settings.covariates:
        marks.check_column(column, f"--covariates {column}")
    if not met:
        raise NothingSelected(f"--controls: no scan with a result meets {' and '.join(settings.controls)}")
    cells = {key: marks.cells(*image) for key, image in images.items()}
    return Controls(settings.controls, met, cells, settings.covariates, marks.categorical())


def _marked(settings: Settings, marks: Marks, changes: Changes) -> Changes:
    """Return the comparisons of scans that all meet the conditions of ``--where``; warn if only some do."""
    if not settings.where:
        return changes
    found: Changes = {key: [] for key in changes}
    mixed: dict[str, None] = {}
    for key, compared in changes.items():
        for one in compared:
            unmet = [bool(marks.unmet(settings.where, *scan)) for scan in one.scans()]
            if not any(unmet):
                found[key].append(one)
            elif not all(unmet):
                mixed[f"sub-{one.subject}"] = None
    if mixed:
        settings.report.warn(
            f"{listed(list(mixed), 3)}: not in the tables of changes: the comparison contains scans that are left out: "
            "repeat longitudinal with the same --where"
        )
    return found


def _write(
    settings: Settings,
    cohort: Cohort,
    particulars: Particulars,
    *,
    unmarked: Container[str],
    controls: Controls | None,
) -> list[str]:
    """Write the tables of a cohort, and return problems; the data dictionary of the first is written with the page."""
    results = list(_of(cohort, settings))
    numbers = gather(cohort, results, settings.runs, unmarked=unmarked)
    cohort.quality = numbers.quality_names
    cohort.uncounted = {
        result.key for result, counts in zip(numbers.results, numbers.selected, strict=True) if not counts
    }
    if len(cohort.quality) > 1:
        settings.report.warn(
            f"{cohort.model}, {cohort.protocol}: the quality of some scans is the {cohort.quality[0]}, that of others, "
            f"from an earlier version, the {cohort.quality[1]}: recompute these (--overwrite) to compare them"
        )
    for mixed in numbers.mixtures:
        settings.report.warn(f"{cohort.model}, {cohort.protocol}: {mixed}")
    cohort.joined.append(Flags(numbers, settings.runs, settings.where))
    norms, problems = (None, list[str]()) if controls is None else find_norms(numbers, controls)
    if norms is not None:
        cohort.joined.append(norms)
    measured = measured_columns({name for result in results for name, _ in find_measures(result)})
    cohort.joined.append(People(particulars, cohort, [*measured, Z]))
    path = settings.output_dir / group_table(cohort.model, cohort.protocol)
    _warn(settings, write_table(path, cohort, results))
    for table in wide_tables(numbers, norms):
        write_wide(settings.output_dir, cohort, numbers, table=table)
    if _long_table(settings, cohort) is not None:
        write_long(settings.output_dir, cohort, numbers, norms=norms)
    _report_norms(settings, cohort, norms)
    if numbers.without_estimate and results[0].model_name() in _skull_models():
        scans = listed(numbers.without_estimate, 3)
        problems.append(f"no eTIV of {scans}, from a version before 0.17.0: recompute them (--overwrite) to get it")
    return [f"{cohort.model}: {problem}" for problem in problems]


def _report_norms(settings: Settings, cohort: Cohort, norms: Norms | None) -> None:
    """Report the table of z scores; without one, remove that of an earlier run, which the other tables contradict."""
    table = settings.output_dir / group_table(cohort.model, cohort.protocol, "zscore")
    if norms is None:
        remove([table, with_extension(table, ".json")])
    else:
        settings.report.say(f"{table}: {norms}")


def _skull_models() -> set[str]:
    """Return the names of the shipped models that estimate the intracranial volume."""
    return {card.name for card in shipped() if card.mask_reaches_skull}


def _long_table(settings: Settings, cohort: Cohort) -> Path | None:
    """Return the long table if it is written: one of an earlier run must not contradict the other tables."""
    path = settings.output_dir / group_table(cohort.model, cohort.protocol, "long")
    return path if settings.long or path.is_file() else None


def _results(settings: Settings) -> Iterator[Result]:
    return find_results(settings.output_dir, settings.participants, settings.sessions)


def _without_correction(folder: Path, results: Sequence[Result]) -> Iterator[str]:
    """Yield a warning for each label map with a correction that it does not contain."""
    models = {result.model_name() for result in results}
    for result in results:
        model = result.model_name()
        scan = Scan({**result.source, "desc": result.model.removesuffix(model)}, result.dseg)
        try:
            fitting = annotations_of_scan(folder, scan, result.protocol)
        except BidssegError as error:
            yield f"{result.key}: {error}"
            continue
        files = [path for path in fitting if not is_of_another_model(path, scan, model, others=models)]
        known = corrections(result.sidecar()).values()
        if files and not any(fingerprint(path) in known for path in files):
            yield f"{files[0]} is not in the tables of {model}: run participant with this model and --corrections"


def _changes_without_correction(folder: Path, changes: Changes) -> Iterator[str]:
    """Yield a warning for each corrected label map in the halfway space that no table of changes contains."""
    compared = [one for comparisons in changes.values() for one in comparisons]
    subjects = {one.subject for one in compared}
    known = {value for one in compared for value in corrections(one.sidecar).values()}
    for image in maps_of_comparisons(folder):
        is_known = image.entities["subject"] not in subjects or fingerprint(image.path) in known
        if is_halfway(image) and not is_known:
            yield f"{image.path} is not in the tables of changes: run longitudinal with its model and --corrections"


def _write_changes(settings: Settings, changes: Changes, particulars: Particulars) -> None:
    """Write the tables of the changes between sessions."""
    problems: dict[str, None] = {}  # of a model, once for all of its protocols
    for key, compared in changes.items():
        path = settings.output_dir / group_changes(*key)
        if not settings.dry_run:
            problems |= dict.fromkeys(
                write_changes(path, compared, particulars, protocol=key[1], sessions=settings.sessions)
            )
        settings.report.say(f"{path}: the changes of {len(compared)} participant{'' if len(compared) == 1 else 's'}")
    _warn(settings, list(problems))


def _lesions(settings: Settings) -> Iterator[LesionFiles]:
    return find_all_lesions(settings.output_dir, settings.participants, settings.sessions)


def _write_lesions(settings: Settings, cohort: LesionCohort, uncounted: Container[str]) -> None:
    """Update the tables of the lesions of each scan, and write those of the cohort.

    Args:
        uncounted: keys of the scans that do not count, by their marks or because another run does.
    """
    output_dir = settings.output_dir
    if not settings.dry_run:
        problems = _update_lesions(settings, cohort)
        cohort.leave_out(uncounted)
        problems += rules_differ(cohort)
        problems += write_lesion_table(output_dir / cohort.table, cohort)
        write_json_atomic(with_extension(output_dir / cohort.table, ".json"), lesion_dictionary(cohort))
        for other in sorted(cohort.others):
            path = output_dir / cohort.region_table(other)
            problems += write_region_table(path, cohort, other)
            write_json_atomic(with_extension(path, ".json"), region_dictionary(cohort, other))
        _warn(settings, problems)
    for table in cohort.tables:
        settings.report.say(f"{output_dir / table}: {len(cohort.scans)} scans")


def _remove_outdated(output_dir: Path, lesions: list[LesionCohort], changes: Changes) -> None:
    """Remove tables of the lesions and changes of an earlier cohort that the results contradict."""
    own = [path for path in outdated_tables(output_dir, lesions) if is_lesion_table(path)]
    own += [path for path in outdated_changes(output_dir, changes) if is_change_table(path)]
    for path in own:
        remove([path, with_extension(path, ".json")])


def _update_lesions(settings: Settings, cohort: LesionCohort) -> list[str]:
    """Update the tables of the lesions of each scan, and its page if they changed; return the problems."""
    from bidsseg.report import participant_page

    output_dir, problems = settings.output_dir, []
    for files in cohort.scans:
        update = update_lesion_tables(files.table.parent, files.source)
        problems += update.problems
        scan = Scan(files.source, Path())
        if update.changed and is_own_page(output_dir / report_path(scan)):
            participant_page(output_dir, scan)
    return problems


def _of(cohort: Cohort, settings: Settings) -> Iterator[Result]:
    return (r for r in _results(settings) if (r.model, r.protocol) == (cohort.model, cohort.protocol))


def _expected(settings: Settings, marks: Marks, tried: set[str]) -> list[dict[str, str]]:
    """Return the source entities of the scans in the dataset, and of those that an earlier run attempted.

    The latter may need another filter than this run has, or be in a folder that cannot be read. Those that are no
    longer in the dataset, or do not meet the conditions of ``--where``, are left out, unless the dataset cannot be
    read.
    """
    attempted = {key: parsed[0] for key in tried if (parsed := parse_name(f"{key}_T1w"))}
    try:
        scans = find_scans(
            settings.bids_dir,
            participants=settings.participants or None,
            sessions=settings.sessions or None,
            filters=settings.queries(_suffix(settings)),
            where=settings.where,
            database_dir=settings.database_dir,
            store_index=not settings.dry_run,
        )
        expected = {scan.key: scan.entities for scan in scans}
        attempted = {key: entities for key, entities in attempted.items() if has_image(settings.bids_dir, entities)}
        if settings.where:
            attempted = _with_marks(settings, marks, attempted)
    except BidssegError as error:
        settings.report.warn(f"the list of scans without a result may be incomplete: {error}")
        expected = {}
    return list({**{key: each for key, each in attempted.items() if settings.selects(each)}, **expected}.values())


def _with_marks(settings: Settings, marks: Marks, scans: Mapping[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    """Return the scans without a result, by key, that meet the conditions of ``--where``, or have no visible image."""
    wanted = settings.queries(_suffix(settings))["t1w"]["suffix"]
    suffixes = wanted if isinstance(wanted, list) else [wanted]
    found = {}
    for key, entities in scans.items():
        images = sorted(images_of(settings.bids_dir, entities), key=lambda image: suffix_of(image) not in suffixes)
        if not images or not marks.unmet(settings.where, entities, images[0].name):
            found[key] = entities
    return found


def _suffix(settings: Settings) -> str:
    """Return the suffix of the images that the model reads; T1w if the model is elsewhere now."""
    try:
        return find_card(settings.model).suffix
    except BidssegError:
        return "T1w"


def _count(cohort: Cohort) -> str:
    """Return the number of scans with a result, of those that do not count, and of scans without one by reason."""
    counts: dict[str, int] = {}
    for absent in cohort.absent:
        counts[absent.fate.outcome] = counts.get(absent.fate.outcome, 0) + 1
    others = [f"{number} {outcome}" for outcome, number in sorted(counts.items())]
    uncounted = [f"{len(cohort.uncounted)} of them not counted"] if cohort.uncounted else []
    return ", ".join([f"{len(cohort.done)} scans", *uncounted, *others])


def _earlier_results(cohorts: Iterable[Cohort], fates: Mapping[tuple[str, str], Fate]) -> Iterator[str]:
    """Yield a warning for each model with results of scans that its last run tried to replace and could not."""
    tried = [(model, parsed[0], fate) for (model, key), fate in fates.items() if (parsed := parse_name(f"{key}_T1w"))]
    for (name, desc), done in {(cohort.model, cohort.desc): cohort.done for cohort in cohorts}.items():
        own = [(each, fate) for model, each, fate in tried if f"{desc}{model}" == name and each.get("desc", "") == desc]
        kept = {key: fate for each, fate in own if (key := build_name(without_desc(each))) in done}
        if kept:
            scans, reason = listed(list(kept), 3), next(iter(kept.values())).reason
            yield f"{name}: the last run could not segment {scans}, whose earlier results count: {reason}"


def _warn(settings: Settings, problems: list[str]) -> None:
    for problem in problems[:SHOWN_PROBLEMS]:
        settings.report.warn(problem)
    if len(problems) > SHOWN_PROBLEMS:
        settings.report.warn(f"and {len(problems) - SHOWN_PROBLEMS} more like these")
