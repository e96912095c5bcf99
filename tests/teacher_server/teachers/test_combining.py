"""The formulas of agreement and confidence."""

import math

import pytest

from teacher_api.schemas import StageReport
from teacher_server.teachers.combining import agreement_of, combined, confidence_of, mean_distribution

pytestmark = pytest.mark.unit

_LEFT, _RIGHT = {"left": 1.0, "right": 0.0}, {"left": 0.0, "right": 1.0}


def _report(**values: float) -> StageReport:
    return StageReport(text="", milliseconds=1.0).model_copy(update=values)


def test_agreement() -> None:
    assert agreement_of([_LEFT]) == agreement_of([_LEFT] * 3) == 1
    assert agreement_of([_LEFT, _RIGHT]) == pytest.approx(0)
    three_to_one = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25)) / math.log(4)
    assert agreement_of([_LEFT, _LEFT, _RIGHT, _LEFT]) == pytest.approx(1 - three_to_one)
    unsure = {"left": 0.5, "right": 0.5}  # alike and unsure is agreement too
    assert agreement_of([unsure, unsure]) == pytest.approx(1)
    assert mean_distribution([_LEFT, unsure]) == {"left": 0.75, "right": 0.25}


def test_confidence_is_the_product_of_what_is_known() -> None:
    sure, mass, nothing = _report(certainty=0.5), _report(label_mass=0.8), _report()
    assert confidence_of([_LEFT], sure, mass) == pytest.approx(0.4)
    assert confidence_of([_LEFT], nothing, mass) == pytest.approx(0.8)
    assert confidence_of([_LEFT], nothing, nothing) is None
    assert confidence_of([_LEFT, _LEFT], nothing, nothing) == 1
    assert confidence_of([_LEFT, _RIGHT], sure, mass) == pytest.approx(0)


def test_a_report_about_several_views() -> None:
    one = StageReport(text="I see", tokens=3, milliseconds=5.0, certainty=0.25, label_mass=0.5)
    other = StageReport(text="", tokens=4, milliseconds=2.0, certainty=0.75)
    both = StageReport(text="I see", tokens=7, milliseconds=5.0, certainty=0.5, label_mass=0.5)
    assert combined([one, other]) == both
    assert combined([one]) == one
