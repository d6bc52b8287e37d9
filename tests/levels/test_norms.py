"""The level group with ``--controls``: z scores relative to the user's own controls."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from trees import MODEL, add_result, rows_of, run_group

from bidsseg.bids.scan import Scan
from bidsseg.errors import NothingSelected, OutputNotWritable, UsageError
from bidsseg.report import participant_page
from bidsseg.settings import Settings

TABLE = f"group_seg-FAST_desc-{MODEL}_zscore.tsv"
NAMES = {"CSF": "Cerebrospinal Fluid", "GM": "Gray Matter", "WM": "White Matter", "BrainMask": "brain mask"}
WHOLE_HEAD = "estimated total intracranial volume"


@pytest.fixture
def bids(tmp_path: Path) -> Path:
    folder = tmp_path / "bids"
    folder.mkdir()
    return folder


def add_volumes(output: Path, entities: dict[str, str], volumes: Mapping[str, float]) -> Path:
    """Write a result with these volumes (mm³), by column of the table of the cohort, and return its table."""
    add_result(output, entities)
    (path,) = output.glob(f"**/{'_'.join(f'{k[:3]}-{v}' for k, v in entities.items())}_seg-FAST_desc-{MODEL}_morph.tsv")
    by_name = {NAMES.get(column, WHOLE_HEAD): f"{volume:.10g}" for column, volume in volumes.items()}
    header, *lines = [line.split("\t") for line in path.read_text().splitlines()]
    place = header.index("volume-mm3")
    for line in lines:
        line[place] = by_name.get(line[1], line[place])
    path.write_text("\n".join("\t".join(line) for line in [header, *lines]) + "\n")
    return path


class Study:
    """Controls and patients whose volumes depend on age, sex and head size."""

    def __init__(self, bids: Path, output: Path, *, controls: int = 16, patients: int = 3, whole_heads: bool = False):
        random = np.random.default_rng(5)
        n = controls + patients
        self.bids, self.output = bids, output
        self.labels = [f"{number:02}" for number in range(n)]
        self.groups = ["control"] * controls + ["patient"] * patients
        self.age, self.sex = random.uniform(20, 70, n).round(1), random.choice(["F", "M"], n)
        self.age[[0, 1, controls]] = 20, 70, 50
        head = random.normal(1500, 100, n) + 60 * (self.sex == "M")
        gm = 300 + 0.25 * head - 1.5 * self.age + random.normal(0, 15, n)
        self.volumes: dict[str, np.ndarray] = {"BrainMask": head, "GM": gm, "WM": 0.3 * head + random.normal(0, 12, n)}
        self.volumes["CSF"] = head - gm - self.volumes["WM"]
        if whole_heads:
            self.volumes["eTIV"] = head + random.normal(0, 30, n)
        self.write_people()
        for row, label in enumerate(self.labels):
            add_volumes(output, {"subject": label}, {name: values[row] for name, values in self.volumes.items()})

    def write_people(self, **cells: Mapping[str, str]) -> None:
        """Write participants.tsv, with other cells for some participants, by column."""
        columns = {"age": [*map(str, self.age)], "sex": [*map(str, self.sex)], "group": self.groups}
        rows = [["participant_id", *columns, *(name for name in cells if name not in columns)]]
        for row, label in enumerate(self.labels):
            own = {name: values[row] for name, values in columns.items()}
            own |= {name: changed.get(label, own.get(name, "n/a")) for name, changed in cells.items()}
            rows.append([f"sub-{label}", *own.values()])
        (self.bids / "participants.tsv").write_text("".join("\t".join(row) + "\n" for row in rows))

    def run(self, **settings: object) -> list[str]:
        """Run the level and return its warnings."""
        return run_group(self.bids, self.output, **{"controls": ["group=control"], **settings}).warnings

    def z(self) -> dict[str, dict[str, str]]:
        return {row["participant_id"].removeprefix("sub-"): row for row in rows_of(self.output / TABLE)}

    def model(self) -> dict[str, Any]:
        return dict(json.loads((self.output / TABLE).with_suffix(".json").read_text())["Controls"])

    def expected(self, column: str, head: str = "BrainMask") -> list[float]:
        """Return the z scores of all scans by refits of the ordinary regression, each without the scan itself."""
        covariates = [np.ones(len(self.labels)), self.age, self.sex == "M"]
        design = np.column_stack([*covariates, *([self.volumes[head]] if column != "BrainMask" else [])])
        found = []
        for row in range(len(self.labels)):
            among = [n for n, group in enumerate(self.groups) if group == "control" and n != row]
            x, y = design[among], self.volumes[column][among]
            beta, (squares,), _, _ = np.linalg.lstsq(x, y, rcond=None)
            degrees = len(among) - x.shape[1]
            spread = np.sqrt(squares / degrees * (1 + design[row] @ np.linalg.inv(x.T @ x) @ design[row]))
            t = (self.volumes[column][row] - design[row] @ beta) / spread
            found.append(float(stats.norm.ppf(stats.t.cdf(t, degrees))))
        return found


@pytest.fixture
def study(bids: Path, output: Path) -> Study:
    return Study(bids, output)


def test_the_scores_are_those_of_regressions_over_the_other_controls(study: Study) -> None:
    console = run_group(study.bids, study.output, controls=["group=control"], long=True)
    rows = study.z()
    assert list(rows) == study.labels
    for column in ("GM", "WM", "CSF", "BrainMask"):
        np.testing.assert_allclose([float(row[column]) for row in rows.values()], study.expected(column), rtol=1e-5)
    assert {row["eTIV"] for row in rows.values()} == {"n/a"}
    assert [row["in-controls"] for row in rows.values()] == ["1"] * 16 + ["0"] * 3
    long = rows_of(study.output / TABLE.replace("zscore", "long"))
    assert [row["control-z"] for row in long if row["region"] == "GM"] == [row["GM"] for row in rows.values()]
    (said,) = [message for message in console.messages if TABLE in message]
    assert said.endswith("z scores relative to 16 controls (group=control), given age, sex, head size (BrainMask)")


def test_the_data_dictionary_describes_the_model(study: Study) -> None:
    study.run()
    model, female = study.model(), int((study.sex[:16] == "F").sum())
    assert model["Scans"] == [f"sub-{label}" for label in study.labels[:16]] and model["HeadSize"] == "BrainMask"
    assert model["Conditions"] == ["group=control"] and model["DegreesOfFreedom"] == 12
    mean = pytest.approx(study.age[:16].mean(), rel=1e-5)
    assert model["Covariates"] == {
        "age": {"Minimum": 20, "Maximum": 70, "Mean": mean},
        "sex": {"Levels": {"F": female, "M": 16 - female}},
    }
    columns = json.loads((study.output / TABLE).with_suffix(".json").read_text())
    assert set(next(iter(study.z().values()))) <= set(columns)


def test_the_first_table_names_the_deviations(study: Study) -> None:
    changed = {name: values[17] for name, values in study.volumes.items()}
    add_volumes(study.output, {"subject": "17"}, {**changed, "GM": changed["GM"] - 150, "WM": changed["WM"] + 60})
    study.run()
    rows = rows_of(study.output / TABLE.replace("zscore", "morph"))
    z = study.z()["17"]
    assert rows[17]["deviations"] == "GM WM" and float(z["GM"]) < float(z["WM"]) * -1 < -1.96
    assert rows[17]["in-controls"] == "0" and z["deviations"] == rows[17]["deviations"]


def test_whole_heads_are_corrected_for_the_intracranial_volume(bids: Path, output: Path) -> None:
    study = Study(bids, output, whole_heads=True)
    study.run()
    assert study.model()["HeadSize"] == "eTIV"
    np.testing.assert_allclose(
        [float(row["GM"]) for row in study.z().values()], study.expected("GM", "eTIV"), rtol=1e-5
    )
    add_volumes(
        output, {"subject": "18"}, {name: values[18] for name, values in study.volumes.items() if name != "eTIV"}
    )
    study.run()
    assert study.model()["HeadSize"] == "BrainMask", "one scan has no intracranial volume"


def test_scans_that_no_control_is_like(study: Study) -> None:
    study.write_people(age={"02": "n/a", "16": "71", "17": "89+"}, sex={"18": "O"})
    warnings = study.run()
    rows = study.z()
    assert rows["16"]["extrapolated"] == "age" and rows["16"]["GM"] != "n/a"
    assert [rows[label]["GM"] for label in ("02", "17", "18")] == ["n/a"] * 3
    assert rows["18"]["extrapolated"] == "sex" and rows["02"]["in-controls"] == "0"
    assert study.model()["DegreesOfFreedom"] == 11
    for text in (
        "no z scores of sub-02, sub-17: age is not known",
        "z scores of sub-16 are extrapolated: age is beyond that of the controls (20 to 70)",
        "no z scores of sub-18: no control has their sex",
    ):
        assert f"{MODEL}: {text}" in warnings


def test_the_first_scan_of_a_control_counts(bids: Path, output: Path) -> None:
    study = Study(bids, output)
    for session in ("a", "b"):
        add_volumes(output, {"subject": "20", "session": session}, {"BrainMask": 1500, "GM": 590, "WM": 455})
    study.labels, study.groups = [*study.labels, "20"], [*study.groups, "control"]
    study.age, study.sex = np.append(study.age, 40), np.append(study.sex, "F")
    study.write_people()
    study.run()
    assert [key for key in study.model()["Scans"] if "20" in key] == ["sub-20_ses-a"]
    first, second = [row for row in rows_of(output / TABLE) if row["participant_id"] == "sub-20"]
    assert first["GM"] == second["GM"], "neither is compared with the own first scan"
    (bids / "sub-20").mkdir()
    (bids / "sub-20/sub-20_sessions.tsv").write_text("session_id\tage\tqc\nses-a\tn/a\tbad\nses-b\t41\tgood\n")
    study.run()
    assert study.model()["Scans"][-1] == "sub-20_ses-b", "the age at the first is not known"
    study.run(controls=["group=control", "qc!=bad"])
    assert study.model()["Scans"][-1] == "sub-20_ses-b"
    study.run(where=["age!=41"])
    assert len(study.model()["Scans"]) == 16 and len(rows_of(output / TABLE)) == 20


def test_covariates_that_the_user_chooses(study: Study) -> None:
    site = {label: str(row % 3 + 1) for row, label in enumerate(study.labels)}
    study.write_people(site=site, scanner=dict.fromkeys(study.labels, "1"))
    study.run(covariates=["site", "scanner"])
    assert list(study.model()["Covariates"]) == ["site", "scanner"]
    assert study.model()["DegreesOfFreedom"] == 13, "linear; the constant scanner is left out"
    (study.bids / "participants.json").write_text('{"site": {"Levels": {"1": "A", "2": "B", "3": "C"}}}')
    study.run(covariates=["site"])
    assert study.model()["DegreesOfFreedom"] == 12, "categories"
    with pytest.raises(UsageError, match=r"--covariates height: no .* has the column height; there are age, group"):
        study.run(covariates=["height"])
    with pytest.raises(UsageError, match="--covariates requires --controls"):
        Settings(study.bids, study.output, covariates=["age"])


@pytest.mark.parametrize("place", ["scans.json", "sub-{0}/sub-{0}_scans.json"])
def test_categories_of_single_scans_are_those_of_their_data_dictionary(study: Study, place: str) -> None:
    for row, label in enumerate(study.labels):
        table = study.bids / f"sub-{label}/sub-{label}_scans.tsv"
        table.parent.mkdir()
        table.write_text(f"filename\tscanner\nanat/sub-{label}_T1w.nii.gz\t{row % 3 + 1}\n")
    study.run(covariates=["scanner"])
    assert study.model()["DegreesOfFreedom"] == 13, "linear"
    for label in study.labels:
        (study.bids / place.format(label)).write_text('{"scanner": {"Levels": {"1": "A", "2": "B", "3": "C"}}}')
    study.run(covariates=["scanner"])
    assert study.model()["DegreesOfFreedom"] == 12, "categories"


@pytest.mark.parametrize("missing", ["NA", "NaN", "nan", "N/A", ""])
def test_a_missing_number_is_no_category(study: Study, missing: str) -> None:
    years = {label: str(8 + row % 5) for row, label in enumerate(study.labels)}
    study.write_people(education={**years, "03": missing})
    warnings = study.run(covariates=["age", "education"])
    assert study.model()["Covariates"]["education"]["Minimum"] == 8
    assert study.z()["03"]["GM"] == "n/a" and study.z()["04"]["GM"] != "n/a"
    assert any("no z scores of sub-03: education is not known" in warning for warning in warnings)


def test_numbers_that_count_as_categories_are_named(study: Study) -> None:
    doses = {label: f"{row % 2},5" for row, label in enumerate(study.labels)}
    study.write_people(dose=doses, grade={label: "2" if label > "05" else "I" for label in study.labels})
    warnings = study.run(covariates=["sex", "dose", "grade"])
    assert set(study.model()["Covariates"]["dose"]["Levels"]) == {"0,5", "1,5"}
    said = [warning for warning in warnings if "not a linear one" in warning]
    assert ["0,5 is no number" in said[0], "I is no number" in said[1], len(said)] == [True, True, 2]
    (study.bids / "participants.json").write_text(json.dumps({"grade": {"Levels": {}}, "dose": {"Levels": {}}}))
    assert not any("not a linear one" in warning for warning in study.run(covariates=["sex", "dose", "grade"]))


def test_without_known_covariates_head_size_remains(study: Study) -> None:
    (study.bids / "participants.tsv").write_text(
        "participant_id\tgroup\n" + "".join(f"sub-{label}\tcontrol\n" for label in study.labels)
    )
    assert not [warning for warning in study.run() if "z scores" in warning]
    assert study.model()["Covariates"] == {} and study.model()["DegreesOfFreedom"] == 17


def test_too_few_controls_have_no_table(bids: Path, output: Path) -> None:
    study = Study(bids, output, controls=14)
    study.run()
    assert (output / TABLE).is_file() and study.model()["DegreesOfFreedom"] == 10
    study.write_people(age={"03": "n/a"})
    (warning,) = [each for each in study.run() if "z scores" in each]
    assert warning == (
        f"{MODEL}: no z scores: 13 controls with a result and known age and sex, 4 coefficients: "
        "the difference must be at least 10"
    )
    assert (
        not list(output.glob("*_zscore.*"))
        and "in-controls" not in rows_of(output / TABLE.replace("zscore", "morph"))[0]
    )


def test_conditions_that_select_nobody(study: Study) -> None:
    with pytest.raises(NothingSelected, match="--controls: no scan with a result meets group=healthy"):
        study.run(controls=["group=healthy"])
    with pytest.raises(UsageError, match=r"--controls diagnosis=0: no .* has the column diagnosis"):
        study.run(controls=["diagnosis=0"])
    assert not list(study.output.glob("group*"))


def test_without_the_flag_the_table_is_removed(study: Study) -> None:
    study.run()
    study.run(controls=[])
    assert not list(study.output.glob("*_zscore.*"))
    (study.output / TABLE).write_text("my\ttable\n")
    with pytest.raises(OutputNotWritable, match=TABLE):
        study.run()
    assert (study.output / TABLE).read_text() == "my\ttable\n"


def test_a_dry_run_writes_no_table(study: Study) -> None:
    study.run(dry_run=True)
    assert not list(study.output.glob("group*"))


# -- pages -------------------------------------------------------------------------------------------------------------


def participant_text(study: Study, label: str) -> str:
    return participant_page(study.output, Scan({"subject": label}, Path())).read_text()


def test_the_pages_mark_what_is_beyond_the_controls(study: Study) -> None:
    volumes = {name: values[17] for name, values in study.volumes.items()}
    path = add_volumes(study.output, {"subject": "17"}, {**volumes, "GM": volumes["GM"] - 150})
    study.write_people(age={"16": "71"})
    participant_text(study, "17")
    study.run()
    text = (study.output / "sub-17.html").read_text()
    z = float(study.z()["17"]["GM"])
    assert f'<td class="number far below">{z:.2f}</td>' in text and "far above" not in text
    assert "3 regions, 1 beyond ±1.96 of the controls" in text
    assert "16 controls (group=control), given age, sex, head size (BrainMask)" in text
    assert "is one of the controls" in participant_text(study, "02")
    assert "extrapolated, beyond the range of the controls: age" in participant_text(study, "16")
    group = (study.output / "group.html").read_text()
    assert "<td>beyond: age</td>" in group and group.count("<td>control</td>") == 16
    assert '<td></td><td class="number">1</td><td>GM</td>' in group
    newer = (study.output / TABLE).stat().st_mtime_ns + 10**9
    os.utime(path, ns=(newer, newer))
    assert "z scores relative to" not in participant_text(study, "17"), "the scan was segmented again"


def test_pages_lose_the_scores_with_the_table(study: Study) -> None:
    study.run()
    assert "z scores relative to" in participant_text(study, "17")
    study.run(controls=[])
    pages = [study.output / "sub-17.html", study.output / "group.html"]
    assert not [page for page in pages if "z scores relative to" in page.read_text()]


def test_an_edited_table_does_not_stop_the_page(study: Study) -> None:
    study.run()
    table = study.output / TABLE
    for content in ("", "participant_id\n", table.read_text().replace("sub-17\tdone\t", "sub-17\tdone\tx\t")):
        table.write_text(content)
        assert "z scores relative to" not in participant_text(study, "17")
