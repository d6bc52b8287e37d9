"""The level ``group``: one table for each protocol of each model, and one page for the cohort."""

from __future__ import annotations

from collections.abc import Iterator

from bidsseg.bids.names import parse_name, with_extension
from bidsseg.bids.outputs import group_report, group_table
from bidsseg.bids.particulars import Particulars, read_particulars
from bidsseg.bids.query import find_scans
from bidsseg.derivative.cohort import Cohort, collect, write_table
from bidsseg.derivative.cohort_numbers import Flags, People, gather
from bidsseg.derivative.cohort_tables import wide_tables, write_long, write_wide
from bidsseg.derivative.ownership import check_folder, check_group_files, check_source
from bidsseg.derivative.results import Result, find_fates, find_results
from bidsseg.errors import BidssegError, InputMissing, NothingSelected
from bidsseg.files import write_json_atomic
from bidsseg.settings import Settings

SHOWN_PROBLEMS = 5


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
    cohorts = collect(_results(settings), _expected(settings, {key for _, key in fates}), fates)
    if not cohorts:
        raise NothingSelected(f"no result of the selected scans in {output_dir}: run the level participant first")
    check_group_files(output_dir, cohorts)
    if not settings.dry_run:
        report.start(len(cohorts) + 2, "step")
        particulars = _particulars(settings, cohorts)
    for cohort in cohorts:
        path = output_dir / group_table(cohort.model, cohort.protocol)
        if not settings.dry_run:
            report.stage(path.name, "volumes")
            _write(settings, cohort, particulars)
            report.advance(path.name, "done")
        report.say(f"{path}: {_count(cohort)}")
    page = output_dir / group_report()
    if not settings.dry_run:
        from bidsseg.report import compare_pages, group_page, read_table

        report.stage(page.name, "page")
        tables = [read_table(output_dir, cohort) for cohort in cohorts]
        for table in tables:
            write_json_atomic(with_extension(output_dir / table.address, ".json"), table.data_dictionary())
        group_page(output_dir, tables)
        report.advance(page.name, "done")
        report.stage("pages of the scans", "the cohort beside their volumes")
        report.advance(
            "pages of the scans", f"{compare_pages(output_dir, tables)} with the cohort beside their volumes"
        )
        report.stop()
    report.say(str(page))


def _particulars(settings: Settings, cohorts: list[Cohort]) -> Particulars:
    """Return what the dataset says about the participants and sessions of all scans."""
    done = {key.removeprefix("sub-").partition("_")[0] for cohort in cohorts for key in cohort.done}
    absent = {item.source["subject"] for cohort in cohorts for item in cohort.absent if "subject" in item.source}
    particulars = read_particulars(settings.bids_dir, sorted(done | absent))
    _warn(settings, particulars.problems)
    return particulars


def _write(settings: Settings, cohort: Cohort, particulars: Particulars) -> None:
    """Write the tables of a cohort; the data dictionary of the first is written with the page."""
    results = list(_of(cohort, settings))
    numbers = gather(cohort, results, settings.runs)
    cohort.joined.append(Flags(numbers, settings.runs))
    cohort.joined.append(People(particulars, cohort))
    path = settings.output_dir / group_table(cohort.model, cohort.protocol)
    _warn(settings, write_table(path, cohort, results))
    for table in wide_tables(numbers):
        write_wide(settings.output_dir, cohort, numbers, table=table)
    long = settings.output_dir / group_table(cohort.model, cohort.protocol, "long")
    if settings.long or long.is_file():  # one of an earlier run must not contradict the other tables
        write_long(settings.output_dir, cohort, numbers)


def _results(settings: Settings) -> Iterator[Result]:
    return find_results(settings.output_dir, settings.participants, settings.sessions)


def _of(cohort: Cohort, settings: Settings) -> Iterator[Result]:
    return (r for r in _results(settings) if (r.model, r.protocol) == (cohort.model, cohort.protocol))


def _expected(settings: Settings, tried: set[str]) -> list[dict[str, str]]:
    """Return the source entities of the scans in the dataset, and of those that an earlier run attempted."""
    try:
        scans = find_scans(
            settings.bids_dir,
            participants=settings.participants or None,
            sessions=settings.sessions or None,
            filters=settings.filters,
            database_dir=settings.database_dir,
        )
        expected = {scan.key: scan.entities for scan in scans}
    except BidssegError as error:
        settings.report.warn(f"the list of scans without a result may be incomplete: {error}")
        expected = {}
    for key in tried - expected.keys():
        parsed = parse_name(f"{key}_T1w")
        if parsed and settings.selects(parsed[0]):
            expected[key] = parsed[0]
    return list(expected.values())


def _count(cohort: Cohort) -> str:
    """Return the number of scans with a result, and the number of scans without one for each reason."""
    counts: dict[str, int] = {}
    for absent in cohort.absent:
        counts[absent.fate.outcome] = counts.get(absent.fate.outcome, 0) + 1
    others = [f"{number} {outcome}" for outcome, number in sorted(counts.items())]
    return ", ".join([f"{len(cohort.done)} scans", *others])


def _warn(settings: Settings, problems: list[str]) -> None:
    for problem in problems[:SHOWN_PROBLEMS]:
        settings.report.warn(problem)
    if len(problems) > SHOWN_PROBLEMS:
        settings.report.warn(f"and {len(problems) - SHOWN_PROBLEMS} more like these")
