"""The plan of the level ``participant``: which scans are segmented, and which not."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bidsseg.bids import query, validator
from bidsseg.bids.index import participant_labels
from bidsseg.bids.names import ANATOMICAL, suffix_of
from bidsseg.bids.particulars import read_particulars
from bidsseg.bids.scan import Scan, Selection
from bidsseg.derivative.corrections import Corrections, Search, find_corrections
from bidsseg.derivative.finished import is_finished
from bidsseg.derivative.freesurfer import check_subjects, values_of
from bidsseg.derivative.given_lesions import NO_T1W, about_given_lesions, find_given_lesions
from bidsseg.derivative.job import Job, check_apart
from bidsseg.derivative.ownership import check_files, check_folder, check_same_scan, check_same_suffix, check_source
from bidsseg.derivative.run_log import Entry
from bidsseg.derivative.sidecar_keys import corrections as corrections_in
from bidsseg.derivative.sidecar_keys import lesion_mask, read_sidecar
from bidsseg.errors import BidssegError, DataError, InputMissing, NothingSelected, UsageError, listed
from bidsseg.execution.cluster_config import CONFIGS, read_config
from bidsseg.execution.machine import check_device
from bidsseg.models.card import FOLDER as SHIPPED
from bidsseg.models.card import Card, find_card
from bidsseg.registration.spaces import Space, find_space
from bidsseg.settings import LESION_FLAGS, Settings

Failure = tuple[Entry, Exception]
"""A failed scan: its entry in the manifest, and the error."""
LEAST_AGE = 2
"""Age in years from which white matter is brighter than grey matter in a T1w, as in adults (Paus et al. 2001,
doi:10.1016/S0361-9230(00)00434-2)."""
OF_ANY_CONTRAST = "--model open reads images of any contrast"
FOLDER_KEPT = " (its folder in the SUBJECTS_DIR remains that of the earlier result)"


@dataclass(frozen=True)
class Agenda:
    """The plan of a run.

    Attributes:
        jobs: one job for each usable scan.
        done: jobs that an earlier run has finished.
        passed_over: scans without an image that the model needs.
        unusable: scans that fail before they are read.
        warnings: warnings for the user before the run begins.
    """

    jobs: Sequence[Job]
    done: frozenset[Job]
    passed_over: Sequence[Entry]
    unusable: Sequence[Failure]
    warnings: list[str]

    @property
    def todo(self) -> list[Job]:
        """Jobs that are not finished."""
        return [job for job in self.jobs if job not in self.done]

    @property
    def total(self) -> int:
        """The number of scans with a job or a failure."""
        return len(self.jobs) + len(self.unusable)


def check_request(settings: Settings) -> Card:
    """Return the model, after checking the output folder and the device."""
    check_folder(settings.output_dir)
    check_source(settings)
    card = find_card(settings.model)
    if settings.modality is not None and not card.reads(settings.modality):
        raise UsageError(
            f"--anat-modality {settings.modality}: the model {card.name} reads {card.suffix} images; {OF_ANY_CONTRAST}"
        )
    if settings.executor == "local":  # the machines of a cluster have their own devices
        check_device(settings.device)
    elif settings.executor in CONFIGS:
        read_config(settings.cluster_config, settings.executor)
    if settings.cluster_config is not None and settings.executor not in CONFIGS:
        raise UsageError(f"--cluster-config is for the jobs of a batch system: give --executor {' or '.join(CONFIGS)}")
    return card


def check_exports(settings: Settings, card: Card) -> list[Space]:
    """Return the standard spaces, after checking that the model has what is asked for in other forms."""
    if settings.freesurfer is not None:
        values_of(card)
    if settings.measures and not card.protocols:
        raise UsageError(f"--measure: the model {card.name} has no label maps to measure in: choose another model")
    spaces = list(dict.fromkeys(find_space(word) for word in settings.output_spaces))
    for one, other in itertools.combinations(spaces, 2):
        if one.template == other.template and one.affine != other.affine:
            raise UsageError(f"--output-spaces: give {one.template} with :affine or without, not both")
    return spaces


def select(settings: Settings, card: Card) -> Selection | None:
    """Return the images of ``settings.images`` or the selected scans of the dataset; None if this shard is empty.

    UsageError if the images lack one that the model needs.
    """
    if settings.images:
        return _given(settings, card)
    participants = _shard(settings)
    if participants == []:
        settings.report.say("this shard is empty: there are fewer participants than shards")
        return None
    return query.select_scans(
        settings.bids_dir,
        participants=participants,
        sessions=settings.sessions or None,
        filters=settings.queries(card.suffix),
        where=settings.where,
        database_dir=settings.database_dir,
        store_index=not settings.dry_run,
    )


def _given(settings: Settings, card: Card) -> Selection:
    """Return the scan of images that are in no dataset. UsageError if the model needs another image."""
    if missing := card.lacks(settings.images):
        raise UsageError(f"the model {card.name} needs a {missing}: give --{missing.lower()} FILE")
    scan = Scan.of_files(settings.images["T1w"], settings.images.get("FLAIR"))
    check_same_scan(Job(scan, card, settings.bids_dir, settings.output_dir), overwrite=settings.overwrite)
    return Selection([scan], [])


def _shard(settings: Settings) -> list[str] | None:
    """Return the labels of the participants of this shard, independent of finished scans; None for all."""
    part, parts = settings.shard
    if parts == 1:
        return list(settings.participants) or None
    return sorted(settings.participants or participant_labels(settings.bids_dir))[part - 1 :: parts]


def plan(settings: Settings, card: Card, selection: Selection, *, spaces: Sequence[Space]) -> Agenda:
    """Return the plan of the run. DataError if no scan can be used; OutputNotWritable for files of other tools."""
    jobs, passed_over, unusable = _jobs(settings, card, selection.scans, spaces=spaces)
    unusable += [_failure(key, InputMissing(reason)) for key, reason in selection.closed.items()]
    if not jobs:
        raise DataError("; ".join(str(error) for _, error in unusable))
    if spaces:
        check_apart(jobs)
    _check_modality(jobs, spaces)
    done = frozenset() if settings.overwrite else frozenset(job for job in jobs if is_finished(job))
    if not (settings.overwrite or settings.images):
        check_same_suffix(jobs)
    check_files(settings.output_dir, jobs, done)
    if settings.freesurfer is not None:
        check_subjects(settings.freesurfer, jobs)
    warnings = [*selection.notes, *(f"{entry.scan} is skipped: {entry.reason}" for entry in passed_over)]
    warnings += _about_modality(card, selection.scans)
    warnings += _about_lesions(settings, card, jobs)
    warnings += _about_corrections(settings, card, jobs, scans=selection.scans)
    found = [(job.scan, job.given) for job in jobs]
    warnings += about_given_lesions(settings.lesions, found, all_selected=_all_selected(settings, card.suffix))
    warnings += [warning for job in jobs if job not in done for warning in _lost_corrections(job)]
    warnings += _lost_outputs(settings, [job for job in jobs if job not in done])
    todo = [job.scan for job in jobs if job not in done]
    warnings += about_ages(settings, card, todo)
    if todo and not (settings.skip_validation or settings.images):
        place = None if settings.dry_run else settings.output_dir
        warnings += [str(issue) for issue in validator.validate(settings.bids_dir, todo, place)]
    return Agenda(jobs, done, passed_over, unusable, warnings)


def _jobs(
    settings: Settings, card: Card, scans: Sequence[Scan], *, spaces: Sequence[Space]
) -> tuple[list[Job], list[Entry], list[Failure]]:
    """Return the jobs, the scans without an image that the model needs, and those with invalid file names."""
    jobs, passed_over, unusable = [], [], []
    for scan in scans:
        if "FLAIR" in card.inputs and scan.flair is None:
            reason = f"the model {card.name} needs a FLAIR: {scan.flair_reason}"
            passed_over.append(Entry(scan.key, "passed over", reason))
        else:
            try:
                jobs.append(_job(settings, card, scan, spaces=spaces))
            except DataError as error:
                unusable.append(_failure(scan.key, error))
    if not jobs and not unusable:
        raise NothingSelected(f"{passed_over[0].scan}: {passed_over[0].reason}; so for all {len(scans)} scans")
    return jobs, passed_over, unusable


def _job(settings: Settings, card: Card, scan: Scan, *, spaces: Sequence[Space]) -> Job:
    """Return the job of a scan. DataError if its file names would be too long, or what is given is ambiguous."""
    folder, given = settings.corrections, find_given_lesions(settings.lesions, scan)
    known = given.file is not None
    job = Job(
        scan,
        card,
        settings.bids_dir,
        settings.output_dir,
        probseg=settings.probseg,
        entropy=settings.entropy,
        spaces=spaces,
        viewer=settings.viewer,
        fast=settings.fast,
        lesions=card.lesion_rule(*settings.lesion_numbers),
        corrections=find_corrections(folder, scan, card, given_lesions=known) if folder is not None else Corrections(),
        given=given,
        filled=settings.filled,
    )
    job.check_names()
    return job


def _check_modality(jobs: Sequence[Job], spaces: Sequence[Space]) -> None:
    """Raise UsageError for images of another contrast than T1w if that of a T1w is needed."""
    bent = next((space.template for space in spaces if not space.affine), None)
    for job in jobs:
        if job.scan.modality == "T1w":
            continue
        name = job.scan.t1w.name
        if bent is not None:
            raise UsageError(f"--output-spaces {bent}: the template is a T1w, and {name} is not: give {bent}:affine")
        if job.given.file is not None or job.filled:
            raise UsageError(f"--lesions, --filled: {NO_T1W.format(name)}: omit these flags")


def _about_modality(card: Card, scans: Sequence[Scan]) -> list[str]:
    """Return a warning if images are, by their names, of a contrast that the model does not read."""
    named = [scan for scan in scans if suffix_of(scan.t1w) in ANATOMICAL]
    others = [scan.t1w.name for scan in named if not card.reads(scan.modality)]
    if not others:
        return []
    return [f"{listed(others, 3)}: {card.name} was trained on {card.suffix} images; {OF_ANY_CONTRAST}"]


def about_ages(settings: Settings, card: Card, scans: Sequence[Scan]) -> list[str]:
    """Return a warning if participants are, by the tables of the dataset, too young for a shipped model."""
    if settings.images or card.folder.parent != SHIPPED:
        return []
    particulars = read_particulars(settings.bids_dir, dict.fromkeys(scan.entities["subject"] for scan in scans))
    ages = {scan.key: particulars.age_years(scan.entities) for scan in scans}
    infants = [f"{key} (age {age:.2g})" for key, age in ages.items() if age is not None and age < LEAST_AGE]
    if not infants:
        return []
    return [
        f"{listed(infants, 3)}: younger than {LEAST_AGE} years: {card.name} is not made for infants, whose tissues have"
        " another contrast, and its results may be wrong without any finding"
    ]


def _about_lesions(settings: Settings, card: Card, jobs: Sequence[Job]) -> list[str]:
    """Return warnings about flags for lesions without an effect."""
    warnings, rule = [], f"{', '.join(LESION_FLAGS[:-1])} and {LESION_FLAGS[-1]}"
    given = listed([job.scan.key for job in jobs if job.given.file is not None], 3)
    if any(number is not None for number in settings.lesion_numbers):
        if card.lesion is None:
            warnings.append(f"{card.name} finds no lesions: {rule} have no effect")
        elif given:
            warnings.append(f"{given}: the lesions are given: {rule} have no effect")
    if settings.filled and card.lesion is None and settings.lesions is None:
        with_masks = "" if settings.images else " without --lesions"
        warnings.append(f"{card.name} finds no lesions: --filled has no effect{with_masks}")
    return warnings


def _about_corrections(settings: Settings, card: Card, jobs: Sequence[Job], *, scans: Sequence[Scan]) -> list[str]:
    """Return warnings about corrections that are not used. UsageError if none is."""
    if settings.corrections is None:
        return []
    found = [(job.scan, job.corrections) for job in jobs]
    other = [scan for scan in scans if scan.key not in {job.scan.key for job in jobs}]
    given = any(job.given.file is not None for job in jobs)
    all_selected = _all_selected(settings, card.suffix)
    search = Search(settings.corrections, card, found, other, all_selected=all_selected, given_lesions=given)
    return search.warnings()


def _all_selected(settings: Settings, suffix: str) -> bool:
    """Return whether the run has all scans of the dataset."""
    some = settings.participants or settings.sessions or settings.filters or settings.where or settings.shard[1] > 1
    return not some and settings.queries(suffix)["t1w"]["suffix"] == "T1w"


def _lost_corrections(job: Job) -> list[str]:
    """Return a warning if a result had corrections or given lesions and is recomputed without them."""
    found = read_sidecar(job.record)
    lost = ", ".join(sorted(corrections_in(found).keys() - job.corrections.files.keys()))
    warnings = [f"{job.scan.key}: recomputed without the correction of {lost} (see --corrections)"] if lost else []
    if lesion_mask(found) and job.given.file is None:
        warnings.append(f"{job.scan.key}: recomputed without the given mask of lesions (see --lesions)")
    return warnings


def _lost_outputs(settings: Settings, jobs: Iterable[Job]) -> list[str]:
    """Return a warning for each flag whose files of an earlier run are removed and not made again."""
    given = {f"--measure {name}" for name in settings.measures}
    given |= set() if settings.freesurfer is None else {"--freesurfer"}
    given |= {"", *(["--filled"] if settings.filled else [])}
    lost: dict[str, list[str]] = {}
    for job in jobs:
        spaces = {f"--output-spaces {space.template}:res-{space.resolution}" for space in job.spaces}
        for flag in dict.fromkeys(each.flag for each in job.outdated() if each.flag not in given | spaces):
            lost.setdefault(flag, []).append(job.scan.key)
    return [
        f"{listed(keys, 3)}: recomputed without {flag}: the files that it made of the earlier result are removed"
        f"{FOLDER_KEPT if flag == '--freesurfer' else ''}; give the flag again to write them"
        for flag, keys in lost.items()
    ]


def _failure(scan: str, error: BidssegError) -> Failure:
    """Return the failure of a scan that was not read."""
    return Entry(scan, "failed", str(error)), error
