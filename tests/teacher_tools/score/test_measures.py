"""Measures against formulas, and intervals against teachers with a known share of mistakes."""

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest

from gridworld.pictures import draw
from gridworld.planner import plan
from gridworld.tasks import ACTIONS, TASKS
from teacher_api.schemas import Answer, ErrorBody
from teacher_server.teachers.base import Observation
from teacher_server.teachers.planner import PlannerTeacher
from teacher_tools.score import measures
from teacher_tools.score.episodes import State, held_out_states
from teacher_tools.score.measures import JudgedAnswer
from teacher_tools.score.results import Agreement, Mean, PolicyResult, Score, Share, TaskScore
from teacher_tools.score.tables import verdicts
from tests.teacher_tools.score.scenes import answer

pytestmark = pytest.mark.unit

_ENV = "MiniGrid-Fetch-5x5-N2-v0"


@pytest.fixture(scope="module")
def states() -> list[State]:
    """Different states with their optimal actions."""
    return held_out_states(_ENV, "fetch", 100, seed=0)


def _answers(states: Sequence[State], noise: float, seed: int) -> list[Answer]:
    """Returns the real planner teacher's answers, about small pictures for speed."""

    async def ask() -> list[Answer]:
        teacher = PlannerTeacher(noise=noise, seed=seed)
        scenes = [state.scene for state in states]
        given = [
            await teacher.answer(Observation(draw(scene.view, 8), scene.mission, scene.task, ACTIONS))
            for scene in scenes
        ]
        await teacher.close()
        return [answer(each.probabilities or {}, each.analysis.text) for each in given]

    return asyncio.run(ask())


def test_states_are_different_reproducible_and_labelled_by_the_planner(states: list[State]) -> None:
    assert len({state.scene.key for state in states}) == len(states) == 100
    again = held_out_states(_ENV, "fetch", 100, seed=0)
    assert [state.scene.key for state in again] == [state.scene.key for state in states]
    other = held_out_states(_ENV, "fetch", 100, seed=1)
    assert [state.scene.key for state in other] != [state.scene.key for state in states]
    for state in states[:30]:
        planned = plan(state.scene.view, "fetch", state.scene.mission, TASKS["fetch"].useful).probabilities
        assert {a for a, p in planned.items() if p > max(planned.values()) - 1e-12} == set(state.optimal)


def test_an_environment_with_few_states_returns_all_of_them() -> None:
    few = held_out_states("MiniGrid-LavaGapS5-v0", "lava_gap", 10_000, seed=0)
    assert 50 < len(few) < 200


def test_the_mistake_rate_is_unbiased_and_its_interval_has_its_coverage(states: list[State]) -> None:
    rates, held = [], 0
    for seed in range(20):
        found = measures.agreement(states, _answers(states, 0.3, seed))
        assert found is not None
        assert found.mistakes is not None
        rates.append(found.mistakes.value)
        held += found.mistakes.low <= 0.3 <= found.mistakes.high
    assert np.mean(rates) == pytest.approx(0.3, abs=3 * np.sqrt(0.21 / 100 / 20))
    assert held >= 16


def test_a_state_without_wrong_actions_does_not_count_for_mistakes(states: list[State]) -> None:
    all_good = State(states[0].scene, TASKS["fetch"].useful)
    nothing = dict.fromkeys(ACTIONS, 0.0)
    answers = [answer(nothing | {"left": 1.0}), answer(nothing | {"drop": 1.0})]
    found = measures.agreement([all_good, states[1]], answers)
    assert found is not None
    assert found.mistakes is not None
    assert (found.mistakes.count, found.mistakes.of) == (1, 1)
    assert (found.optimal.count, found.optimal.of) == (1, 2)


def test_chance_equals_the_mean_of_random_and_of_shuffled_actions(states: list[State]) -> None:
    answers, rng = _answers(states, 0.5, 1), np.random.default_rng(0)
    found = measures.agreement(states, answers)
    assert found is not None
    chosen, useful = [str(each.action) for each in answers], TASKS["fetch"].useful
    drawn, reshuffled = [], []
    for _ in range(200):
        shuffled = rng.permutation(chosen)
        reshuffled.append(np.mean([a in s.optimal for a, s in zip(shuffled, states, strict=True)]))
        drawn.append(np.mean([rng.choice(useful) in state.optimal for state in states]))
    assert found.reshuffled == pytest.approx(np.mean(reshuffled), abs=0.02)
    assert found.uniform == pytest.approx(np.mean(drawn), abs=0.02)


def test_failures_are_excluded_and_counted_by_fault(states: list[State]) -> None:
    cut = ErrorBody(status=502, reason="cut", stage="analysis", fault="truncated")
    refused = ErrorBody(status=422, field="image", reason="no")
    right = answer({states[2].optimal[0]: 0.75, "drop": 0.25}, label_mass=0.5)
    found = measures.agreement(states[:4], [cut, refused, right, cut])
    assert found is not None
    assert (found.optimal.of, found.by_state, found.probability_on_optimal.value) == (1, "--1-", 0.75)
    taken = measures.costs([cut, refused, right, cut], 2.0)
    assert taken.failures == {"analysis, truncated": 2, "status 422": 1}
    assert taken.analysis_ms is not None
    assert taken.label_mass is not None
    assert (taken.analysis_ms.median, taken.analysis_tokens, taken.label_mass.mean) == (10, 100, 0.5)
    assert measures.agreement(states[:1], [cut]) is None


