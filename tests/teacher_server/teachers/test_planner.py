"""The planner teacher: its identity, its mistakes, and the questions that it cannot answer."""

import asyncio
import hashlib
import json
from collections.abc import Sequence
from typing import Literal, get_args

import gymnasium
import numpy as np
import pytest

from gridworld.pictures import draw, read
from gridworld.planner import PLANNER_VERSION, plan
from gridworld.tasks import ALL_TASKS, TASKS, Fault, task_of
from gridworld.views import view_of
from teacher_server.settings import Settings
from teacher_server.teachers.base import CannotAnswer, Observation
from teacher_server.teachers.planner import PlannerTeacher
from teacher_server.teachers.registry import CannotTeach, choose_teacher

pytestmark = pytest.mark.unit


def _observation(env_id: str, seed: int, tile: int = 8) -> Observation:
    with gymnasium.make(env_id) as env:
        env.reset(seed=seed)
        picture = draw(view_of(env), tile)
        mission: str = env.unwrapped.mission  # type: ignore[attr-defined]
    task = task_of(env_id)
    return Observation(picture, mission, task.key, task.useful)


@pytest.fixture(scope="module")
def observations() -> list[Observation]:
    """Several hundred distinct states."""
    return [_observation("MiniGrid-Fetch-8x8-N3-v0", seed) for seed in range(400)]


def _answers(teacher: PlannerTeacher, observations: Sequence[Observation]) -> list[dict[str, float]]:
    async def ask() -> list[dict[str, float]]:
        answers = [await teacher.answer(observation) for observation in observations]
        await teacher.close()
        return [answer.probabilities or {} for answer in answers]

    return asyncio.run(ask())


def _best(answer: dict[str, float]) -> str:
    return max(answer, key=answer.__getitem__)


def test_the_identity_holds_what_changes_answers_and_nothing_else() -> None:
    plain = PlannerTeacher()
    assert plain.identity.startswith("planner-")
    assert PlannerTeacher(delay_s=5).identity == plain.identity
    assert PlannerTeacher(seed=3).identity == plain.identity, "without noise the seed changes nothing"
    noisy = PlannerTeacher(noise=0.1)
    assert len({plain.identity, noisy.identity, PlannerTeacher(noise=0.1, seed=3).identity}) == 3
    assert noisy.description["version"] == PLANNER_VERSION
    # Stored answers belong to these identities
    assert plain.identity == "planner-41a21daf5e1d557e"
    assert PlannerTeacher(noise=0.1, seed=3).identity == "planner-ae329dcc4af7b6b4"
    teachers = [PlannerTeacher(fault=fault, noise=noise) for fault in get_args(Fault) for noise in (0.0, 0.1)]
    assert len({teacher.identity for teacher in (plain, noisy, *teachers)}) == 8


def test_a_fault_comes_before_noise() -> None:
    """A mirrored planner exchanges left and right; the noise then replaces the best of these answers."""
    observations = [_observation("MiniGrid-LavaGapS7-v0", seed) for seed in range(60)]
    right = _answers(PlannerTeacher(), observations)
    mirrored = _answers(PlannerTeacher(fault="mirrored"), observations)
    assert mirrored == [p | {"left": p["right"], "right": p["left"]} for p in right]
    assert mirrored != right
    both = _answers(PlannerTeacher(fault="mirrored", noise=0.5), observations)
    wrong = [_best(a) not in _tops(b) for a, b in zip(both, mirrored, strict=True)]
    assert 0.3 < np.mean(wrong) < 0.7
    assert [a for a, mistaken in zip(both, wrong, strict=True) if not mistaken] == [
        a for a, mistaken in zip(mirrored, wrong, strict=True) if not mistaken
    ]


@pytest.mark.parametrize("teacher", ["uniform", "prompted"])
def test_a_fault_of_another_teacher_is_refused(teacher: Literal["uniform", "prompted"]) -> None:
    with pytest.raises(CannotTeach, match="`fault` blind is a fault of the planner"):
        choose_teacher(Settings(teacher=teacher, fault="blind"))


def test_noise_is_the_share_of_wrong_answers(observations: list[Observation]) -> None:
    right = _answers(PlannerTeacher(), observations)
    wrong = _answers(PlannerTeacher(noise=0.3), observations)
    mistaken = [_best(a) not in _tops(b) for a, b in zip(wrong, right, strict=True)]
    assert 0.2 < np.mean(mistaken) < 0.4
    for a, b in zip(wrong, right, strict=True):
        assert list(a) == list(b)
        assert sum(a.values()) == pytest.approx(1)


def _tops(answer: dict[str, float]) -> set[str]:
    return {action for action, p in answer.items() if p == max(answer.values())}


def test_the_same_picture_gets_the_same_mistake(observations: list[Observation]) -> None:
    some = observations[:100]
    assert (
        _answers(PlannerTeacher(noise=0.5, seed=1), some)
        == _answers(PlannerTeacher(noise=0.5, seed=1), some[::-1])[::-1]
    )
    assert _answers(PlannerTeacher(noise=0.5, seed=1), some) != _answers(
        PlannerTeacher(noise=0.5, seed=2), some
    )


def test_all_answers_are_wrong_at_noise_1(observations: list[Observation]) -> None:
    right, wrong = (_answers(PlannerTeacher(noise=p), observations[:50]) for p in (0.0, 1.0))
    assert all(_best(a) not in _tops(b) for a, b in zip(wrong, right, strict=True))


def test_the_analysis_alone_has_no_action() -> None:
    observation = _observation("MiniGrid-LavaGapS5-v0", 0)
    asked = Observation(observation.picture, observation.mission, "lava_gap", observation.actions, "analysis")

    async def ask() -> None:
        teacher = PlannerTeacher()
        answer = await teacher.answer(asked)
        assert (answer.probabilities, answer.action) == (None, None)
        assert answer.analysis.text
        await teacher.close()

    asyncio.run(ask())


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("image", {"picture": np.zeros((40, 40, 3), np.uint8)}),
        ("image", {"picture": np.zeros((41, 43, 3), np.uint8)}),
        ("mission", {"mission": "dance"}),
        ("actions", {"actions": ("toggle", "done")}),
    ],
)
def test_what_cannot_be_answered_says_which_field_is_why(field: str, change: dict[str, object]) -> None:
    asked = vars(_observation("MiniGrid-Fetch-5x5-N2-v0", 0)) | change
    with pytest.raises(CannotAnswer) as caught:
        _answers(PlannerTeacher(), [Observation(**asked)])
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("tasks", "written_down"), [(tuple(TASKS), "b99753e889c04254"), (("go_to_object",), "eed8c021a6c2abf1")]
)
def test_the_version_stands_for_the_answers(tasks: tuple[str, ...], written_down: str) -> None:
    """If this fails, the planner's answers have changed: raise PLANNER_VERSION, then update both here."""
    env_ids = [env_id for task in tasks for env_id in ALL_TASKS[task].env_ids]
    asked = [_observation(env_id, seed) for env_id in env_ids for seed in range(8)]
    plans = [plan(read(a.picture), a.task, a.mission, a.actions) for a in asked]
    answers = [[p.analysis, *(f"{a} {x:.9f}" for a, x in p.probabilities.items())] for p in plans]
    digest = hashlib.sha256(json.dumps(answers).encode()).hexdigest()[:16]
    assert (PLANNER_VERSION, digest) == ("2", written_down)
