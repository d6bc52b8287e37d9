"""Closed, cut or full output streams do not stop a scan and do not look like an internal error."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from fake_model import App, make_app
from phantoms import make_bids

ROOT = Path(__file__).parents[2]
HELPERS = ROOT / "tests" / "helpers"
FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full")


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> App:
    """An app that has processed its dataset with open streams; no test changes its files."""
    folder = tmp_path_factory.mktemp("straight")
    with pytest.MonkeyPatch.context() as monkeypatch:
        app = make_app(folder, make_bids(folder / "bids"), monkeypatch)
        assert app("--skip-bids-validation") == 0
    return app


@pytest.fixture
def app(straight: App, tmp_path: Path) -> App:
    """An app for the same dataset, whose output folder is empty."""
    return replace(straight, output=tmp_path / "out")


def shell(line: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a shell line in which ``"$@"`` is the command line with the words."""
    command = ["bash", "-c", f"set -o pipefail; {line}", "bash", sys.executable, *words]
    path = f"{HELPERS}:{ROOT}"
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def words(app: App, *more: str) -> list[str]:
    place = [str(HELPERS / "fake_model.py"), str(app.bids), str(app.output), "participant", "--model", str(app.card)]
    return [*place, "--skip-bids-validation", "--n-cpus", "1", *more]


@pytest.mark.parametrize("flag", ["--list-models", "--help", "--version", "--bids-exec-spec"])
def test_who_reads_along_may_go(flag: str, tmp_path: Path) -> None:
    done = shell('"$@" | true', str(ROOT / "run.py"), flag)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_dry_run_of_which_only_the_beginning_is_read(app: App) -> None:
    done = shell('"$@" | head -n 1', *words(app, "--dry-run"))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "model wholebrain: Thresholds\n"


@pytest.mark.parametrize(
    "line",
    [
        '"$@" >&-',
        '"$@" 2>&-',
        '"$@" <&- >&- 2>&-',
        pytest.param('"$@" >/dev/full', marks=needs_full),
        pytest.param('"$@" 2>/dev/full', marks=needs_full),
        pytest.param('"$@" >/dev/full 2>&1', marks=needs_full),
        '"$@" 2>&1 | true',
    ],
)
def test_no_scan_is_lost_by_a_stream(line: str, app: App, straight: App) -> None:
    done = shell(line, *words(app))
    assert done.returncode == 0, done.stderr
    assert app.fates == {"sub-01": "done", "sub-02": "done"}
    assert "Exception" not in done.stderr and "internal error" not in done.stderr
    assert app.files() == straight.files(), "what is written to a closed stream must not go into a file"