def test_the_calibration_error_equals_the_formula(states: list[State]) -> None:
    single = [state for state in states if len(state.optimal) == 1]
    double = next(state for state in states if len(state.optimal) > 1)

    def sure(state: State, confidence: float, right: bool) -> JudgedAnswer:
        first, rest = (state.optimal[0], "drop") if right else ("drop", state.optimal[0])
        return JudgedAnswer(state, answer({first: confidence, rest: 1 - confidence}))

    # Bins (0.8, 0.9] and (0.9, 1]: |0.5 - 0.85| * 4 / 8 + |0.75 - 0.975| * 4 / 8
    cases = [(0.81, True), (0.9, True), (0.84, False), (0.85, False)]
    cases += [(0.91, True), (1.0, True), (0.99, True), (1.0, False)]
    answers = [sure(state, *each) for state, each in zip(single, cases, strict=False)]
    found = measures.calibration([*answers, sure(double, 0.6, True)])
    assert found is not None
    assert found.of == 8
    assert [(each.above, each.optimal.of) for each in found.bins] == [(0.8, 4), (0.9, 4)]
    assert found.error == pytest.approx(0.35 / 2 + 0.225 / 2)


def test_the_confidence_is_compared_with_correctness(states: list[State]) -> None:
    def sure(state: State, confidence: float | None, right: bool) -> JudgedAnswer:
        given = answer({state.optimal[0] if right else "drop": 1.0})
        return JudgedAnswer(state, given.model_copy(update={"confidence": confidence}))

    # Bins (0.4, 0.5] and (0.9, 1]: |1 / 2 - 0.5| * 2 / 6 + |3 / 4 - 0.975| * 4 / 6
    cases = [(0.5, True), (0.5, False), (0.95, False), (0.95, True), (1.0, True), (1.0, True), (None, False)]
    found = measures.confidence([sure(state, *each) for state, each in zip(states, cases, strict=False)])
    assert found is not None
    assert (found.of, found.confidence) == (6, pytest.approx(4.9 / 6))
    assert found.error == pytest.approx(0.225 * 4 / 6)
    levels = {level.least: (level.answers.count, level.optimal) for level in found.levels}
    counts = {least: (count, optimal.count if optimal else 0) for least, (count, optimal) in levels.items()}
    assert counts == {0.5: (6, 4), 0.8: (4, 3), 0.9: (4, 3), 0.95: (4, 3), 0.99: (2, 2)}
    assert measures.confidence([sure(states[0], None, True)]) is None
    (low,) = [
        level for level in measures.confidence([sure(states[0], 0.4, True)]).levels if level.least == 0.5
    ]  # type: ignore[union-attr]
    assert (low.answers.count, low.optimal) == (0, None)


def test_the_worst_mistakes_are_the_most_confident_wrong_answers(states: list[State]) -> None:
    answers = _answers(states, 0.5, 0)
    worst = measures.worst_mistakes(measures.judged(states, answers))
    assert len(worst) == 6
    confidences = [mistake.probabilities[mistake.action] for mistake in worst]
    wrong = [
        max((each.probabilities or {}).values())
        for state, each in zip(states, answers, strict=True)
        if each.action not in state.optimal
    ]
    assert confidences == sorted(wrong, reverse=True)[:6]
    assert all(mistake.action not in mistake.optimal for mistake in worst)


def _task_score(success: int, chance: int, optimal: int) -> TaskScore:
    def share(count: int) -> Share:
        found = Share.among([True] * count + [False] * (100 - count))
        assert found is not None
        return found

    def played(count: int) -> PolicyResult:
        return PolicyResult(success=share(count), mean_return=Mean(value=0, low=0, high=0), length=1)

    agreement = Agreement(
        optimal=share(optimal),
        mistakes=None,
        probability_on_optimal=Mean(value=0, low=0, high=0),
        uniform=0.3,
        reshuffled=0.35,
        by_state="",
    )
    return TaskScore(
        env="MiniGrid-Fetch-6x6-N2-v0",
        task="fetch",
        states=100,
        sampled=played(success),
        argmax=played(success),
        chance=played(chance),
        agreement=agreement,
        perception=None,
        reasoning=None,
        calibration=None,
        costs=measures.costs([], 0.0),
        mistakes=[],
    )


@pytest.mark.parametrize(
    ("success", "chance", "optimal", "expected"),
    [
        (
            *(52, 50, 33),
            "not distinguishable from chance in agreement with the planner, success (sampled) and success"
            " (arg-max).",
        ),
        (
            98,
            50,
            90,
            "better than chance in agreement with the planner, success (sampled) and success (arg-max).",
        ),
        (
            *(10, 50, 90),
            "better than chance in agreement with the planner; worse than chance in success (sampled) and"
            " success (arg-max).",
        ),
        (
            *(52, 50, 5),
            "not distinguishable from chance in success (sampled) and success (arg-max); worse than chance in"
            " agreement with the planner.",
        ),
    ],
)
def test_verdicts_compare_intervals_with_those_of_chance(
    success: int, chance: int, optimal: int, expected: str
) -> None:
    tasks = {"MiniGrid-Fetch-6x6-N2-v0": _task_score(success, chance, optimal)}
    score = Score(identity="prompted-0", teacher={}, asked_with={}, tasks=tasks)
    assert verdicts(score)[0] == f"Fetch-6x6-N2: {expected}"
