"""The level participant on a Dask cluster of real processes: results, failures, and workers that die."""

import asyncio
import math
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dask
import distributed
import numpy as np
import phantoms
import psutil
import pytest
from dask_jobqueue.slurm import SLURMJob
from fake_model import App, make_app, save_card
from nifti import load_nifti
from recording_console import RecordingConsole

from bidsseg import __version__
from bidsseg.errors import InputMissing
from bidsseg.execution import cluster as spreading
from bidsseg.execution.agenda import check_request, plan, select
from bidsseg.execution.cluster_config import SlurmConfig, read_config
from bidsseg.execution.machine import Machine, Workers, cpu_flags
from bidsseg.execution.pipeline import Outcome
from bidsseg.models.card import find_card
from bidsseg.segmentation import memory_needed
from bidsseg.settings import Report, Settings

ROOT = Path(__file__).parents[2]
HELPERS = ROOT / "tests" / "helpers"


@pytest.fixture
def app(tmp_path: Path, make_bids: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> App:
    return make_app(tmp_path, make_bids(6), monkeypatch)


@pytest.fixture
def two_processes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine with memory for two processes, which start with the fake network."""
    monkeypatch.setenv("PYTHONPATH", f"{HELPERS}:{ROOT}")
    monkeypatch.setenv("FAKE_MODEL_SECONDS", "0.3")
    monkeypatch.setenv("FAKE_MODEL_MEMORY_MB", "32000")
    with dask.config.set({"distributed.worker.preload": [str(HELPERS / "fake_worker.py")]}):
        yield


@pytest.fixture
def batch_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Create a command sbatch, and perhaps scancel, that runs a script; return the words of a run that uses them."""
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setattr(spreading, "LOOK_EVERY_S", 0.5)
    (tmp_path / "bin").mkdir()
    (tmp_path / "cluster.toml").write_text('cores = 1\nmemory = "2GB"\ninterface = "lo"\n')

    def make(script: str, cancel: str | None = "true") -> list[str]:
        for name, content in (("sbatch", script), ("scancel", cancel)):
            if content is not None:
                (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{content}\n")
                (tmp_path / "bin" / name).chmod(0o755)
        return ["--executor", "slurm", "--cluster-config", str(tmp_path / "cluster.toml")]

    return make


def results(app: App) -> dict[str, bytes]:
    return {name: content for name, content in app.files("**/*").items() if not name.startswith("logs/")}


@pytest.fixture
def asked_of_processes(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the processes of a run on this machine are given: settings, environment, threads and interrupts."""
    found: list[Any] = []
    start = spreading.on_this_machine

    @contextmanager
    def ask(settings: Settings, workers: Workers) -> Iterator[tuple[distributed.Client, Settings]]:
        with start(settings, workers) as (client, asked):
            arenas = client.run(lambda: os.environ["MALLOC_ARENA_MAX"])
            interrupts = client.run(lambda: signal.getsignal(signal.SIGINT))
            found.extend([asked, arenas, client.nthreads(), interrupts])
            yield client, asked

    monkeypatch.setattr(spreading, "on_this_machine", ask)
    return found


@pytest.mark.usefixtures("two_processes")
def test_processes_of_one_machine(
    tmp_path: Path,
    make_bids: Callable[..., Path],
    asked_of_processes: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Two simultaneous scans share a page; a warning of both processes is printed once."""
    app = make_app(tmp_path, make_bids(3, runs=2), monkeypatch)
    monkeypatch.setenv("FAKE_MODEL_PRECISION", "bf16")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    next((app.bids / "sub-03" / "anat").glob("sub-03_run-*2_T1w.nii.gz")).write_bytes(b"nothing")
    assert app("--n-cpus", "4", "--omp-nthreads", "2") == 1
    assert sorted(app.fates.values()) == ["done"] * 5 + ["failed"]
    error = capsys.readouterr().err
    assert "[6/6]" in error and error.count("emulation is") == (1 if cpu_flags() else 0)
    asked, arenas, threads, interrupts = asked_of_processes
    assert (asked.n_cpus, asked.memory_mb) == (2, 16_000)
    assert set(arenas.values()) == {"1"} and len(arenas) == 2
    assert set(threads.values()) == {spreading.TASKS}
    assert set(interrupts.values()) == {signal.SIG_IGN}
    spread, app.output = results(app), tmp_path / "alone"
    assert app() == 1
    assert results(app) == spread


class Task:
    """A task that is done, of a client whose tasks run in this process."""

    def __init__(self, function: Callable[..., Outcome], *given: Any) -> None:
        self.outcome = function(*given)

    def result(self) -> Outcome:
        return self.outcome


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the tasks of all processes of this machine in this one, which has memory for two."""

    @contextmanager
    def start(settings: Settings, workers: Workers) -> Iterator[tuple[Any, Settings]]:
        client = SimpleNamespace(submit=lambda *given, pure: Task(*given), dashboard_link="")
        yield client, replace(settings, report=Report(), memory_mb=workers.memory_mb)

    monkeypatch.setenv("FAKE_MODEL_MEMORY_MB", "5000")
    monkeypatch.setattr(spreading, "on_this_machine", start)
    monkeypatch.setattr(spreading, "PREPARED", {})
    monkeypatch.setattr("dask.distributed.as_completed", list)
    monkeypatch.setattr("dask.distributed.get_worker", lambda: SimpleNamespace(name=0))


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize("words", [[], ["--mem", "5000", "--stop-on-first-crash"]])
def test_a_scan_too_large_for_a_process_is_segmented_alone(
    words: list[str], app: App, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(memory_needed, "USUAL_VOXELS", math.prod(phantoms.SHAPE))
    monkeypatch.setattr(memory_needed, "VOXEL_BYTES", 15_000)
    path = app.bids / "sub-02/anat/sub-02_T1w.nii.gz"
    small = load_nifti(path)
    phantoms.save(path, np.pad(small.get_fdata(), [(0, 0), (0, 0), (0, small.shape[2])]), small.affine)
    assert app("--n-cpus", "4", "--omp-nthreads", "1", *words) == 0
    assert set(app.fates.values()) == {"done"} and app.fake.segmented == 6
    assert not list((app.output / "logs").glob("crash*"))
    assert "more memory than a process has, now one after another: 1" in capsys.readouterr().out


@pytest.mark.usefixtures("in_this_process")
def test_scans_wait_if_other_programs_use_the_memory_of_a_process(
    app: App, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare = spreading.prepared

    def with_little_left(settings: Settings, sha256: str) -> tuple[Machine, Any]:
        machine, model = prepare(settings, sha256)
        return replace(machine, memory_mb=900), model

    monkeypatch.setattr(spreading, "prepared", with_little_left)
    assert app("--n-cpus", "4", "--omp-nthreads", "1") == 0
    assert set(app.fates.values()) == {"done"}
    assert "now one after another: 6" in capsys.readouterr().out


def test_what_a_worker_that_died_did_not_export_is_exported(app: App, tmp_path: Path) -> None:
    assert app("--participant-label", "01") == 0
    settings = Settings(app.bids, app.output, model=str(app.card), freesurfer=tmp_path / "subjects")
    card = check_request(settings)
    selection = select(settings, card)
    assert selection is not None
    (job, *_) = plan(settings, card, selection, spaces=[]).jobs
    outcome = spreading.segment(settings, job, __version__)
    assert (outcome.entry.outcome, outcome.error) == ("skipped", None)
    assert (tmp_path / "subjects/sub-01/mri/aseg.mgz").is_file()


@pytest.mark.parametrize("whom", ["group", "process"])
def test_processes_of_one_machine_end_with_their_run(whom: str, app: App) -> None:
    """Ctrl-C stops all processes at once, a scheduler only the first one."""
    fake = {"FAKE_MODEL_SECONDS": "2", "FAKE_MODEL_MEMORY_MB": "32000"}
    preload = {"DASK_DISTRIBUTED__WORKER__PRELOAD": str(HELPERS / "fake_worker.py")}
    run = app.process("--skip-bids-validation", "--n-cpus", "2", "--omp-nthreads", "1", **fake, **preload)
    while not app.files("sub-*/anat/*_dseg.json"):
        assert run.poll() is None
        time.sleep(0.05)
    children = psutil.Process(run.pid).children(recursive=True)
    if whom == "group":
        os.killpg(run.pid, signal.SIGINT)
    else:
        run.terminate()
    _, errors = run.communicate(timeout=300)
    assert run.returncode == 130
    assert errors.splitlines()[-1] == "bidsseg: interrupted; repeat the command to resume"
    assert "Traceback" not in errors
    assert len(children) >= 2 and not psutil.wait_procs(children, timeout=300)[1]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--executor", "dask"], 64, "give the address of its scheduler with --dask-scheduler"),
        (["--executor", "slurm", "--dask-scheduler", "tcp://node1:8786"], 64, "leave --executor out, or give dask"),
        (["--cluster-config", "{tmp}/cluster.toml"], 64, "give --executor slurm or pbs or sge or lsf"),
        (["--executor", "slurm", "--cluster-config", "/nowhere.toml"], 66, "/nowhere.toml"),
        (["--executor", "slurm", "--cluster-config", "{tmp}/wrong.toml"], 64, "is not TOML"),
        (["--executor", "slurm", "--cluster-config", "{tmp}/strange.toml"], 64, "strange.toml: unknown key 'nonsense'"),
        (["--executor", "slurm", "--cluster-config", "{tmp}/empty.toml"], 64, "cores"),
    ],
)
def test_mistakes_are_reported(
    words: list[str],
    code: int,
    message: str,
    app: App,
    batch_system: Callable[..., list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    batch_system("exit 1")
    (tmp_path / "wrong.toml").write_text("cores = ")
    (tmp_path / "strange.toml").write_text('cores = 1\nmemory = "1GB"\nnonsense = 3\n')
    (tmp_path / "empty.toml").write_text("")
    assert app(*(word.format(tmp=tmp_path) for word in words)) == code
    error = capsys.readouterr().err
    assert message in error
    assert "internal error" not in error


def test_dask_is_asked_for_where_it_is_missing(
    app: App, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "dask_jobqueue", None)
    assert app("--executor", "slurm") == 64
    assert 'pip install "bidsseg[cluster]"' in capsys.readouterr().err


def test_a_configuration_is_read(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text('image = "/images/bidsseg.sif"\nworkers = 3\ncores = 2\nmemory = "4GB"\n')
    asked = read_config(config, "slurm")
    assert (asked.image, asked.workers) == ("/images/bidsseg.sif", 3)
    assert asked.options() == {
        "cores": 2, "memory": "4GB", "processes": 1, "job_script_prologue": (), "worker_extra_args": (),
    }  # fmt: skip
    assert read_config(None, "lsf").workers == 10
    with pytest.raises(InputMissing):
        read_config(tmp_path / "none.toml", "slurm")


@pytest.mark.parametrize(
    ("asked", "name", "devices", "device"),
    [
        ("auto", 0, 2, "cuda:0"),
        ("auto", 3, 2, "cuda:1"),
        ("auto", 3, 1, "auto"),
        ("auto", "tcp://node1:1", 2, "auto"),
        ("auto", "SLURMCluster-4-0", 2, "cuda:0"),
        ("auto", "SLURMCluster-4-1", 2, "cuda:1"),
        ("cpu", 1, 2, "cpu"),
        ("cuda:0", 1, 2, "cuda:0"),
    ],
)
def test_each_process_has_a_device(
    asked: str, name: object, devices: int, device: str, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dask.distributed.get_worker", lambda: SimpleNamespace(name=name))
    monkeypatch.setattr(spreading, "cuda_count", lambda: devices)
    monkeypatch.setattr(spreading, "PREPARED", {})
    monkeypatch.setattr(
        "bidsseg.execution.machine.choose_machine", lambda settings: Machine(settings.device, "fp32", 1, 1000)
    )
    settings = Settings(app.bids, app.output, device=asked, model=str(app.card))
    assert spreading.prepared(settings, "0")[0].device == device


def test_a_model_is_loaded_once_and_again_when_it_changes(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dask.distributed.get_worker", lambda: SimpleNamespace(name="0"))
    monkeypatch.setattr(spreading, "PREPARED", {})
    settings = Settings(app.bids, app.output, model=str(app.card))
    first = spreading.prepared(settings, "0")
    assert spreading.prepared(settings, "0") is first
    assert app.fake.loaded == 1
    assert spreading.prepared(settings, "1") is not first
    assert len(spreading.PREPARED) == 1


def test_jobs_run_in_an_image(app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "templates").mkdir()
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(tmp_path / "templates"))
    settings = Settings(app.bids, app.output)
    mounts = f"-B {app.bids}:{app.bids}:ro -B {app.output}:{app.output}"
    assert spreading.in_image("/images/b.sif", settings) == f"singularity exec -e --nv {mounts} /images/b.sif python3"
    locator = save_card(tmp_path / "locator", locator="wholebrain")
    own = save_card(tmp_path / "my model", locator=str(locator))
    more = replace(
        settings,
        model=str(own),
        work_dir=Path("/scratch"),
        output_spaces=["MNI"],
        freesurfer=Path("/subjects"),
        measures={"T1map": Path("/maps"), "T2w": "T2w"},
    )
    words = shlex.split(spreading.in_image("/images/b.sif", more))
    read = [str(own), str(locator), "/maps", str(tmp_path / "templates")]
    found = {f"{app.bids}:{app.bids}:ro", *(f"{folder}:{folder}:ro" for folder in read)}
    found |= {f"{folder}:{folder}" for folder in (app.output, "/scratch", "/subjects")}
    assert {value for flag, value in pairwise(words) if flag == "-B"} == found
    shipped = find_card("wholebrain").folder
    assert f"{shipped}:{shipped}:ro" in spreading.in_image("/images/b.sif", replace(settings, model=str(shipped)))


@pytest.mark.parametrize("given", ["1,3", "", None])
def test_an_image_sees_the_gpus_of_its_job(given: str | None, app: App, tmp_path: Path) -> None:
    """With -e, an image gets only the variables that begin with the name of the program that runs it."""
    settings = Settings(app.bids, app.output, work_dir=tmp_path / "local disk" / "work")
    lines = spreading.prologue(SlurmConfig(image="/images/b.sif"), settings)
    environment = {"PATH": os.environ["PATH"], **({} if given is None else {"CUDA_VISIBLE_DEVICES": given})}
    script = "set -eu\n" + "\n".join([*lines, "env"])
    words = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=True).stdout
    found = dict(line.split("=", 1) for line in words.splitlines())
    for program in ("SINGULARITY", "APPTAINER"):
        assert found.get(f"{program}ENV_CUDA_VISIBLE_DEVICES") == given
    assert found["MALLOC_ARENA_MAX"] == "1"
    assert settings.work_dir is not None and settings.work_dir.is_dir()
    assert len(list(spreading.prologue(SlurmConfig(), settings))) == 1


def test_a_batch_system_that_takes_no_job_ends_the_run(
    app: App, batch_system: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert app(*batch_system("echo 'Invalid account' >&2; exit 1")) == 75
    error = capsys.readouterr().err
    assert "slurm starts no job" in error and "Invalid account" in error
    assert "Traceback" not in error


def test_the_settings_of_the_site_for_jobs_count(
    app: App, tmp_path: Path, batch_system: Callable[..., list[str]]
) -> None:
    """Those in the files of dask-jobqueue, such as /etc/dask/jobqueue.yaml."""
    site = {"job-script-prologue": ["module load singularity"], "worker-extra-args": ["--lifetime", "55m"]}
    words = batch_system(f'cp "$1" {tmp_path / "job.sh"}; echo full >&2; exit 1')
    with dask.config.set({f"jobqueue.slurm.{key}": value for key, value in site.items()}):
        assert app(*words) == 75
        script = (tmp_path / "job.sh").read_text()
        assert "module load singularity\nexport MALLOC_ARENA_MAX=1\n" in script
        assert "--lifetime 55m --nthreads 2" in script
        with (tmp_path / "cluster.toml").open("a") as config:
            config.write('job_script_prologue = ["module load apptainer"]\n')
        assert app(*words) == 75
    script = (tmp_path / "job.sh").read_text()
    assert "module load apptainer" in script and "singularity" not in script


@pytest.fixture
def fake_jobs(tmp_path: Path, batch_system: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the workers of the batch system the fake network, and return the path for the job script of sbatch."""
    monkeypatch.setenv("FAKE_MODEL_SECONDS", "0")
    with (tmp_path / "cluster.toml").open("a") as config:
        config.write(f'worker_extra_args = ["--preload", "{HELPERS / "fake_worker.py"}"]\n')
        config.write(f'job_script_prologue = ["export PYTHONPATH={HELPERS}:{ROOT}"]\n')
    return tmp_path / "job.sh"


def sbatch(job: Path, wait_s: int) -> str:
    """Return a substitute for sbatch that starts a job after a while; the script is its only argument."""
    return f'cp "$1" {job}; (sleep {wait_s}; exec bash {job}) > /dev/null 2>&1 & echo "Submitted batch job 7"'


def test_who_waits_for_workers_is_told(
    app: App, batch_system: Callable[..., list[str]], fake_jobs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app(*batch_system(sbatch(fake_jobs, 2)), "--participant-label", "01") == 0
    error = capsys.readouterr().err
    assert "no worker has started" in error and "cancelled" not in error
    script = fake_jobs.read_text()
    assert script.rindex("--memory-limit 0") > script.rindex("--memory-limit 1.86GiB")


def test_a_job_that_cannot_be_cancelled_in_time_is_a_warning(
    app: App,
    batch_system: Callable[..., list[str]],
    fake_jobs: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(spreading, "CANCEL_S", 1.0)
    assert app(*batch_system(sbatch(fake_jobs, 0), "sleep 60"), "--participant-label", "01") == 0
    error = capsys.readouterr().err
    assert "internal error" not in error and "Traceback" not in error
    assert "slurm: jobs of this run could not be cancelled (scancel: TimeoutError)" in error
    assert app.fates == {"sub-01": "done"}


@pytest.mark.parametrize(
    ("command", "reasons"),
    [
        ("scancel-of-another-machine", ["scancel-of-another-machine: "]),
        ("scancel", []),  # the job may have ended by itself
    ],
)
def test_why_a_job_was_not_cancelled(command: str, reasons: list[str], batch_system: Callable[..., list[str]]) -> None:
    batch_system("", "echo 'Invalid job id' >&2; exit 1")
    job = spreading.recorded(SLURMJob, submissions := spreading.Submissions())
    asyncio.run(job._close_job("7", command))  # type: ignore[attr-defined]
    assert [reason[: len(command) + 2] for reason in submissions.left] == reasons


def test_a_cluster_that_cannot_be_closed_is_a_warning(tmp_path: Path) -> None:
    class Broken:
        def __enter__(self) -> None: ...

        def __exit__(self, *_: object) -> None:
            raise OSError("the scheduler\nis gone")

    settings = Settings(tmp_path / "bids", tmp_path / "out", executor="slurm", report=(console := RecordingConsole()))
    with spreading.cancelled_at_the_end(Broken(), settings, spreading.Submissions()):
        pass
    (warning,) = console.warnings
    assert "could not be cancelled (the scheduler is gone)" in warning
    with (
        pytest.raises(InputMissing),
        spreading.cancelled_at_the_end(Broken(), settings, spreading.Submissions()),
    ):
        raise InputMissing("what went wrong first")


def test_jobs_are_sent_from_where_that_can_be_done(
    app: App,
    batch_system: Callable[..., list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = batch_system("")
    monkeypatch.setattr("dask_jobqueue.slurm.SLURMJob.submit_command", "sbatch-of-another-machine")
    assert app(*words) == 64
    assert "there is no command sbatch-of-another-machine here" in capsys.readouterr().err


# -- a cluster of the user ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def workers() -> Iterator[distributed.LocalCluster]:
    """A cluster of two processes, each with one scan at a time.

    Its tests come last, since waiting workers use the processor too.
    """
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PYTHONPATH", f"{HELPERS}:{ROOT}")
        environment.setenv("FAKE_MODEL_SECONDS", "0.3")
        preload = str(HELPERS / "fake_worker.py")
        cluster = distributed.LocalCluster(
            n_workers=2, threads_per_worker=2, processes=True, dashboard_address=None, preload=preload
        )
    with cluster:
        yield cluster


def test_results_are_those_of_one_machine(app: App, workers: distributed.LocalCluster, tmp_path: Path) -> None:
    assert app("--dask-scheduler", workers.scheduler_address) == 0
    assert app.fates == dict.fromkeys((f"sub-0{number}" for number in range(1, 7)), "done")
    assert app.manifest["machine"]["device"] == "cpu"
    assert all(scan["seconds"].keys() == {"read", "segment", "write"} for scan in app.manifest["scans"])
    spread, app.output = results(app), tmp_path / "alone"
    assert app() == 0
    assert results(app) == spread
    assert app("--executor", "dask", "--dask-scheduler", workers.scheduler_address) == 0
    assert set(app.fates.values()) == {"skipped"}


def test_a_bad_scan_stops_no_other(
    app: App, workers: distributed.LocalCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    (app.bids / "sub-03" / "anat" / "sub-03_T1w.nii.gz").write_bytes(b"nothing")
    assert app("--dask-scheduler", workers.scheduler_address) == 1
    assert app.fates == {f"sub-0{number}": "failed" if number == 3 else "done" for number in range(1, 7)}
    (failed,) = [scan for scan in app.manifest["scans"] if scan["outcome"] == "failed"]
    assert "is text" in failed["reason"]
    assert (app.output / failed["crash_file"]).is_file()
    assert "sub-03 failed: " in capsys.readouterr().err


def test_an_output_that_cannot_be_written_ends_the_run(
    app: App, workers: distributed.LocalCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    blocked = app.output / "sub-02"
    app.output.mkdir()
    blocked.write_text("a file where a folder should be")
    assert app("--dask-scheduler", workers.scheduler_address) == 73
    assert "sub-02" in capsys.readouterr().err


def test_workers_in_other_folders_write_to_the_output(
    app: App, workers: distributed.LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Paths are relative to the folder of the first process."""
    monkeypatch.chdir(app.bids.parent)
    app.bids, whole = Path(app.bids.name), app.output
    app.output = Path(os.path.relpath(whole))
    assert app("--dask-scheduler", workers.scheduler_address, "--participant-label", "01") == 0
    assert list(whole.glob("sub-01/anat/*_dseg.nii.gz"))


def test_the_scans_of_a_worker_that_dies_go_to_another(app: App, workers: distributed.LocalCluster) -> None:
    with distributed.Client(workers) as client:
        victim, *_ = client.run(os.getpid).values()

        def kill_in_the_middle() -> None:
            while not any(client.processing().values()):
                time.sleep(0.02)
            time.sleep(0.2)
            os.kill(victim, signal.SIGKILL)

        killer = threading.Thread(target=kill_in_the_middle)
        killer.start()
        assert app("--dask-scheduler", workers.scheduler_address) == 0
        killer.join()
        assert victim not in client.run(os.getpid).values()
    assert set(app.fates.values()) <= {"done", "skipped"}
    assert len(app.files("sub-*/anat/*_seg-FreeSurfer_*_dseg.json")) == 6
