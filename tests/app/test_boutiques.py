"""The Boutiques descriptors of the command line, checked with the tools of the launchers."""

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from boutiques.bosh import bosh

from bidsseg.app.cli import main
from bidsseg.app.descriptor import descriptor
from bidsseg.app.parser import dataset_parser

FOLDER = Path(__file__).parents[2] / "boutiques"
NAMES = {
    "participant": FOLDER / "bidsseg.json",
    "longitudinal": FOLDER / "bidsseg_longitudinal.json",
    "evaluate": FOLDER / "bidsseg_evaluate.json",
    "train": FOLDER / "bidsseg_train.json",
}


@pytest.mark.parametrize("level", NAMES)
def test_the_descriptors_match_the_parser(level: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--bids-exec-spec", *([level] if level != "participant" else [])]) == 0
    assert capsys.readouterr().out == NAMES[level].read_text(), "make boutiques"


def test_the_bundle_for_nipoppy_has_the_descriptor_and_its_invocation_fits(tmp_path: Path) -> None:
    bundle = FOLDER.parent / "catalogues" / "nipoppy"
    assert (bundle / "descriptor.json").read_text() == NAMES["participant"].read_text(), "make boutiques"
    text = re.sub(r"\[\[NIPOPPY_DPATH_\w+\]\]", str(tmp_path), (bundle / "invocation.json").read_text())
    filled = tmp_path / "invocation.json"
    filled.write_text(re.sub(r"\[\[\w+\]\]", "01", text))
    bosh(["invocation", str(NAMES["participant"]), "-i", str(filled)])


def test_the_invocation_on_the_page_fits(tmp_path: Path) -> None:
    page = (FOLDER.parent / "docs" / "how-to" / "launchers.md").read_text()
    shown = re.findall("^echo '(.*)' > invocation.json$", page, re.MULTILINE)
    (tmp_path / "invocation.json").write_text(shown[0].replace("/data/bids", str(tmp_path)))
    bosh(["invocation", str(NAMES["participant"]), "-i", str(tmp_path / "invocation.json")])


def test_their_own_validator_accepts_them() -> None:
    bosh(["validate", "--bids", str(NAMES["participant"])])
    bosh(["validate", str(NAMES["longitudinal"])])
    bosh(["validate", str(NAMES["evaluate"])])
    bosh(["validate", str(NAMES["train"])])


@pytest.fixture
def simulated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """Return the words that a launcher would run after the name of the command."""

    def simulate(level: str, **values: Any) -> list[str]:
        chosen = tmp_path / "invocation.json"
        chosen.write_text(json.dumps(values))
        bosh(["exec", "simulate", str(NAMES[level]), "-i", str(chosen)])
        made, _, rest = capsys.readouterr().out.splitlines()[-1].partition(";")
        assert made == f"mkdir -p {values['OutputLocation']}"
        name, *words = shlex.split(rest)
        assert name == "bidsseg"
        return words

    return simulate


def test_the_command_of_a_launcher_is_parsed(simulated: Callable[..., list[str]]) -> None:
    words = simulated(
        "participant", InputDataset="/data/bids", OutputLocation="out", AnalysisLevel=["participant", "group"],
        SubjectLabel=["01", "02"], model="ace", probseg=True, n_cpus=4, mem_gb="8",
    )  # fmt: skip
    given = dataset_parser().parse_intermixed_args(words)
    assert (str(given.bids_dir), str(given.output_dir), given.level) == ("/data/bids", "out", ["participant", "group"])
    assert (given.participants, given.model, given.probseg) == (["01", "02"], "ace", True)
    assert "entropy" not in given
    assert (given.n_cpus, given.memory_mb) == (4, 8000)


def test_the_train_command_of_a_launcher_is_parsed(simulated: Callable[..., list[str]]) -> None:
    words = simulated(
        "train", InputDataset="/data/bids", OutputLocation="out", labels=["FAST=/data/fast"], small=True,
        time_budget=2.5, seed=3,
    )  # fmt: skip
    given = dataset_parser().parse_intermixed_args(words)
    assert (given.level, given.labels, given.small) == (["train"], ["FAST=/data/fast"], True)
    assert (given.time_budget_min, given.seed) == (2.5, 3)


def test_the_evaluate_command_of_a_launcher_is_parsed(simulated: Callable[..., list[str]]) -> None:
    words = simulated(
        "evaluate", InputDataset="/data/bids", OutputLocation="out", labels=["FAST=/data/fast"], against="/data/other",
    )  # fmt: skip
    given = dataset_parser().parse_intermixed_args(words)
    assert (given.level, given.labels, given.against) == (["evaluate"], ["FAST=/data/fast"], "/data/other")


@pytest.mark.parametrize("level", NAMES)
def test_every_flag_of_a_level_is_described(level: str) -> None:
    described = {entry.get("command-line-flag") for entry in descriptor(level)["inputs"]}
    assert {"--participant-label", "--n-cpus", "--mem", "--verbose", "--work-dir", "--overwrite"} <= described
    assert ("--model" in described, "--recipe" in described) == (level != "train", level == "train")
    assert ("--labels" in described, "--against" in described) == (level in ("evaluate", "train"), level == "evaluate")
    assert ("--probseg" in described, "--fast" in described) == (
        level == "participant", level in ("participant", "longitudinal")
    )  # fmt: skip
    assert ("--device" in described) == (level != "evaluate")
    assert ("--anat-modality" in described) == (level != "evaluate"), "longitudinal compares UNIT1, too"
    assert "--derivatives" in described, "--corrections, --lesions and --measure may name one, too"
    assert not described & {"--version", "--help", "--list-models", "--json", "--bids-exec-spec"}
