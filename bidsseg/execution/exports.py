"""What is made of a finished scan for other programs and tables, from the files in the output folder."""

from __future__ import annotations

from bidsseg.derivative import freesurfer
from bidsseg.derivative.job import Job
from bidsseg.errors import BidssegError, IOFailure, OutputNotWritable
from bidsseg.settings import Settings


def export(job: Job, settings: Settings) -> None:
    """Write what the settings ask for and what is not there yet; what fails for one scan is a warning.

    Raises:
        OutputNotWritable, IOFailure: files cannot be written, which concerns every scan.
    """
    try:
        if settings.freesurfer is not None and not freesurfer.is_exported(job, settings.freesurfer):
            settings.report.stage(job.scan.key, "FreeSurfer")
            freesurfer.export(job, settings.freesurfer)
    except (OutputNotWritable, IOFailure):
        raise
    except BidssegError as error:
        settings.report.warn(f"{job.scan.key}: --freesurfer: {error}")
