"""Cross-validation: every participant is evaluated once, by a model that was not trained on that participant."""

import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from labelled import RECIPE, console
from recording_console import RecordingConsole
from scripts import script

from bidsseg.errors import BidssegError, DataError, InputMissing, TemporaryFailure, UsageError
from bidsseg.learning import crossvalidation, training
from bidsseg.learning.interruption import Interruption
from bidsseg.learning.training_setup import Setup, set_up
from bidsseg.learning.validation import COLUMNS, ERROR, summary
from bidsseg.levels.train import train_level
from bidsseg.models.card import CARD, WEIGHTS, read_card
from bidsseg.models.library import save_card
from bidsseg.settings import Settings, Training

TABLE = "crossvalidation.tsv"
FOLDS = [("bids/sub-01", "bids/sub-03"), ("bids/sub-02", "bids/sub-04")]
Request = Callable[..., Settings]


@pytest.fixture(scope="module", autouse=True)
def no_curves() -> Iterator[None]:
    """Skip drawing the learning curves, which takes longer than the training."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(training, "save_curve", lambda *_: None)
        yield


@pytest.fixture(scope="module")
def request_of(dataset: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Request:
    """Return a function for settings, by default with two folds: ``request_of(output, overwrite=..., **training)``."""
    recipe = tmp_path_factory.mktemp("recipe") / "recipe.toml"
    recipe.write_text(RECIPE)

    def settings(output: Path, *, participants: tuple[str, ...] = (), **asked: Any) -> Settings:
        labels = asked.pop("labels", {"FAST": [dataset[1]]})
        general = {name: asked.pop(name) for name in ("overwrite", "dry_run") if name in asked}
        asked = {"recipe": str(recipe), "cross_validate": 2, **asked}
        return Settings(
            dataset[0],
            output,
            participants=participants,
            precision="fp32",
            n_cpus=1,
            labels=labels,
            training=Training(**asked),
            report=RecordingConsole(),
            **general,
        )

    return settings


@pytest.fixture(scope="module")
def finished(request_of: Request, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """The settings of a finished cross-validation that was not interrupted."""
    settings = request_of(tmp_path_factory.mktemp("whole") / "out")
    train_level(settings)
    return settings


def model(output: Path, fold: int | None = None) -> Path:
    return (output if fold is None else output / "folds" / f"fold-{fold}") / "models" / "tiny"


def table_of(output: Path) -> pd.DataFrame:
    return pd.read_csv(model(output) / TABLE, sep="\t")


def parts_of(settings: Settings) -> list[crossvalidation.Part]:
    return crossvalidation.parts_of(set_up(settings, "cpu", "fp32", threads=1))


@pytest.fixture
def nothing_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*_: Any, **__: Any) -> None:
        raise AssertionError("a scan was read")

    monkeypatch.setattr(training, "prepared_cases", read)


# -- what comes out ----------------------------------------------------------------------------------------------------


def test_every_participant_is_measured_once_by_a_model_trained_on_others(
    finished: Settings, request_of: Request, tmp_path: Path
) -> None:
    for fold, people in enumerate(FOLDS):
        card = read_card(model(finished.output_dir, fold))
        assert card.metrics["held_out"] == list(people) and card.data == ["bids: 2 scans"]
    table = table_of(finished.output_dir)
    assert list(table.columns) == [*COLUMNS, "fold"]
    assert [tuple(sorted(set(table[table.fold == fold].case))) for fold in (0, 1)] == FOLDS
    assert not table.duplicated(["case", "head", "annotation", "region"]).any()
    plain = train_level(request_of(tmp_path / "plain", cross_validate=None, folds=2, fold=1))
    for name in (WEIGHTS, "validation.tsv"):
        assert (plain / name).read_bytes() == (model(finished.output_dir, 1) / name).read_bytes()


def test_the_final_model_is_trained_on_all_and_has_the_results_on_its_card(finished: Settings) -> None:
    card, table = read_card(model(finished.output_dir)), table_of(finished.output_dir)
    assert card.data == ["bids: 4 scans"] and card.recipe["held_out"] == []
    assert set(card.metrics) == {"cross_validation"}
    found = card.metrics["cross_validation"]
    assert found["split"] == "2-fold cross-validation by participant"
    for head in ("brain", "FAST"):
        own = table[(table["head"] == head) & (table.region != ERROR)].groupby("case").dice.mean()
        assert card.dice[head] == pytest.approx(own.mean(), abs=1e-4)
    fast = found["heads"]["FAST"]
    assert fast["scans"] == 4 and fast["dice_low"] <= fast["dice"] <= fast["dice_high"]


def test_every_line_names_its_fold(finished: Settings) -> None:
    messages = console(finished).messages
    assert messages[0].startswith("4 scans are read and kept in ")
    assert messages[1] == "fold 1 of 2: 2 training scans, 2 held out: bids/sub-01, bids/sub-03"
    assert "fold 2 of 2: 2 training scans, 2 held out: bids/sub-02, bids/sub-04" in messages
    assert any(line.startswith(f"final model: model: {model(finished.output_dir)}") for line in messages)
    assert any(line.startswith("FAST (against FAST, 4 scans): Dice") for line in messages)
    warnings = console(finished).warnings  # two heads of two tiny models, which have learned nothing
    assert len(warnings) == 4 and all(line.endswith("give more time or steps") for line in warnings)


# -- interruptions -----------------------------------------------------------------------------------------------------


def stop_in_fold_2(monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupt the training after two steps of the second fold."""
    asked: list[int] = []
    plain = training.people_of

    def people_of(setup: Setup, *given: Any) -> training.People:
        asked.clear()
        asked.append(setup.options.fold)
        return plain(setup, *given)

    def stop(self: Interruption) -> bool:
        asked.append(0)
        return asked[0] == 1 and len(asked) > 3

    monkeypatch.setattr(training, "people_of", people_of)
    monkeypatch.setattr(Interruption, "asked", stop)


