"""What is made of a finished scan for other programs and tables, from the files in the output folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bidsseg.bids.outputs import aseg_path, measure_path
from bidsseg.derivative import freesurfer
from bidsseg.derivative.job import Job
from bidsseg.derivative.measures import measure
from bidsseg.errors import BidssegError, IOFailure, OutputNotWritable
from bidsseg.settings import Settings


def export(job: Job, settings: Settings) -> None:
    """Write what the settings ask for and what is not there yet; what fails for one scan is a warning.

    Raises:
        OutputNotWritable, IOFailure: files cannot be written, which concerns every scan.
    """
    subjects_dir = settings.freesurfer
    if subjects_dir is not None and not freesurfer.is_exported(job, subjects_dir):
        with _warning(job, settings, "freesurfer"):
            freesurfer.export(job, subjects_dir)
    for name, where in settings.measures.items():
        with _warning(job, settings, f"measure {name}"):
            measure(job, name, where)


def planned_exports(job: Job, settings: Settings) -> list[Path]:
    """Return the folder and the files that `export` writes of a scan whose measured images exist, absolute."""
    found = []
    if settings.freesurfer is not None:
        found += [settings.freesurfer / job.scan.key, job.output_dir / aseg_path(job.scan)]
    for name in settings.measures:
        paths = [measure_path(job.scan, job.card.name, protocol, measure=name) for protocol in job.paths.dseg]
        found += [job.output_dir / path for path in paths]
    return found


@contextmanager
def _warning(job: Job, settings: Settings, flag: str) -> Iterator[None]:
    """Report what is done, and turn the error of a scan into a warning."""
    settings.report.stage(job.scan.key, flag)
    try:
        yield
    except (OutputNotWritable, IOFailure):
        raise
    except BidssegError as error:
        settings.report.warn(f"{job.scan.key}: --{flag}: {error}")
