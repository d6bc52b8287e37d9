"""The command line: arguments, messages and start-up time."""

import gc
import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest
from fake_model import save_card

from bidsseg import __version__, arguments
from bidsseg.app import cli
from bidsseg.app.cli import main
from bidsseg.app.parser import dataset_parser
from bidsseg.app.terminal import Terminal
from bidsseg.errors import BidssegError, UsageError
from bidsseg.settings import Settings

ROOT = Path(__file__).parents[2]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Settings]]:
    """The arguments with which the levels are called; no level runs."""
    made: list[tuple[str, Settings]] = []
    for level in ("participant", "longitudinal", "group", "evaluate", "train"):
        module = ModuleType(level)
        setattr(module, "check_labels", lambda settings: None)  # noqa: B010
        setattr(module, f"{level}_level", lambda settings, level=level: made.append((level, settings)))
        monkeypatch.setitem(sys.modules, f"bidsseg.levels.{level}", module)
    return made


@pytest.fixture
def bids(tmp_path: Path) -> Path:
    (tmp_path / "bids").mkdir()
    return tmp_path / "bids"


def one(calls: list[tuple[str, Settings]]) -> Settings:
    """Return the settings of the only call."""
    assert len(calls) == 1
    return calls[0][1]


# -- quick answers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        ([], 64),
        (["--nonsense"], 64),
        ([".", "out"], 64),
        ([".", "/nowhere/out", "preprocess"], 17),
        ([".", "/nowhere/out", "participant", "--precision", "fp8"], 64),
        ([".", ".", "participant"], 64),
        (["/nowhere/bids", "/nowhere/out", "participant"], 66),
    ],
)
def test_help_and_version_need_no_heavy_imports(words: list[str], code: int) -> None:
    heavy = "{'torch', 'numpy', 'pandas', 'bids', 'nibabel', 'scipy', 'matplotlib', 'tqdm', 'jinja2'}"
    script = (
        "import sys\nfrom bidsseg.app.cli import main\n"
        f"try:\n    code = main({words!r})\nexcept SystemExit as stop:\n    code = stop.code or 0\n"
        f"print('heavy:', sorted({heavy} & set(sys.modules)))\nsys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == code, done.stderr
    assert done.stdout.endswith("heavy: []\n")
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == (1 if code else 0)


def test_run_py_works_from_any_folder(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, ROOT / "run.py", "--version"], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"bidsseg {__version__}\n")
    assert (ROOT / "run.py").stat().st_mode & 0o111


def test_help_lists_every_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert not stop.value.code
    text = capsys.readouterr().out
    for code in (0, 1, 16, 17, 18, 64, 65, 66, 73, 74):
        assert re.search(rf"(^|\s){code}  ", text), code


