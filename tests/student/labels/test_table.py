"""Labels from a real teacher: asked for once, masked where there is none, of one teacher alone."""

from typing import Any

import numpy as np
import pytest
import torch

from gridworld.planner import plan
from gridworld.views import EMPTY, code
from student.labels.failures import Failures
from student.labels.table import LabelTable, TeacherChanged, UselessTeacher
from teacher_api.client import TeacherClient, TeacherUnavailable
from teacher_api.schemas import ErrorBody
from tests.conftest import StartTeacher, TeacherProcess
from tests.student.labels.lookup import labels_of
from worlds.minigrid import Layout, MinigridWorld, Vocabulary, layout_of
from worlds.world import Environments

pytestmark = pytest.mark.integration

LAYOUT = layout_of("MiniGrid-LavaGapS5-v0")


def _observations(layout: Layout = LAYOUT, seed: int = 1) -> tuple[Vocabulary, np.ndarray]:
    vocabulary, rng = Vocabulary(), np.random.default_rng(seed)
    envs = Environments(MinigridWorld(layout, vocabulary), 8, seed)
    rows = [envs.reset()]
    for _ in range(19):
        rows.append(envs.step(rng.integers(0, 3, 8)).obs_NK)
    return vocabulary, np.concatenate(rows)


@pytest.mark.parametrize("env_id", ["MiniGrid-LavaGapS5-v0", "MiniGrid-GoToDoor-5x5-v0"])
def test_labels_are_the_teachers_answers_each_state_asked_once(client: TeacherClient, env_id: str) -> None:
    layout = layout_of(env_id)
    vocabulary, obs_BK = _observations(layout)
    table = LabelTable(MinigridWorld(layout, vocabulary), client)
    labels = labels_of(table, obs_BK)
    task = "lava_gap" if "Lava" in env_id else "go_to_door"
    for row, probs_A in zip(obs_BK, labels.probs_BA, strict=True):
        planned = plan(layout.view(row), task, vocabulary.decode(layout.words(row)), layout.actions)
        np.testing.assert_allclose(probs_A, list(planned.probabilities.values()), atol=1e-6)
    assert labels.given_B.all()
    distinct = len({row.tobytes() for row in obs_BK})
    assert table.states == distinct == table.asked + table.store_hits
    labels_of(table, obs_BK[::-1].copy())
    assert distinct == table.asked + table.store_hits


def test_a_failed_answer_is_a_masked_label_and_not_asked_again(client: TeacherClient) -> None:
    vocabulary, obs_BK = _observations()
    without_goal = obs_BK[0].copy()
    without_goal[without_goal == code("goal", "green")] = EMPTY
    table = LabelTable(MinigridWorld(LAYOUT, vocabulary), client)
    labels = labels_of(table, np.stack([obs_BK[0], without_goal]))
    assert labels.given_B.tolist() == [True, False]
    assert (table.failed, table.states) == (1, 2)
    questions = table.asked + table.store_hits
    assert labels_of(table, without_goal[None]).given_B.tolist() == [False]
    assert table.asked + table.store_hits == questions


def test_failed_labels_are_counted_by_reason_whatever_comes_first() -> None:
    def error(mission: str, **more: Any) -> ErrorBody:
        return ErrorBody(status=422, field="mission", reason=f"the mission {mission!r} names no key", **more)

    answers = [(3, error("b")), (1, error("a")), (2, None), (4, ErrorBody(status=504, reason="after 9 s"))]
    one, other = Failures(), Failures()
    for row, outcome in answers:
        one.add(row, outcome)
    for row, outcome in reversed(answers):
        other.add(row, outcome)
    assert one.report() == other.report()
    assert one.report()[0] == {
        "reason": "422 mission: the mission '…' names no key",
        "count": 2,
        "example": "the mission 'a' names no key",
    }
    assert str(one).startswith("2 x 422 mission: the mission '…' names no key; 1 x ")
    again = Failures()
    again.restore(one.state(), 4)
    again.add(0, error("c"))
    assert (len(again), again.example) == (5, "the mission 'c' names no key")
    again.restore(None, 7)
    assert len(again) == 7


def test_a_teacher_that_answers_nothing_at_all_is_an_error(client: TeacherClient) -> None:
    vocabulary, obs_BK = _observations()
    without_goal = obs_BK.copy()
    without_goal[:, : LAYOUT.cells] = EMPTY
    with pytest.raises(UselessTeacher, match=r"answered none of the first 18.*no green goal"):
        labels_of(LabelTable(MinigridWorld(LAYOUT, vocabulary), client), np.unique(without_goal, axis=0))


def test_a_table_comes_back_from_its_state(client: TeacherClient) -> None:
    vocabulary, obs_BK = _observations()
    without_goal = obs_BK[0].copy()
    without_goal[without_goal == code("goal", "green")] = EMPTY
    obs_BK = np.concatenate([obs_BK, without_goal[None]])
    table = LabelTable(MinigridWorld(LAYOUT, vocabulary), client)
    labels = labels_of(table, obs_BK)
    again = LabelTable(MinigridWorld(LAYOUT, vocabulary), client)
    again.restore(table.state())
    questions = (again.asked, again.store_hits, again.failed)
    assert questions == (table.asked, table.store_hits, table.failed)
    restored = labels_of(again, obs_BK)
    assert (again.asked, again.store_hits, again.failed) == questions
    torch.testing.assert_close(restored.probs_BA, labels.probs_BA, rtol=0, atol=0)
    assert restored.given_B.tolist() == labels.given_B.tolist()
    assert again.failures.report() == table.failures.report()


def test_another_teacher_behind_the_address_is_noticed_at_its_first_answer(
    teacher_process: StartTeacher,
) -> None:
    vocabulary, obs_BK = _observations()
    first, second = teacher_process(), teacher_process("--noise", "0.5")
    with TeacherClient(first.url, deadline_s=30) as client:
        table = LabelTable(MinigridWorld(LAYOUT, vocabulary), client)
        table.start()
        with TeacherClient(second.url, deadline_s=30) as other:
            table._client = other  # as if the second had been started at the first one's address
            with pytest.raises(TeacherChanged, match=f"learns from the teacher {table.identity}"):
                labels_of(table, obs_BK)
            assert table.asked + table.store_hits == 0
            assert not table.stored()[1].given_B.any()
            resumed, allowed = (
                LabelTable(MinigridWorld(LAYOUT, vocabulary), other, allow_change=allow)
                for allow in (False, True)
            )
            for each in (resumed, allowed):
                each.restore(table.state())
            with pytest.raises(TeacherChanged):
                resumed.start()
            allowed.start()
            assert labels_of(allowed, obs_BK).given_B.all()
            assert allowed.identity != table.identity


def test_no_teacher_at_the_address(shared_teacher: TeacherProcess) -> None:
    with (
        TeacherClient("http://127.0.0.1:9", deadline_s=0.5) as client,
        pytest.raises(TeacherUnavailable, match=r"127\.0\.0\.1:9"),
    ):
        LabelTable(MinigridWorld(LAYOUT, Vocabulary()), client).start()
