"""The file of ``--cluster-config``: settings of the jobs of a batch system, with the keys of dask-jobqueue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

from bidsseg.errors import UsageError
from bidsseg.reading import read_toml
from bidsseg.schema import PositiveFloat, PositiveInt, Rule, converted


def is_size(text: str) -> bool:
    """Return whether Dask reads a text as a positive number of bytes."""
    from dask.utils import parse_bytes

    try:
        return parse_bytes(text) > 0
    except ValueError:
        return False


Size = Annotated[str, Rule('a size with its unit, such as "6GB"', is_size)]
Text = Annotated[str, Rule("text that is not empty", bool)]


@dataclass(frozen=True)
class ClusterConfig:
    """Jobs of any batch system. bidsseg uses ``workers`` and ``image`` itself and passes all else to dask-jobqueue.

    For None, dask-jobqueue uses its own configuration files.

    Attributes:
        workers: number of simultaneous jobs.
        image: Singularity image of the workers.
        cores, memory: cores and memory of a job.
        processes: number of workers in a job.
        walltime: time limit of a job, in the format of the batch system.
    """

    workers: PositiveInt = 10
    image: Text | None = None
    cores: PositiveInt | None = None
    memory: Size | None = None
    processes: PositiveInt = 1
    queue: Text | None = None
    walltime: Text | None = None
    job_name: Text | None = None
    job_extra_directives: Sequence[str] | None = None
    job_directives_skip: Sequence[str] | None = None
    job_script_prologue: Sequence[str] = ()
    worker_command: Text | None = None
    worker_extra_args: Sequence[str] = ()
    nanny: bool | None = None
    death_timeout: PositiveFloat | None = None
    python: Text | None = None
    shebang: Text | None = None
    local_directory: Text | None = None
    log_directory: Text | None = None
    shared_temp_directory: Text | None = None
    config_name: Text | None = None
    name: Text | None = None
    interface: Text | None = None
    protocol: Text | None = None
    host: Text | None = None
    dashboard_address: Text | None = None
    scheduler_options: Mapping[str, Any] | None = None
    silence_logs: Text | None = None

    def options(self) -> dict[str, Any]:
        """Return the arguments of the class of dask-jobqueue."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return {key: value for key, value in values.items() if value is not None and key not in ("workers", "image")}


@dataclass(frozen=True)
class SlurmConfig(ClusterConfig):
    """Jobs of SLURM."""

    account: Text | None = None
    job_cpu: PositiveInt | None = None
    job_mem: Text | None = None


@dataclass(frozen=True)
class PBSConfig(ClusterConfig):
    """Jobs of PBS."""

    account: Text | None = None
    resource_spec: Text | None = None


@dataclass(frozen=True)
class SGEConfig(ClusterConfig):
    """Jobs of Grid Engine."""

    project: Text | None = None
    resource_spec: Text | None = None


@dataclass(frozen=True)
class LSFConfig(ClusterConfig):
    """Jobs of LSF.

    Attributes:
        mem: memory of a job (bytes).
    """

    project: Text | None = None
    ncpus: PositiveInt | None = None
    mem: PositiveInt | None = None
    lsf_units: Text | None = None
    use_stdin: bool | None = None


CONFIGS: dict[str, type[ClusterConfig]] = {
    "slurm": SlurmConfig,
    "pbs": PBSConfig,
    "sge": SGEConfig,
    "lsf": LSFConfig,
}
"""Settings of the jobs, by executor."""


def read_config(path: Path | None, executor: str) -> ClusterConfig:
    """Return the settings of the jobs of a batch system, from a TOML file or the defaults.

    Raises:
        UsageError: with file and key, if a key is unknown to the batch system, or if a value has another type or is out
            of range.
    """
    kind = CONFIGS[executor]
    return converted(kind, read_toml(path, UsageError), path, error=UsageError) if path else kind()
