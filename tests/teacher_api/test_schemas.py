"""Questions and answers are validated, and errors counted by kind."""

import base64
from typing import Any

import pytest
from pydantic import ValidationError

import gridworld.tasks
from teacher_api.schemas import (
    ACTIONS,
    MAX_MISSION,
    Answer,
    ErrorBody,
    Question,
    StageReport,
    Stages,
    TrainedGrids,
    TrainedOn,
)

pytestmark = pytest.mark.unit

_QUESTION: dict[str, Any] = {"image": "", "mission": "go", "task": "fetch", "actions": ["left", "forward"]}


def _answer(probabilities: dict[str, float], action: str) -> Answer:
    report = StageReport(text="", milliseconds=1)
    return Answer(
        probabilities=probabilities,
        action=action,
        analysis="",
        stages=Stages(analysis=report, action=report),
        teacher="planner-0",
        stored=False,
        milliseconds={},
    )


@pytest.mark.parametrize(
    ("env_id", "task", "size", "told"),
    [
        ("A-v0", "fetch", (6, 6), None),
        ("A-v0", "fetch", (9, 9), None),  # by its name
        ("B-v0", "fetch", (8, 6), None),
        ("B-v0", "fetch", (6, 8), "grids of 6 x 6, 8 x 6 for fetch, and not of 6 x 8"),
        ("B-v0", "door_key", (6, 6), "the tasks fetch, and not on door_key"),
    ],
)
def test_what_a_checkpoint_was_not_trained_on(
    env_id: str, task: str, size: tuple[int, int], told: str | None
) -> None:
    grids = TrainedGrids(task="fetch", sizes=((6, 6), (8, 6)))
    why = TrainedOn(prompts="p", prompts_digest="d", environments={"A-v0": grids}).lacks(env_id, task, size)
    assert why is None if told is None else told in (why or "")


def test_a_training_record_in_words() -> None:
    record = TrainedOn(
        prompts="p",
        prompts_digest="d",
        environments={
            "A-v0": TrainedGrids(task="fetch", sizes=((8, 8), (8, 6))),
            "B-v0": TrainedGrids(task="fetch", sizes=((6, 6), (8, 6))),
        },
    )
    assert str(record) == "fetch (6 x 6, 8 x 6, 8 x 8), with the prompt set p"
    assert str(record.model_copy(update={"samples": 16_000})).startswith("16,000 samples of fetch (6 x 6")


@pytest.mark.parametrize("confidence", [-0.1, 1.1, float("nan")])
def test_a_confidence_is_from_0_to_1(confidence: float) -> None:
    answer = _answer({"left": 1.0}, "left").model_dump()
    assert Answer.model_validate(answer | {"confidence": 0.5}).confidence == 0.5
    with pytest.raises(ValidationError, match="confidence"):
        Answer.model_validate(answer | {"confidence": confidence})


def test_the_wire_and_the_gridworld_know_the_same_actions() -> None:
    assert ACTIONS == gridworld.tasks.ACTIONS


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("actions", []),
        ("actions", ["Fly!"]),
        ("actions", ["left", "left"]),
        ("actions", [f"go_{n}" for n in range(33)]),
        ("actions", "left"),
        ("mission", "x" * (MAX_MISSION + 1)),
        ("mission", None),
        ("stage", "action"),
        ("task", "x" * 65),
        ("image", 3),
        ("stages", "both"),
    ],
)
def test_a_question_with_a_bad_value_is_refused(field: str, value: object) -> None:
    with pytest.raises(ValidationError) as caught:
        Question.model_validate(_QUESTION | {field: value})
    assert caught.value.errors()[0]["loc"][0] == field


def test_an_unknown_action_is_named_and_shortened() -> None:
    with pytest.raises(ValidationError, match="'Fly!' is no action's name"):
        Question.model_validate(_QUESTION | {"actions": ["Fly!"]})
    with pytest.raises(ValidationError) as caught:
        Question.model_validate(_QUESTION | {"actions": ["y" * 10_000]})
    assert len(caught.value.errors()[0]["msg"]) < 200


def test_a_question_about_a_picture_carries_its_bytes() -> None:
    question = Question.about(b"\x89PNG", mission="m", task="fetch", actions=["left"])
    assert base64.b64decode(question.image) == b"\x89PNG"
    assert question.stage == "both"


@pytest.mark.parametrize(
    "probabilities",
    [{"left": 0.5, "right": 0.4}, {"left": 1.5, "right": -0.5}, {"left": float("nan"), "right": 1.0}, {}],
)
def test_an_answer_needs_a_probability_distribution(probabilities: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match="not a probability distribution"):
        _answer(probabilities, "left")


def test_the_action_is_one_of_those_asked() -> None:
    assert _answer({"left": 0.25, "right": 0.75}, "right").action == "right"
    with pytest.raises(ValidationError, match="none of the actions left"):
        _answer({"left": 1.0}, "right")


_SECRETS = ["get a key", "it's", 'say "go"', """it's "both\"""", "don't 'x' 3", "a\\'b", "\n'"]


@pytest.mark.parametrize("mission", _SECRETS)
def test_errors_of_a_kind_have_the_same_name_and_nothing_of_the_question_in_it(mission: str) -> None:
    reason = f"MiniGrid's mission {mission!r} names no key; at most 3.5 of {len(mission)}"
    error = ErrorBody(status=422, field="mission", reason=f"mission: {reason}")
    assert error.kind == "422 mission: MiniGrid's mission '…' names no key; at most N of N"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"status": 502, "stage": "action", "fault": "sum", "reason": "go left"}, "502 action: sum"),
        ({"status": 504, "reason": "no answer within 120 s"}, "504: no answer within N s"),
        (
            {"status": 422, "field": "go left", "reason": "go left: Extra inputs"},
            "422: a field that a question does not have",
        ),
    ],
)
def test_a_kind_has_no_part_of_the_question(error: dict[str, Any], kind: str) -> None:
    assert ErrorBody(**error).kind == kind
