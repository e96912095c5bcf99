"""Read-outs compared with their formulas."""

import json
import math

import pytest
from scipy.special import softmax

from teacher_server.prompting.readout import (
    Unreadable,
    from_label_scores,
    from_numbers,
    hardened,
    numbers_schema,
)

pytestmark = pytest.mark.unit

_ACTIONS = ("left", "right", "forward")


@pytest.mark.parametrize("temperature", [0.25, 1.0, 4.0])
def test_labels_are_a_softmax_and_the_mass_is_their_probability(temperature: float) -> None:
    scores = {"left": -0.5, "right": -2.0, "forward": -9.0}
    found, mass = from_label_scores(scores, temperature=temperature, min_mass=0)
    assert list(found) == list(scores)
    assert list(found.values()) == pytest.approx(softmax([s / temperature for s in scores.values()]))
    assert mass == pytest.approx(sum(math.exp(s) for s in scores.values()))


def test_far_away_labels_still_make_a_distribution() -> None:
    found, mass = from_label_scores({"left": -900.0, "right": -901.0}, temperature=1, min_mass=0)
    assert found["left"] == pytest.approx(1 / (1 + math.exp(-1)))
    assert mass == 0


def test_too_little_mass_is_no_answer() -> None:
    scores = {"left": math.log(0.2), "right": math.log(0.1)}
    assert from_label_scores(scores, temperature=1, min_mass=0.29)[1] == pytest.approx(0.3)
    with pytest.raises(Unreadable, match=r"probability of 0\.3 together, less than 0\.31") as caught:
        from_label_scores(scores, temperature=1, min_mass=0.31)
    assert caught.value.fault == "label_mass"


@pytest.mark.parametrize("score", [math.nan, -math.inf, 800.0])
def test_scores_that_are_no_numbers_are_no_answer(score: float) -> None:
    with pytest.raises(Unreadable) as caught:
        from_label_scores({"left": score, "right": score}, temperature=1, min_mass=0)
    assert caught.value.fault == "scores"


def test_numbers_within_the_tolerance_are_normalised() -> None:
    text = '{"left": 0.5, "right": 0.25, "forward": 0.2}'
    found = from_numbers(text, _ACTIONS, tolerance=0.051)
    assert found == {"left": 0.5 / 0.95, "right": 0.25 / 0.95, "forward": 0.2 / 0.95}
    with pytest.raises(Unreadable, match=r"sum to 0\.95, not to 1 within 0\.04") as caught:
        from_numbers(text, _ACTIONS, tolerance=0.04)
    assert caught.value.fault == "sum"


def test_numbers_come_back_in_the_order_asked() -> None:
    found = from_numbers('{"right": 1, "forward": 0, "left": 0}', _ACTIONS, tolerance=0)
    assert list(found) == list(_ACTIONS)


@pytest.mark.parametrize(
    "text",
    [
        "",
        '{"left": 0.5, "right": 0.5',
        "[" * 100_000,
        "[0.5, 0.25, 0.25]",
        '{"left": 0.5, "right": 0.5}',
        '{"left": 0.5, "right": 0.5, "forward": 0, "done": 0}',
        '{"left": "0.5", "right": 0.5, "forward": 0}',
        '{"left": true, "right": 0, "forward": 0}',
        '{"left": 1.5, "right": -0.5, "forward": 0}',
        '{"left": NaN, "right": 0.5, "forward": 0.5}',
    ],
)
def test_anything_else_is_no_answer(text: str) -> None:
    with pytest.raises(Unreadable) as caught:
        from_numbers(text, _ACTIONS, tolerance=1)
    assert caught.value.fault == "schema"


def test_nothing_at_all_is_never_normalised() -> None:
    with pytest.raises(Unreadable) as caught:
        from_numbers('{"left": 0, "right": 0, "forward": 0}', _ACTIONS, tolerance=1)
    assert caught.value.fault == "sum"


def test_the_schema_asks_for_just_what_can_be_read() -> None:
    schema = numbers_schema(_ACTIONS)
    assert list(schema["properties"]) == list(_ACTIONS)
    assert json.loads(json.dumps(schema)) == schema


def test_hard_targets_are_the_arg_max() -> None:
    assert hardened({"left": 0.2, "right": 0.4, "forward": 0.4}) == {"left": 0, "right": 1, "forward": 0}
