"""The warning about participants who are too young for the shipped models."""

import json
from pathlib import Path

import phantoms
import pytest
from recording_console import RecordingConsole

from bidsseg.bids.scan import Scan
from bidsseg.execution.agenda import about_ages
from bidsseg.levels.longitudinal import longitudinal_level
from bidsseg.levels.participant import participant_level
from bidsseg.models.card import find_card
from bidsseg.settings import Settings


def named(bids: Path, *sources: tuple[str, str]) -> list[str]:
    """Return the scans in the warning, of those with these labels of participant and session."""
    scans = [Scan({"subject": subject, "session": session}, Path()) for subject, session in sources]
    warnings = about_ages(Settings(bids, bids.parent / "out"), find_card("open"), scans)
    assert all("open is not made for infants" in warning for warning in warnings)
    return warnings[0].partition(": younger than 2 years")[0].split(", ") if warnings else []


def test_ages_of_participants_and_sessions_in_their_units(tmp_path: Path) -> None:
    table = "participant_id\tage\nsub-01\t0.5\nsub-02\t30\nsub-03\tn/a\nsub-04\t30\nsub-05\t89+\n"
    (tmp_path / "participants.tsv").write_text(table)
    (tmp_path / "sub-04").mkdir()
    (tmp_path / "sub-04/sub-04_sessions.tsv").write_text("session_id\tage\nses-a\t1\nses-b\tn/a\n")
    everybody = [("01", "a"), ("02", "a"), ("03", "a"), ("04", "a"), ("04", "b"), ("05", "a"), ("06", "a")]
    assert named(tmp_path, *everybody) == ["sub-01_ses-a (age 0.5)", "sub-04_ses-a (age 1)"]
    (tmp_path / "participants.json").write_text(json.dumps({"age": {"Units": "Months"}}))
    (tmp_path / "sessions.json").write_text(json.dumps({"age": {"Units": "year"}}))
    assert named(tmp_path, *everybody) == ["sub-01_ses-a (age 0.042)", "sub-04_ses-a (age 1)"], (
        "30 months are 2.5 years"
    )
    (tmp_path / "participants.json").write_text(json.dumps({"age": {"Units": "decades"}}))
    assert named(tmp_path, ("02", "a")) == [], "ten days or ten years are not guessed"
    (tmp_path / "participants.tsv").unlink()
    assert named(tmp_path, ("01", "a")) == []


@pytest.mark.parametrize("level", [participant_level, longitudinal_level])
def test_the_levels_warn_before_they_segment(level: object, tmp_path: Path) -> None:
    bids = phantoms.make_bids(tmp_path / "bids", participants=2, sessions=2)
    (bids / "participants.tsv").write_text("participant_id\tage\nsub-01\t1\nsub-02\t40\n")
    console = RecordingConsole()
    given = Settings(bids, tmp_path / "out", model="open", dry_run=True, skip_validation=True, report=console)
    level(given)  # type: ignore[operator]
    [warning] = [text for text in console.warnings if "infants" in text]
    assert warning.startswith("sub-01_ses-1 (age 1), sub-01_ses-2 (age 1): younger than 2 years")
