"""The script of docs/cluster.md on a real SLURM: killed jobs, requeued jobs, and the results at the end."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from fake_model import App, make_app
from labelled import RECIPE, make_labelled

ROOT = Path(__file__).parents[2]
HELPERS = ROOT / "tests" / "helpers"
DOCUMENT = (ROOT / "docs" / "cluster.md").read_text()
WORK = """
set -euo pipefail
mkdir -p logs
job=$(sbatch --parsable bidsseg.sbatch)
state() { scontrol show job "${job}_$1" | grep -oP 'JobState=\\K\\w+' | head -n 1; }
until_there() { for _ in $(seq 600); do "$@" > /dev/null 2>&1 && return; sleep 0.1; done; echo "never: $*"; exit 1; }
one_done() { ls "$OUT"/sub-0"$1"*/anat/*_seg-FreeSurfer_*_dseg.json; }
again_1() {
    scontrol update JobId="${job}_1" StartTime=now || true
    scontrol show job "${job}_1" | grep -q "Restarts=1" && [[ $(state 1) =~ RUNNING|COMPLETED ]]
}

until_there one_done 1                # part 1 has done one scan of three and is pre-empted
until_there one_done 2                # part 2 dies in the middle
pkill -9 -f -- "--shard[ ]2/2"        # brackets, lest it kill itself
scontrol requeue "${job}_1"
until_there again_1                   # at once, else it waits two minutes
until_there eval '[[ $(state 2) == FAILED ]]'
ls "$OUT"/sub-0*/anat/*_seg-FreeSurfer_*_dseg.json | wc -l > done_when_part_2_died
until_there eval '[[ $(state 1) == COMPLETED ]]'
again=$(sbatch --parsable --array=2 bidsseg.sbatch)
sbatch --wait --dependency=afterany:"$again" --wrap 'bidsseg "$BIDS" "$OUT" group' -o logs/group.txt
until_there eval '[[ $(squeue --noheader | wc -l) == 0 ]]'
"""


CONTROL = """
set -euo pipefail
until_there() { for _ in $(seq 600); do "$@" > /dev/null 2>&1 && return; sleep 0.1; done; echo "never: $*"; exit 1; }
bidsseg "$BIDS" "$OUT" participant --executor slurm --cluster-config config.toml &
until_there eval 'ls "$OUT"/sub-0*/anat/*_seg-FreeSurfer_*_dseg.json'
victim=$(squeue --noheader --format %i | sort -n | head -n 1)
scancel --signal=KILL --full "$victim"        # a node dies
wait %1
until_there eval '[[ $(squeue --noheader | wc -l) == 0 ]]'
"""
TRAIN = """
set -euo pipefail
mkdir -p logs
job=$(sbatch --parsable train.sbatch)
until_there() { for _ in $(seq 1200); do "$@" > /dev/null 2>&1 && return; sleep 0.1; done; echo "never: $*"; exit 1; }
state() { scontrol show job "$job" | grep -oP 'JobState=\\K\\w+'; }
again() {
    scontrol update JobId="$job" StartTime=now || true
    scontrol show job "$job" | grep -q "Restarts=1" && [[ $(state) =~ RUNNING|COMPLETED ]]
}

until_there grep "step 20" logs/train.txt
scontrol requeue "$job"
until_there again
until_there eval '[[ $(state) == COMPLETED ]]'
"""
CONFIG = f"""
workers = 2
cores = 1
memory = "1600MB"
walltime = "00:05:00"
interface = "lo"
log_directory = "logs"
worker_extra_args = ["--preload", "{HELPERS / "fake_worker.py"}"]
"""

pytestmark = pytest.mark.skipif(
    not (shutil.which("slurmctld") and shutil.which("munged") and os.geteuid() == 0),
    reason="needs root and a SLURM of its own: apt-get install --no-install-recommends slurm-wlm munge",
)


@pytest.fixture
def app(tmp_path: Path, make_bids: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> App:
    return make_app(tmp_path, make_bids(6), monkeypatch)


def run_on_slurm(work: str, app: App, folder: Path) -> None:
    """Run a shell script in a folder, with a SLURM of one node and a command bidsseg with a fake network."""
    command = folder / "bin" / "bidsseg"
    command.parent.mkdir()
    command.write_text(f'#!/bin/bash\nexec {sys.executable} {HELPERS}/fake_model.py "$@" --model {app.card}\n')
    command.chmod(0o755)
    environment: Mapping[str, str] = {
        **os.environ,
        "PATH": f"{command.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": f"{ROOT}:{HELPERS}",
        "BIDS": str(app.bids),
        "OUT": str(app.output),
        "FAKE_MODEL_SECONDS": "1.5",
    }
    start: list[str | Path] = [Path(__file__).with_name("with_slurm.sh"), "bash", "-c", work]
    done = subprocess.run(start, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    logs = "".join(f"\n{path.name}:\n{path.read_text()}" for path in sorted((folder / "logs").glob("*")))
    if done.returncode == 77:
        pytest.skip(f"SLURM does not start here: {done.stdout} {done.stderr}")
    assert done.returncode == 0, done.stdout + done.stderr + logs


def assert_equal_to_one_machine(app: App, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = make_app(folder / "one", app.bids, monkeypatch)
    alone.card = app.card
    assert alone() == 0
    if (app.output / "group.html").is_file():
        assert alone(level="group") == 0
    volatile = re.compile(r"logs/|group\.html")
    made, expected = ({k: v for k, v in a.files("**/*").items() if not volatile.match(k)} for a in (app, alone))
    assert made.keys() == expected.keys()
    assert [name for name in made if made[name] != expected[name]] == []


def test_an_array_of_jobs(app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = next(block for block in re.findall(r"```bash\n(.*?)```", DOCUMENT, re.S) if "--shard" in block)
    given = {"1-100%20": "1-2%20", "--cpus-per-task=4": "--cpus-per-task=1", "--mem=8G": "--mem=1600M", "/100": "/2"}
    for asked, small in given.items():
        assert asked in script
        script = script.replace(asked, small)
    (tmp_path / "bidsseg.sbatch").write_text(script)
    run_on_slurm(WORK, app, tmp_path)
    assert int((tmp_path / "done_when_part_2_died").read_text()) < 6
    runs = [json.loads(path.read_text()) for path in sorted((app.output / "logs").glob("run-*.json"))]
    done_once = [entry["scan"] for run in runs for entry in run["scans"] if entry["outcome"] == "done"]
    skipped = {entry["scan"] for run in runs for entry in run["scans"] if entry["outcome"] == "skipped"}
    assert len(set(done_once)) == len(done_once)
    # A scan finished just before the kill may be missing in the record of that run, but it is not segmented again.
    assert {*done_once, *skipped} == {f"sub-0{number}" for number in range(1, 7)}
    assert len(runs) == 4  # two parts, each of them again
    assert_equal_to_one_machine(app, tmp_path, monkeypatch)


def test_a_training_that_is_preempted(app: App, tmp_path: Path) -> None:
    """The script runs two processes instead of eight, without a GPU."""
    app.bids, labels = make_labelled(tmp_path / "labelled")
    script = next(block for block in re.findall(r"```bash\n(.*?)```", DOCUMENT, re.S) if "torchrun" in block)
    given = {
        "--nodes=2": "--nodes=1", "--gpus-per-node=4": "--mem=1900M", "--nproc-per-node 4": "--nproc-per-node 2",
        "#SBATCH --requeue": "#SBATCH --requeue\n#SBATCH --output=logs/train.txt --open-mode=append",
        "run.py": str(ROOT / "run.py"), "mine.toml": f"{tmp_path / 'mine.toml'} --folds 1 --n-cpus 1",
        'BrainCOLOR="$BIDS/derivatives/manual"': f"FAST={labels}",
    }  # fmt: skip
    for asked, small in given.items():
        assert asked in script
        script = script.replace(asked, small)
    (tmp_path / "train.sbatch").write_text(script)
    (tmp_path / "mine.toml").write_text(RECIPE.replace("steps = 3", "steps = 240\nbatch = 2"))
    run_on_slurm(TRAIN, app, tmp_path)
    log = (tmp_path / "logs" / "train.txt").read_text()
    assert log.count("training scans") == 2 and log.count("step 20,") == 1, log
    assert "step 240, 100%" in log and (app.output / "models" / "tiny" / "card.json").is_file()
    assert not (app.output / "models" / "tiny" / "checkpoint.pt").exists()


def test_jobs_that_are_started_for_the_run(app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.toml").write_text(CONFIG)
    run_on_slurm(CONTROL, app, tmp_path)
    assert set(app.fates) == {f"sub-0{number}" for number in range(1, 7)}
    assert set(app.fates.values()) <= {"done", "skipped"}
    assert_equal_to_one_machine(app, tmp_path, monkeypatch)
