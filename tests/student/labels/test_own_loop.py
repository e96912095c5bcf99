"""Labels for training loops of the user's own, from a real teacher."""

import numpy as np
import pytest
import torch

from gridworld.pictures import Picture, draw
from gridworld.planner import plan
from gridworld.tasks import ACTIONS
from gridworld.views import View, view_of
from student.algorithms.distillation import Labels, kl_to_teacher
from student.labels.own_loop import TeacherLabels
from student.labels.table import UselessTeacher
from tests.conftest import TeacherProcess
from worlds.minigrid import make

pytestmark = pytest.mark.integration

_MISSION = "avoid the lava and get to the green goal square"


@pytest.fixture(scope="module")
def views() -> list[View]:
    """Different states of LavaGap."""
    env = make("MiniGrid-LavaGapS5-v0")
    env.reset(seed=1)
    found = []
    for action in (0, 0, 0, 1, 2):
        found.append(view_of(env))
        env.step(action)
    return found


def _labels(teacher: TeacherProcess) -> TeacherLabels:
    return TeacherLabels(teacher.url, task="lava_gap", actions=ACTIONS, mission=_MISSION)


def test_each_state_is_asked_about_once_and_has_the_teachers_probabilities(
    shared_teacher: TeacherProcess, views: list[View]
) -> None:
    drawn: list[int] = []

    def drawing(i: int) -> Picture:
        drawn.append(i)
        return draw(views[i])

    with _labels(shared_teacher) as labels:
        first = np.array([[10, 1], [20, 1], [10, 1]], np.int32)
        labels.see(first[:2], drawing)
        labels.see(first, drawing)
        found = labels.of(first)
        assert drawn == [0, 1]
        assert labels.asked + labels.stored == 2
        assert found.given_B.tolist() == [True] * 3
        for row, view in ((0, views[0]), (1, views[1]), (2, views[0])):
            expected = plan(view, "lava_gap", _MISSION, ACTIONS).probabilities
            assert found.probs_BA[row].tolist() == pytest.approx(list(expected.values()), abs=1e-6)
        unseen = labels.of(np.array([[30, 1], [10, 1]], np.int32))
        assert unseen.given_B.tolist() == [False, True]
        # A state that was looked up before it was seen is asked about when it is seen
        labels.see(np.array([[30, 1]], np.int32), lambda _: draw(views[2]))
        assert labels.of(np.array([[30, 1]], np.int32)).given_B.tolist() == [True]


def test_the_kl_is_that_of_the_labelled_states(shared_teacher: TeacherProcess, views: list[View]) -> None:
    logits_BA = torch.randn(3, len(ACTIONS), generator=torch.Generator().manual_seed(1), requires_grad=True)
    with _labels(shared_teacher) as labels:
        obs = {"image": np.arange(6, dtype=np.uint8).reshape(3, 2), "direction": np.array([0, 1, 2])}
        labels.see({name: part[:2] for name, part in obs.items()}, lambda i: draw(views[i]))
        kl = labels.kl(obs, logits_BA)
        found = labels.of(obs)
    assert found.given_B.tolist() == [True, True, False]
    both = Labels(found.probs_BA[:2], found.given_B[:2])
    assert kl.item() == pytest.approx(kl_to_teacher(logits_BA[:2].log_softmax(1), both).item())
    kl.backward()  # type: ignore[no-untyped-call]
    assert logits_BA.grad is not None
    assert logits_BA.grad[:2].abs().sum() > 0
    assert not logits_BA.grad[2].any()


def test_a_state_without_an_answer_has_no_label(shared_teacher: TeacherProcess, views: list[View]) -> None:
    black = np.zeros((140, 140, 3), np.uint8)
    with _labels(shared_teacher) as labels:
        labels.see(np.array([1, 2]), lambda i: draw(views[0]) if i else black)
        assert labels.of(np.array([1, 2])).given_B.tolist() == [False, True]
        assert labels.failed == 1


def test_missions_can_differ(shared_teacher: TeacherProcess, views: list[View]) -> None:
    with _labels(shared_teacher) as labels:
        labels.see(np.array([1, 2]), lambda _: draw(views[0]), ["get to the red goal square", _MISSION])
        assert labels.of(np.array([1, 2])).given_B.tolist() == [False, True]


def test_what_cannot_be_used_is_refused(shared_teacher: TeacherProcess, views: list[View]) -> None:
    with pytest.raises(UselessTeacher, match=r"knows lava_gap, .*, and not maze"):
        TeacherLabels(shared_teacher.url, task="maze", actions=ACTIONS)
    with _labels(shared_teacher) as labels:
        assert labels.of(np.array([1])).given_B.tolist() == [False]
        labels.see(np.array([1], np.int64), lambda _: draw(views[0]))
        with pytest.raises(ValueError, match="an observation has 4 bytes, and had 8 before"):
            labels.see(np.array([1], np.int32), lambda _: draw(views[0]))