def test_list_models(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    save_card(tmp_path / "a")
    save_card(tmp_path / "b", name="lesions", inputs=("T1w", "FLAIR"), heads=("lesion",), title="Lesions")
    monkeypatch.setattr("bidsseg.models.card.FOLDER", tmp_path)
    assert main(["--list-models"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == "wholebrain: Thresholds; needs T1w, predicts brain, BrainCOLOR, FAST, FreeSurfer; unknown"
    assert second == "lesions: Lesions; needs T1w + FLAIR, predicts lesion; unknown"
    assert main(["--list-models", "--json"]) == 0
    cards = json.loads(capsys.readouterr().out)
    assert [(card["name"], card["inputs"]) for card in cards] == [
        ("wholebrain", ["T1w"]),
        ("lesions", ["T1w", "FLAIR"]),
    ]
    assert main(["--json"]) == 64
    assert "--json requires --list-models" in capsys.readouterr().err


# -- flags -------------------------------------------------------------------------------------------------------------


VALUES = {
    "--participant-label": ["01", "02"],
    "--subject-label": ["01", "02"],
    "--session-label": ["1"],
    "--where": ["qc=pass"],
    "--shard": ["2/3"],
    "--bids-filter-file": ["{tmp}/filters.json"],
    "--anat-modality": ["UNIT1"],
    "--bids-database-dir": ["{tmp}/index"],
    "--work-dir": ["{tmp}/work"],
    "--model": ["other"],
    "--corrections": ["{tmp}"],
    "--lesions": ["{tmp}"],
    "--output-spaces": ["MNI152NLin2009cAsym:res-1", "OASIS30ANTs"],
    "--freesurfer": ["{tmp}/subjects"],
    "--measure": ["FLAIR", "T1map={tmp}"],
    "--runs": ["best"],
    "--controls": ["group=control", "qc!=bad"],
    "--covariates": ["age", "sex", "--controls", "group=control"],
    "--device": ["cuda:1"],
    "--precision": ["fp32"],
    "--n-cpus": ["3"],
    "--nprocs": ["3"],
    "--nthreads": ["3"],
    "--omp-nthreads": ["3"],
    "--mem": ["4G"],
    "--mem-mb": ["4000"],
    "--mem-gb": ["4"],
    "--lesion-threshold": ["0.6"],
    "--min-lesion-volume": ["5"],
    "--min-lesion-peak": ["0.9"],
    "--executor": ["slurm"],
    "--dask-scheduler": ["tcp://node1:8786"],
    "--cluster-config": ["{tmp}/cluster.toml"],
    "--recipe": ["segnet"],
    "--labels": ["FAST={tmp}"],
    "--against": ["{tmp}"],
    "--mask": ["reference"],
    "--derivatives": ["{tmp}"],
    "--also": ["{tmp}"],
    "--init": ["wholebrain"],
    "--time-budget": ["1.5"],
    "--cross-validate": ["4"],
    "--folds": ["3"],
    "--fold": ["1"],
    "--hold-out": ["01", "both*", "sub-1?[0-3]"],
    "--seed": ["4"],
}


def long_flags() -> list[str]:
    flags = [flag for action in dataset_parser()._actions for flag in action.option_strings if flag.startswith("--")]
    return sorted(set(flags) - {"--help", "--version", "--list-models", "--json", "--bids-exec-spec"})


@pytest.mark.parametrize("flag", long_flags())
def test_every_flag_in_both_spellings(
    flag: str, bids: Path, tmp_path: Path, calls: list[tuple[str, Settings]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "prepare_environment", lambda settings: None)
    (tmp_path / "filters.json").write_text('{"t1w": {"run": 1}}')
    values = [value.format(tmp=tmp_path) for value in VALUES.get(flag, [])]
    place = [str(bids), str(tmp_path / "out"), "participant"]
    underscores = "--" + flag[2:].replace("-", "_")
    for words in ([*place, flag, *values], [*place, underscores, *values], [underscores, *values, "--", *place]):
        assert main(words) == 0
    spelled = [{**vars(settings), "command": (), "report": None} for _, settings in calls]
    assert len(spelled) == 3
    assert spelled[0] == spelled[1] == spelled[2]
    plain = Settings(bids, tmp_path / "out")
    if flag not in ("--derivatives", "--verbose"):
        assert spelled[0] != {**vars(plain), "report": None}


def test_flag_with_equals_sign_keeps_underscores_of_its_value(
    bids: Path, tmp_path: Path, calls: list[tuple[str, Settings]]
) -> None:
    assert main([str(bids), str(tmp_path / "out"), "participant", "--model=/models/my_model"]) == 0
    assert one(calls).model == "/models/my_model"


def test_levels_run_in_order_and_once(bids: Path, tmp_path: Path, calls: list[tuple[str, Settings]]) -> None:
    assert main([str(bids), str(tmp_path / "out"), "group", "--probseg", "participant", "group"]) == 0
    assert [level for level, _ in calls] == ["participant", "group"]
    assert main([str(bids), str(tmp_path / "out"), "evaluate", "group", "participant"]) == 0
    assert [level for level, _ in calls[2:]] == ["participant", "group", "evaluate"]


def test_train_runs_alone(bids: Path, tmp_path: Path, calls: list[tuple[str, Settings]]) -> None:
    assert main([str(bids), str(tmp_path / "out"), "train", "participant"]) == 64
    assert not calls


def test_group_runs_after_scans_that_failed(
    bids: Path, tmp_path: Path, calls: list[tuple[str, Settings]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(settings: Settings) -> None:
        raise BidssegError("1 of 2 scans failed")

    monkeypatch.setattr(sys.modules["bidsseg.levels.participant"], "participant_level", fail)
    assert main([str(bids), str(tmp_path / "out"), "participant", "group"]) == 1
    assert [level for level, _ in calls] == ["group"]


def test_evaluation_flags(bids: Path, tmp_path: Path, calls: list[tuple[str, Settings]]) -> None:
    for folder in ("manual", "fast"):
        (bids / "derivatives" / folder).mkdir(parents=True)
    words = ["evaluate", "--labels", "FAST=manual", "-d", f"theirs={bids}/derivatives/fast", "--mask", "reference"]
    assert main([str(bids), str(tmp_path / "out"), *words, "--against", "theirs"]) == 0
    settings = one(calls)
    evaluation = settings.evaluation
    assert settings.labels == {"FAST": [bids / "derivatives" / "manual"]}
    assert (evaluation.against, evaluation.mask) == (bids / "derivatives" / "fast", "reference")
    assert main([str(bids), str(tmp_path / "out"), *words, "--against", "nowhere"]) == 66


def test_training_flags(bids: Path, tmp_path: Path, calls: list[tuple[str, Settings]]) -> None:
    for folder in ("derivatives/manual", "derivatives/fast"):
        (bids / folder).mkdir(parents=True)
    words = ["train", "--labels", "BrainCOLOR=mine", f"FAST={bids}/derivatives/fast", "--labels", "brain=manual"]
    words += ["--labels", "brain=mine", "FAST=mine"]
    words += ["-d", f"mine={bids}/derivatives/manual", "--also", str(tmp_path), "--recipe", "segnet", "--resume"]
    words += ["--time-budget", "90", "--folds", "3", "--fold", "2", "--seed", "7", "--init", "wholebrain"]
    assert main([str(bids), str(tmp_path / "out"), *words]) == 0
    settings = one(calls)
    training = settings.training
    manual, fast = bids / "derivatives" / "manual", bids / "derivatives" / "fast"
    assert settings.labels == {"BrainCOLOR": [manual], "FAST": [fast, manual], "brain": [manual]}
    assert (training.also, training.recipe, training.resume) == ([tmp_path], "segnet", True)
    assert (training.time_budget_min, training.folds, training.fold, training.seed) == (90, 3, 2, 7)
    assert training.init == "wholebrain"


def test_paths_have_names(
    bids: Path, tmp_path: Path, calls: list[tuple[str, Settings]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cards name datasets by their folders, and ``..`` is no name; the name of a link is kept."""
    for folder in ("code", "manual/code", "store/inside"):
        (bids / folder).mkdir(parents=True)
    (bids / "link").symlink_to(bids / "store" / "inside")
    monkeypatch.chdir(bids / "code")
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    words = ["--also", "../link", "--labels", "../manual/code/..", "--work-dir", "../../work", "--model", "../../m"]
    assert main(["..", "../../out", "train", *words, "--bids-database-dir", "../../index"]) == 0
    settings = one(calls)
    assert (settings.bids_dir, settings.output_dir, settings.work_dir) == (bids, tmp_path / "out", tmp_path / "work")
    assert settings.training.also == [bids / "link"]
    assert settings.labels == {"": [bids / "manual"]}
    assert (settings.model, settings.database_dir) == (str(tmp_path / "m"), tmp_path / "index")
    assert arguments.absolute(bids / "link" / ".." / "x") == bids / "store" / "x"


def test_five_folds_are_cross_validated_if_no_number_is_given(
    bids: Path, tmp_path: Path, calls: list[tuple[str, Settings]]
) -> None:
    assert main([str(bids), str(tmp_path / "out"), "train", "--cross-validate", "--seed", "1"]) == 0
    assert one(calls).training.cross_validate == 5


@pytest.mark.parametrize(
    ("words", "code", "hint"),
    [
        (["--labels", "FAST"], 64, "PROTOCOL=DIR"),
        (["--labels", "FAST=nowhere"], 66, "no derivative dataset nowhere"),
        (["--also", "/nowhere"], 66, "no folder /nowhere"),
        (["--folds", "0"], 64, "at least 2"),
        (["--fold", "5"], 64, "from 0 to 4"),
        (["--cross-validate", "1"], 64, "at least 2"),
        (["--cross-validate", "--folds", "5"], 64, "leave out --folds"),
        (["--cross-validate", "--fold", "0", "--hold-out", "01"], 64, "leave out --fold and --hold-out"),
        (["--hold-out", "01", "--folds", "5", "--fold", "1"], 64, "leave out --folds and --fold"),
        (["--time-budget", "0"], 64, "positive"),
        (["--n-cpus", "0"], 64, "at least 1"),
        (["--mem", "much"], 64, "8G"),
        (["--mem", "4"], 64, "at least 500"),
        (["--device", "gpu"], 64, "cuda:N"),
        (["--participant-label", "sub_01"], 64, "letters and digits"),
        (["--participant-label", "0*"], 64, "letters and digits"),
        (["--hold-out", "sub_0*"], 64, "or pattern of labels"),
        (["--shard", "3"], 64, "3/100"),
        (["--shard", "0/4"], 64, "from 1 to N"),
        (["--shard", "5/4"], 64, "from 1 to N"),
        (["--bids-filter-file", "/nowhere.json"], 66, "/nowhere.json"),
        (["--participant-label"], 64, "expected at least one argument"),
        (["--probseg=yes"], 64, "ignored explicit argument"),
    ],
)
def test_messages_about_wrong_values_name_the_allowed_ones(
    words: list[str], code: int, hint: str, bids: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(bids), str(tmp_path / "out"), "participant", *words]) == code
    error = capsys.readouterr().err
    assert hint in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", ["not json", "[1]", '{"t1w": 3}'])
def test_filter_file_that_is_none(content: str, bids: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "filter.json").write_text(content)
    words = ["participant", "--bids-filter-file", str(tmp_path / "filter.json")]
    assert main([str(bids), str(tmp_path / "out"), *words]) == 64
    assert "filter.json" in capsys.readouterr().err


def test_cpus_and_threads(bids: Path, tmp_path: Path, calls: list[tuple[str, Settings]]) -> None:
    assert main([str(bids), str(tmp_path / "out"), "participant", "--nprocs", "8", "--omp-nthreads", "2"]) == 0
    assert (one(calls).n_cpus, one(calls).threads) == (8, 2)
    assert main([str(bids), str(tmp_path / "out"), "participant", "--omp-nthreads", "0"]) == 64


@pytest.mark.parametrize(
    ("text", "mb"), [("8000", 8000), ("8000M", 8000), ("8G", 8000), ("8gb", 8000), ("1.5T", 1_500_000), ("9e3", None)]
)
def test_memory_sizes(text: str, mb: int | None) -> None:
    if mb is None:
        with pytest.raises(UsageError):
            arguments.megabytes(text)
    else:
        assert arguments.megabytes(text) == mb


def test_labels_from_words_and_files(tmp_path: Path) -> None:
    table = tmp_path / "participants.tsv"
    table.write_text("participant_id\tage\nsub-03\t30\n\n# left out\n04\t31\nsub-01\t32\n")
    assert arguments.labels("sub", ["sub-01", "02", str(table)]) == ["01", "02", "03", "04"]
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "image.txt").write_bytes(b"\x1f\x8b\xff")
    for name in ("empty.txt", "image.txt"):
        with pytest.raises(UsageError, match=name):
            arguments.labels("sub", [str(tmp_path / name)])


# -- places ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "code"),
    [
        (".", 64),
        ("out", 64),
        ("derivatives", 64),
        ("derivatives/other", 64),
        ("derivatives/bidsseg", 0),
        ("derivatives/bidsseg-0.1/trial", 0),
        ("../bids-out", 0),
    ],
)
def test_output_and_input_stay_apart(
    output: str, code: int, bids: Path, calls: list[tuple[str, Settings]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(bids), str(bids / output), "participant"]) == code
    assert bool(calls) == (code == 0)
    assert ("derivatives/bidsseg" in capsys.readouterr().err) == (code == 64 and output != ".")


def test_output_inside_input_through_a_link(bids: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(bids)
    assert main([str(bids), str(tmp_path / "link" / "out"), "participant"]) == 64


def test_work_dir_inside_input(bids: Path, tmp_path: Path) -> None:
    assert main([str(bids), str(tmp_path / "out"), "participant", "-w", str(bids / "work")]) == 64
    assert not (bids / "work").exists()


def test_work_dir_is_made_and_used(
    bids: Path, tmp_path: Path, calls: list[tuple[str, Settings]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert main([str(bids), str(tmp_path / "out"), "participant", "-w", str(tmp_path / "a" / "work")]) == 0
    assert tempfile.gettempdir() == str(tmp_path / "a" / "work")
    assert main([str(bids), str(tmp_path / "out"), "participant", "-w", "/proc/none"]) == 73


@pytest.mark.parametrize("home", [None, "/nonexistent", "/proc"])
def test_home_that_cannot_be_written(
    home: str | None, bids: Path, tmp_path: Path, calls: list[tuple[str, Settings]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "x")
    monkeypatch.setattr("os.access", lambda path, mode: str(path) != "/proc")
    if home is None:
        monkeypatch.delenv("HOME")
    else:
        monkeypatch.setenv("HOME", home)
    assert main([str(bids), str(tmp_path / "out"), "participant"]) == 0
    assert os.environ["HOME"] == tempfile.gettempdir()


# -- failures and progress ---------------------------------------------------------------------------------------------


def test_a_bug_leaves_its_trace_in_a_file(
    bids: Path, tmp_path: Path, calls: list[tuple[str, Settings]], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def fail(settings: Settings) -> None:
        raise ZeroDivisionError("of the bug")

    monkeypatch.setattr(sys.modules["bidsseg.levels.participant"], "participant_level", fail)
    (tmp_path / "out" / "logs").mkdir(parents=True)
    assert main([str(bids), str(tmp_path / "out"), "participant"]) == 1
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert "of the bug" in error and "Traceback" not in error
    (crash,) = (tmp_path / "out" / "logs").glob("crash-*.txt")
    assert str(crash) in error
    assert "ZeroDivisionError" in crash.read_text()


def test_interrupt(
    bids: Path, tmp_path: Path, calls: list[tuple[str, Settings]], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def stop(settings: Settings) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["bidsseg.levels.participant"], "participant_level", stop)
    assert main([str(bids), str(tmp_path / "out"), "participant"]) == 130
    assert "repeat the command to resume" in capsys.readouterr().err


def report_on_two_scans(terminal: Terminal) -> None:
    terminal.start(2)
    terminal.stage("sub-01", "network")
    terminal.advance("sub-01", "done in 3.0 s")
    terminal.warn("odd")
    terminal.detail("small")
    terminal.advance("sub-02", "failed: empty")
    terminal.stop()
    terminal.say("end")


def test_plain_lines_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    report_on_two_scans(Terminal())
    out, err = capsys.readouterr()
    assert out == "end\n"
    assert err.splitlines() == ["[1/2] sub-01: done in 3.0 s", "warning: odd", "[2/2] sub-02: failed: empty"]
    report_on_two_scans(Terminal(verbose=True))
    assert {"sub-01: network", "small"} <= set(capsys.readouterr().err.splitlines())


def test_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    report_on_two_scans(Terminal())
    text = screen.getvalue()
    assert "sub-01: network" in text and "2/2" in text and "warning: odd" in text
    assert capsys.readouterr().out == "end\n"


def test_an_interrupt_is_not_lost_in_a_callback_of_the_garbage_collector(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Python ignores exceptions there, and Dask has such a callback."""

    def collect(*_: object) -> None:
        gc.callbacks.remove(collect)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)  # the signal is handled here

    def work(levels: Sequence[str], settings: Settings) -> int:
        gc.callbacks.append(collect)
        gc.collect()
        for _ in range(1000):
            time.sleep(0.01)
        return 0

    monkeypatch.setattr(cli, "_run", work)
    (tmp_path / "bids").mkdir()
    assert main([str(tmp_path / "bids"), str(tmp_path / "out"), "participant"]) == 130
    assert "interrupted" in capsys.readouterr().err
