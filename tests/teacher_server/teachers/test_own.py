"""Teachers of the user's own: what is served, and what is refused."""

import asyncio
import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from student.settings import TrainSettings
from student.trainer import train
from teacher_api.client import QuestionRefused, TeacherClient
from teacher_api.schemas import Question, Stage
from teacher_server.settings import Settings
from teacher_server.teachers.base import CannotAnswer, Observation, TeacherAnswer, UnreadableAnswer
from teacher_server.teachers.own import ServedOwnTeacher
from teacher_server.teachers.registry import CannotTeach, choose_teacher
from tests.conftest import StartTeacher
from worlds.registry import world_of
from worlds.world import stacked

_HERE = f"{__name__}"
_LAKE = "FrozenLake-v1@is_slippery=false"


class Even:
    """A teacher in ten lines."""

    identity = {"version": 1}  # noqa: RUF012 - as its documentation shows it
    tasks = {"walk": ("back", "on")}  # noqa: RUF012
    says: ClassVar[Any] = {"back": 0.25, "on": 0.75}

    def answer(self, observation: Observation) -> Any:
        if isinstance(self.says, Exception):
            raise self.says
        return self.says


class Slow(Even):
    """Its answer is awaited."""

    async def answer(self, observation: Observation) -> Any:
        return {"on": 1.0}, f"a picture of {observation.picture.shape[1]} pixels"


made = Even()
NoIdentity = type("NoIdentity", (), {"tasks": Even.tasks, "answer": Even.answer})
NoTasks = type("NoTasks", (), {"identity": {}, "answer": Even.answer})
NoAnswer = type("NoAnswer", (), {"identity": {}, "tasks": Even.tasks})
BadNames = type("BadNames", (Even,), {"tasks": {"walk": ("on", "Back!")}})
BadIdentity = type("BadIdentity", (Even,), {"identity": {"weights": object()}})


def _served(name: str) -> ServedOwnTeacher:
    teacher = choose_teacher(Settings(_cli_parse_args=[], teacher=f"{_HERE}:{name}"))
    assert isinstance(teacher, ServedOwnTeacher)
    return teacher


def _ask(teacher: ServedOwnTeacher, stage: Stage = "both") -> TeacherAnswer:
    observation = Observation(np.zeros((4, 8, 3), np.uint8), "go", "walk", ("on", "back"), stage)
    return asyncio.run(teacher.answer(observation))


@pytest.mark.unit
def test_a_class_and_an_object_are_served_with_their_identity() -> None:
    for name in ("Even", "made"):
        teacher = _served(name)
        assert (teacher.kind, teacher.tasks) == ("Even", {"walk": ("back", "on")})
        assert teacher.description == {"kind": "Even", "version": 1}
        assert teacher.identity == _served("Even").identity != _served("Slow").identity
        probabilities = _ask(teacher).probabilities
        assert probabilities == {"on": 0.75, "back": 0.25}
        assert list(probabilities) == ["on", "back"]
        assert _ask(teacher, "analysis").probabilities is None


@pytest.mark.unit
def test_a_coroutine_with_an_analysis_is_awaited() -> None:
    answer = _ask(_served("Slow"))
    assert answer.probabilities == {"on": 1.0, "back": 0.0}
    assert answer.analysis.text == "a picture of 8 pixels"


@pytest.mark.unit
@pytest.mark.parametrize(
    ("says", "error", "why"),
    [
        ([0.5, 0.5], UnreadableAnswer, "returned list, not a dict"),
        ({"on": 0.5, "off": 0.5}, UnreadableAnswer, "a probability of 'off'; the question has on, back"),
        ({"on": "much"}, UnreadableAnswer, "no number"),
        ({"on": 0.5}, UnreadableAnswer, "the sum 1"),
        ({"on": 1.5, "back": -0.5}, UnreadableAnswer, "at least 0"),
        ({"on": float("nan"), "back": 1.0}, UnreadableAnswer, "at least 0"),
        (KeyError("cell"), UnreadableAnswer, "the teacher raised KeyError: 'cell'"),
        (CannotAnswer("image", "too dark"), CannotAnswer, "too dark"),
    ],
)
def test_what_is_no_answer_says_why(says: Any, error: type[Exception], why: str) -> None:
    teacher = _served("Even")
    teacher._own.says = says  # its class's own stays
    with pytest.raises(error, match=why):
        _ask(teacher)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("name", "why"),
    [
        (f"{_HERE}:Nobody", "Nobody cannot be made: AttributeError"),
        ("nowhere:Even", "cannot be made: ModuleNotFoundError"),
        (f"{_HERE}:NoIdentity", "no `identity`"),
        (f"{_HERE}:NoTasks", "no `tasks`"),
        (f"{_HERE}:NoAnswer", "no method `answer"),
        (f"{_HERE}:BadNames", "'Back!' is no action's name"),
        (f"{_HERE}:BadIdentity", "not made of JSON values"),
    ],
)
def test_what_cannot_be_served_is_refused(name: str, why: str) -> None:
    with pytest.raises(CannotTeach, match=why):
        choose_teacher(Settings(_cli_parse_args=[], teacher=name))


@pytest.mark.unit
def test_another_word_than_the_kinds_is_refused() -> None:
    with pytest.raises(ValueError, match="'oracle' is none of planner, uniform, prompted"):
        Settings(_cli_parse_args=[], teacher="oracle")


@pytest.mark.integration
@pytest.mark.usefixtures("examples_on_path")
def test_a_student_of_frozen_lake_learns_from_the_example(
    teacher_process: StartTeacher, tmp_path: Path
) -> None:
    """Every label is asked once; a resumed run equals an uninterrupted one."""
    teacher = teacher_process("--teacher", "value_iteration:FrozenLake")
    world = world_of(_LAKE)
    world.draws = True
    obs_K = stacked([world.environment(lambda _: 1).reset()])[0]
    with TeacherClient(teacher.url, deadline_s=60) as client:
        assert client.teacher().tasks == {"frozen_lake": ("left", "down", "right", "up")}
        question = {"mission": "", "task": "frozen_lake", "actions": world.actions}
        answer = client.ask(Question.about(world.picture(obs_K), **question))
        assert answer.action in ("down", "right")
        with pytest.raises(
            QuestionRefused, match="'forward' is no action of the task frozen_lake: left, down"
        ):
            client.ask(Question.about(world.picture(obs_K), **question | {"actions": ("forward",)}))

    def run(name: str, **more: Any) -> dict[str, Any]:
        settings: dict[str, Any] = {
            "env": _LAKE,
            "teacher": teacher.url,
            "task": "frozen_lake",
            "progress": False,
        }
        settings |= {"frames": 4096, "checkpoint_every": 1024, "out": tmp_path / name}
        return train(TrainSettings.model_validate(settings | more))

    whole = run("whole")
    assert whole["success"] == 1.0
    assert whole["questions"] + whole["store_hits"] <= 16
    assert whole["failed"] == 0
    run("parts", frames=1024)
    parts = train(TrainSettings(resume=tmp_path / "parts", frames=4096, progress=False))
    assert {**parts, "questions": 0, "store_hits": 0, "seconds": 0, "frames_per_second": 0} == {
        **whole,
        "questions": 0,
        "store_hits": 0,
        "seconds": 0,
        "frames_per_second": 0,
    }
    lines = [
        [json.loads(line)["return"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("whole", "parts")
    ]
    assert lines[0] == lines[1]
