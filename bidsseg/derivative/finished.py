"""When a scan is finished, so that a later run skips it."""

from __future__ import annotations

from bidsseg.bids.names import with_extension
from bidsseg.derivative.job import Job
from bidsseg.derivative.sidecar_keys import read_sidecar


def is_finished(job: Job) -> bool:
    """Return whether all outputs of a scan are present and were made by this model from these images.

    The record of the scan, which is written last, must name the same model, images, corrections, mask of lesions and
    pass over the mirror image. So must that of a requested T1w with filled lesions, which all models share.
    """
    filled = [job.output_dir / with_extension(job.paths.filled, ".json")] if job.paths.filled else []
    if not all(job.agrees_with(read_sidecar(record)) for record in (job.record, *filled)):
        return False
    try:
        return all((job.output_dir / path).is_file() for path in job.paths.files)
    except OSError:  # a folder without permission to enter
        return False


def has_page(job: Job) -> bool:
    """Return whether the page contains a finished scan: a run may be killed between the record and the page."""
    try:
        page = job.output_dir / job.paths.report
        return page.stat().st_mtime_ns >= job.record.stat().st_mtime_ns
    except OSError:
        return False