def test_an_interrupted_run_resumes_to_the_same_bytes(
    finished: Settings, request_of: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        stop_in_fold_2(patched)
        with pytest.raises(TemporaryFailure, match=r"fold 2 of 2 is next: interrupted after 2 steps.*--resume"):
            train_level(request_of(out))
    assert (model(out, 1) / "checkpoint.pt").is_file() and not model(out).exists()
    first = (model(out, 0) / WEIGHTS).stat()
    with pytest.raises(UsageError, match=r"fold-0/models/tiny holds a finished model: give --overwrite .*--resume"):
        train_level(request_of(out))
    resumed = request_of(out, resume=True)
    assert train_level(resumed) == model(out)
    assert (model(out, 0) / WEIGHTS).stat() == first
    assert f"fold 1 of 2: model: {model(out, 0)} is finished" in console(resumed).messages
    assert any(line.startswith("fold 2 of 2: 2 training scans") for line in console(resumed).messages)
    for fold in (0, 1, None):
        one, other = model(out, fold), model(finished.output_dir, fold)
        assert (one / WEIGHTS).read_bytes() == (other / WEIGHTS).read_bytes()
        assert read_card(one).metrics == read_card(other).metrics
    assert (model(out) / TABLE).read_bytes() == (model(finished.output_dir) / TABLE).read_bytes()


def test_a_finished_run_is_not_repeated(
    finished: Settings, request_of: Request, tmp_path: Path, nothing_is_read: None
) -> None:
    """Folds that were trained separately count as finished too."""
    out = tmp_path / "out"
    shutil.copytree(finished.output_dir, out)
    card = read_card(model(out))
    save_card(replace(card, metrics={}))
    (model(out) / TABLE).unlink()
    train_level(request_of(out, resume=True))
    for name in (CARD, TABLE, WEIGHTS):
        assert (model(out) / name).read_bytes() == (model(finished.output_dir) / name).read_bytes()


def test_overwriting_removes_all_folds(
    finished: Settings, request_of: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an interrupted run with --overwrite, --resume must not treat older folds as finished."""
    out = tmp_path / "out"
    shutil.copytree(finished.output_dir, out)
    with pytest.raises(UsageError, match=r"--overwrite .* --resume .* give one of the two"):
        train_level(request_of(out, overwrite=True, resume=True))
    shutil.copytree(model(out, 1), model(out, 2))  # of another number of folds
    asked: list[int] = []

    def stop(_: Interruption) -> bool:
        asked.append(1)
        return len(asked) > 1

    monkeypatch.setattr(Interruption, "asked", stop)
    with pytest.raises(TemporaryFailure, match=r"fold 1 of 2 is next: interrupted; .* run again with --resume"):
        train_level(request_of(out, overwrite=True))
    assert {path.parent.name for path in out.rglob("*") if path.is_file()} == {"logs", "prepared"}


@pytest.mark.parametrize(
    "start", ["folds/fold-0/models/tiny", "folds/fold-1/models/tiny", "folds/fold-2/models/tiny", "."]
)
def test_overwriting_keeps_its_start(start: str, finished: Settings, request_of: Request, tmp_path: Path) -> None:
    """Also one in a fold of an earlier cross-validation with more folds."""
    out = tmp_path / "out"
    shutil.copytree(finished.output_dir, out)
    shutil.copytree(model(out, 1), model(out, 2))
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(UsageError, match=r"--init .*: --overwrite removes this model first: choose another OUTPUT_DIR"):
        train_level(request_of(out, overwrite=True, init=str(out / start), cross_validate=3 if start == "." else 2))
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("unfinished", [(), (1, None)])
def test_folds_trained_on_earlier_labels_are_not_kept(
    unfinished: tuple[int | None, ...], finished: Settings, request_of: Request, tmp_path: Path, nothing_is_read: None
) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished.output_dir, out)
    for fold in unfinished:
        shutil.rmtree(model(out, fold))
    (labels,) = finished.labels["FAST"]
    copy = Path(shutil.copytree(labels, tmp_path / "labels"))
    settings = replace(request_of(out, resume=True, dry_run=True), labels={"FAST": [copy]})
    train_level(settings)
    path, other = (copy / f"sub-{number}" / "anat" / f"sub-{number}_seg-FAST_dseg.nii.gz" for number in ("01", "02"))
    path.write_bytes(other.read_bytes() + b"changed")
    with pytest.raises(
        DataError, match=r"fold-0/models/tiny: participants, images or label maps changed since this model"
    ):
        train_level(settings)


def test_the_time_budget_is_shared_by_unfinished_folds(
    finished: Settings, request_of: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished.output_dir, out)
    card = read_card(model(out, 0))
    save_card(replace(card, recipe={**card.recipe, "minutes": 4.0}))
    first, second, final = parts_of(request_of(out, resume=True, time_budget_min=12.0))
    now = [first.setup.started]
    monkeypatch.setattr(crossvalidation, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def share(part: crossvalidation.Part, *done: crossvalidation.Part) -> float | None:
        part = replace(part, setup=replace(part.setup, started=first.setup.started))
        return crossvalidation.with_time(part, done, 3 - len(done)).options.time_budget_min

    assert share(first) == 4.0
    assert share(second, first) == 4.0
    assert read_card(model(out, 1)).recipe["minutes"] > 0
    assert share(final, first, second) == pytest.approx(8.0 - read_card(model(out, 1)).recipe["minutes"])
    now[0] += 120  # this run has read the data and trained
    assert share(second, first) == 3.0
    save_card(replace(card, recipe={**card.recipe, "minutes": 12.5}))
    with pytest.raises(TemporaryFailure, match=r"the time budget is used up: .* larger --time-budget"):
        share(second, first)


# -- before anything is read -------------------------------------------------------------------------------------------


def test_a_dry_run_reports_the_folds(request_of: Request, tmp_path: Path, nothing_is_read: None) -> None:
    settings = request_of(tmp_path / "out", dry_run=True)
    train_level(settings)
    assert console(settings).messages[-3:] == [
        "fold 1 of 2: holds out bids/sub-01, bids/sub-03",
        "fold 2 of 2: holds out bids/sub-02, bids/sub-04",
        "final model: holds out nobody",
    ]
    assert not settings.output_dir.exists()


@pytest.mark.parametrize(
    ("asked", "error", "reason"),
    [
        ({"cross_validate": 1}, UsageError, "--cross-validate 1: give at least 2 folds"),
        ({"cross_validate": 5}, UsageError, "no dataset has more than 4 labelled participants; give 4 or fewer"),
        ({"participants": ("01",)}, UsageError, "more than 1 labelled participants; at least 2 are needed"),
        ({"cross_validate": 3, "resume": True}, DataError, r"fold-0/models/tiny: of another run \(held_out differ\)"),
        ({"seed": 1, "resume": True}, DataError, r"fold-0/models/tiny: of another run \(seed differ\)"),
        (
            {"participants": ("01", "02", "03"), "resume": True},
            DataError,
            r"fold-1/models/tiny: of another run \(holds out differ\)",
        ),
    ],
)
def test_conflicting_options_are_refused(
    asked: dict[str, Any],
    error: type[BidssegError],
    reason: str,
    finished: Settings,
    request_of: Request,
    tmp_path: Path,
    nothing_is_read: None,
) -> None:
    with pytest.raises(error, match=reason):
        train_level(request_of(finished.output_dir if "resume" in asked else tmp_path / "out", **asked))
    assert not (tmp_path / "out").exists()


def test_several_processes_are_refused(request_of: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match=r"one process: with torchrun, train each fold \(--folds K --fold I\)"):
        train_level(request_of(tmp_path / "out"))


# -- starting from other models ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("named", [".", "models/tiny"])
def test_each_fold_starts_from_the_same_fold_of_another_cross_validation(
    named: str, finished: Settings, request_of: Request, tmp_path: Path
) -> None:
    settings = request_of(tmp_path / "out", init=str(finished.output_dir / named), dry_run=True)
    starts = [part.setup.options.init for part in parts_of(settings)]
    assert starts == [str(model(finished.output_dir, fold)) for fold in (0, 1, None)]
    train_level(settings)
    assert console(settings).warnings == []


def test_a_start_that_may_have_seen_who_is_held_out_is_refused(
    finished: Settings, request_of: Request, tmp_path: Path, nothing_is_read: None
) -> None:
    out, first = tmp_path / "out", str(finished.output_dir)
    with pytest.raises(UsageError, match=r"has 2 finished folds, but --cross-validate 3 needs 3"):
        train_level(request_of(out, cross_validate=3, init=first))
    with pytest.raises(UsageError, match="fold-0/models/tiny did not hold out bids/sub-04, but fold 1 of 2 does"):
        train_level(request_of(out, participants=("01", "03", "04"), init=first))
    with pytest.raises(InputMissing, match="no model 'nowhere'"):
        train_level(request_of(out, init="nowhere"))
    one_model = request_of(out, init="locator", dry_run=True)
    train_level(one_model)
    folds, layers = console(one_model).warnings
    assert layers.startswith("--init locator: its network has other layers than that of the recipe tiny")
    assert folds.startswith("--init locator: every fold starts from this model")


# -- figures of some cases ---------------------------------------------------------------------------------------------


def test_figures_of_some_cases_are_entered_on_a_card(
    finished: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished.output_dir, out)
    figures = script("fold_figures")
    monkeypatch.setattr(
        sys, "argv", ["fold_figures", str(out), "--cases", "bids/sub-0[123] *", "--card", str(model(out, 1))]
    )
    figures.main()
    assert "FAST (against FAST, 3 scans): Dice" in capsys.readouterr().out
    card, table = read_card(model(out, 1)), table_of(out)
    own = table[(table["head"] == "FAST") & (table.region != ERROR) & (table.case != "bids/sub-04")]
    assert card.metrics["cross_validation"]["heads"]["FAST"]["scans"] == 3
    assert card.dice["FAST"] == pytest.approx(own.groupby("case").dice.mean().mean(), abs=1e-4)
    assert card.metrics["held_out"] == list(FOLDS[1])
    monkeypatch.setattr(sys, "argv", ["fold_figures", str(tmp_path)])
    with pytest.raises(SystemExit):
        figures.main()
    assert "must have the folds of one model, but has those of none" in capsys.readouterr().err


def test_people_of_one_name_in_two_folds_are_two() -> None:
    matching = script("fold_figures").matching
    rows = [(f"both/sub-{name}", fold, dice) for name, fold, dice in (("01", 0, 0.2), ("01", 1, 0.6), ("02", 1, 0.7))]
    table = pd.DataFrame(rows, columns=["case", "fold", "dice"])
    table = table.assign(head="FAST", annotation="FAST", region="White Matter")
    (row,) = summary(matching(table, "*")).to_dict("records")
    assert (row["cases"], row["dice"]) == (3, pytest.approx(0.5))
    sessions = table.assign(case=["both/sub-01_ses-1", "both/sub-01_ses-1", "both/sub-01_ses-2"])
    (row,) = summary(matching(sessions, "*")).to_dict("records")
    assert (row["cases"], row["dice"]) == (3, pytest.approx((0.2 + 0.65) / 2))
    assert matching(table, "* in fold 1").dice.tolist() == [0.6, 0.7]
    assert matching(table, "both/sub-01 *").dice.tolist() == [0.2, 0.6]
    assert matching(table, "oasis/*").empty
