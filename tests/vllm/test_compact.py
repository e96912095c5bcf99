"""The repository's checkpoint in real vLLM."""

from pathlib import Path

import pytest

from teacher_api.client import TeacherClient
from teacher_api.processes import COMPACT
from teacher_api.schemas import Answer
from teacher_tools.bench.questions import distinct_questions
from tests.compact import assert_it_knows_its_tasks
from tests.conftest import TeacherProcess
from tests.vllm.conftest import StartPrompted

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]


def test_it_knows_its_tasks(compact_teacher: TeacherProcess, tmp_path: Path) -> None:
    assert_it_knows_its_tasks(compact_teacher.url, tmp_path, states=20, episodes=5)


def test_its_confidence_is_that_of_transformers(
    compact_teacher: TeacherProcess, start_prompted: StartPrompted
) -> None:
    other = start_prompted(
        "--engine", "transformers", "--device", "cpu", "--prompts", "compact", model=COMPACT
    )
    questions, confidences = distinct_questions(12, seed=3), []
    for teacher in (compact_teacher, other):
        with TeacherClient(teacher.url, deadline_s=600) as client:
            answers = client.ask_batch(questions)
        confidences.append([each.confidence for each in answers if isinstance(each, Answer)])
    assert len(confidences[0]) == len(questions)
    assert confidences[0] == pytest.approx(confidences[1], abs=0.01)
    assert min(each or 0 for each in confidences[0]) < 0.99
