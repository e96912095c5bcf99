"""Answers as JSON text are what the models would be."""

import json

import pytest

from teacher_api.schemas import Answer, BatchAnswer, ErrorBody, StageReport, Stages
from teacher_server.answers.rows import is_valid
from teacher_server.http.responses import batch_response
from teacher_server.service.outcomes import AnswerJson, counts

pytestmark = pytest.mark.unit


def _answer(text: str = "I see", **changes: object) -> Answer:
    report = StageReport(text=text, tokens=2, milliseconds=1.5)
    answer = Answer(
        probabilities={"left": 0.25, "right": 0.75},
        action="right",
        confidence=0.625,
        analysis=text,
        stages=Stages(analysis=report, action=report),
        teacher="planner-1",
        stored=False,
        milliseconds={"waiting": 0.1, "teacher": 1e-07},
    )
    return answer.model_copy(update=changes)


@pytest.mark.parametrize("text", ["I see", '"}},"stored":true,"milliseconds":{}}', "\\", "ä\n\u2028\0", ""])
def test_stored_and_total_are_set_in_the_text(text: str) -> None:
    answer = _answer(text)
    fresh = AnswerJson(answer.model_dump_json()).with_total(12.5)
    assert not fresh.stored
    assert Answer.model_validate_json(fresh.text) == _answer(
        text, milliseconds=answer.milliseconds | {"total": 12.5}
    )
    for kept in (answer, _answer(text, milliseconds={}, stored=True)):
        stored = AnswerJson.from_store(kept.model_dump_json())
        assert stored is not None
        assert stored.stored
        total = stored.with_total(0.25).text
        assert total == _answer(text, stored=True, milliseconds={"total": 0.25}).model_dump_json()


def test_an_answer_of_an_earlier_version_has_no_confidence() -> None:
    earlier = _answer().model_dump()
    del earlier["confidence"]
    for report in earlier["stages"].values():
        del report["certainty"]
    text = json.dumps(earlier, separators=(",", ":"))
    assert is_valid("planner-1", "left,right", text)
    stored = AnswerJson.from_store(text)
    assert stored is not None
    answer = Answer.model_validate_json(stored.with_total(1.0).text)
    assert (answer.confidence, answer.stages.analysis.certainty, answer.action) == (None, None, "right")


def test_the_text_of_no_answer_is_refused() -> None:
    for text in ("", "{}", "null"):
        assert AnswerJson.from_store(text) is None


def test_a_batch_is_joined_from_its_answers() -> None:
    answer, error = _answer(), ErrorBody(status=422, field="task", reason="no such task")
    outcomes = [
        AnswerJson(answer.model_dump_json()),
        error,
        AnswerJson(answer.model_dump_json(), stored=True),
    ]
    batch = BatchAnswer.model_validate_json(bytes(batch_response(outcomes).body))
    assert bytes(batch_response(outcomes).body) == batch.model_dump_json().encode()
    assert [each.status for each in batch.answers] == [200, 422, 200]
    assert counts(outcomes) == {"answered": 2, "stored": 1, "failed": 1}
