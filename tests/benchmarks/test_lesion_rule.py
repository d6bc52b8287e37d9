"""The choice of threshold and smallest volume of lesions."""

from types import ModuleType

import numpy as np
import pytest
from scripts import script

from bidsseg.models.lesion_rule import LesionRule


@pytest.fixture
def choosing() -> ModuleType:
    return script("lesion_rule")


def test_agreement(choosing: ModuleType) -> None:
    found, reference = np.zeros((8, 8, 8), bool), np.zeros((8, 8, 8), bool)
    empty = choosing.agreement(found, reference)
    assert (empty.dice, empty.f1, np.isnan(empty.ratio)) == (1, 1, True)
    found[1:3, 1, 1] = found[6, 6, 6] = True
    reference[1:5, 1, 1] = True
    both = choosing.agreement(found, reference)
    assert both.dice == pytest.approx(4 / 7) and both.f1 == pytest.approx(2 / 3) and both.ratio == 0.75


def test_the_choice_leaves_out_the_participant_it_is_measured_on(
    choosing: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = LesionRule(0.3, 0.0), LesionRule(None, 5.0)
    good, bad, middle = (choosing.Agreement(dice, dice, 1.0) for dice in (0.9, 0.1, 0.4))
    visits = ("sub-01_ses-1", "sub-01_ses-2")
    results = {
        one: {**dict.fromkeys(visits, good), "sub-02": bad},
        other: {**dict.fromkeys(visits, middle), "sub-02": middle},
    }
    assert choosing.chosen(results) == one
    assert choosing.chosen(results, without="sub-01") == other
    choosing.report(results)
    out = capsys.readouterr().out
    assert "sub-01_ses-1, with the choice of the others: argmax       5     0  0.400 0.400 1.00" in out
    assert "chosen: 0.3          0     0" in out
