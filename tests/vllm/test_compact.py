"""The repository's checkpoint in real vLLM."""

from pathlib import Path

import pytest

from teacher_api.client import TeacherClient
from teacher_api.processes import COMPACT
from teacher_api.schemas import Answer
from teacher_tools.bench.questions import distinct_questions
from tests.compact import assert_it_knows_its_tasks
from tests.vllm.conftest import VLLM_FLAGS, StartPrompted

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def checkpoint() -> Path:
    """The checkpoint of this module's teachers."""
    return COMPACT


def test_it_knows_its_tasks(start_prompted: StartPrompted, tmp_path: Path) -> None:
    teacher = start_prompted(*VLLM_FLAGS, "--prompts", "compact")
    assert_it_knows_its_tasks(teacher.url, tmp_path, states=20, episodes=5)
    teacher.end()


def test_its_confidence_is_that_of_transformers(start_prompted: StartPrompted) -> None:
    questions, answers = distinct_questions(12, seed=3), []
    for flags in (VLLM_FLAGS, ("--engine", "transformers", "--device", "cpu")):
        teacher = start_prompted(*flags, "--prompts", "compact", "--timeout-s", "600")
        with TeacherClient(teacher.url, deadline_s=600) as client:
            answers.append([each for each in client.ask_batch(questions) if isinstance(each, Answer)])
        teacher.end()
    confidences = [[each.confidence for each in given] for given in answers]
    assert len(confidences[0]) == len(questions)
    assert confidences[0] == pytest.approx(confidences[1], abs=0.01)
    assert min(each or 0 for each in confidences[0]) < 0.99
