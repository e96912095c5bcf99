"""The uniform teacher, alone and over HTTP."""

import asyncio

import numpy as np
import pytest

from gridworld.tasks import ACTIONS, ALL_TASKS
from teacher_api.client import TeacherClient
from teacher_server.teachers.base import Observation, TeacherAnswer
from teacher_server.teachers.uniform import UniformTeacher
from tests.conftest import AskAbout, StartTeacher

_BLANK = np.zeros((8, 8, 3), np.uint8)


def _answer(observation: Observation) -> TeacherAnswer:
    return asyncio.run(UniformTeacher().answer(observation))


@pytest.mark.unit
@pytest.mark.parametrize("asked", [ACTIONS, ACTIONS[:3], ("done", "left")])
@pytest.mark.parametrize("task", ALL_TASKS)
def test_every_action_is_as_good_as_any_other(task: str, asked: tuple[str, ...]) -> None:
    answer = _answer(Observation(_BLANK, "go", task, asked))
    assert answer.probabilities == {action: pytest.approx(1 / len(asked)) for action in asked}
    assert tuple(answer.probabilities or ()) == asked


@pytest.mark.unit
def test_the_analysis_alone_has_no_action() -> None:
    answer = _answer(Observation(_BLANK, "go", "fetch", ACTIONS, "analysis"))
    assert (answer.probabilities, answer.action) == (None, None)
    assert "looks at nothing" in answer.analysis.text


@pytest.mark.integration
def test_it_is_served_and_says_who_it_is(teacher_process: StartTeacher, ask_about: AskAbout) -> None:
    question = ask_about("MiniGrid-Fetch-5x5-N2-v0")
    with TeacherClient(teacher_process("--teacher", "uniform").url, deadline_s=30) as client:
        about, first, again = client.teacher(), client.ask(question), client.ask(question)
    assert (about.kind, about.identity) == ("uniform", UniformTeacher().identity)
    assert about.tasks == {key: task.useful for key, task in ALL_TASKS.items()}
    assert first.probabilities == dict.fromkeys(("left", "right", "forward", "pickup"), 0.25)
    assert (first.teacher, first.stored, again.stored) == (about.identity, False, True)
    assert "looks at nothing" in first.analysis
