"""`docker compose up` without a GPU, as it comes: the included checkpoint teaches."""

from collections.abc import Iterator

import httpx
import pytest

from teacher_tools.bench.questions import distinct_questions
from tests.docker.conftest import CPU, Stack, stack

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack whose student has completed the run `first`."""
    variables = {"STUDENT_FRAMES": "8192", "STUDENT_RUN": "first"}
    with stack("lvlm2p-test-compact", CPU, tmp_path_factory.mktemp("compact"), **variables) as made:
        made.up()
        assert made.run_ended() == 0
        yield made


def test_a_vision_language_model_answers_and_teaches(trained: Stack) -> None:
    teacher = httpx.get(f"{trained.url}/teacher").json()
    assert teacher["kind"] == "prompted"
    assert teacher["hosting"]["engine"] == "onnx"
    question = distinct_questions(1)[0].model_dump(mode="json")
    answer = httpx.post(f"{trained.url}/policy", json=question, timeout=30).json()
    assert sum(answer["probabilities"].values()) == pytest.approx(1)
    assert '"agent"' in answer["analysis"]
    summary = trained.summary("first")
    assert summary["success"] >= 0.9
    assert summary["questions"] > 0
    assert summary["teacher"] == teacher["identity"]


def test_a_second_up_asks_nothing(trained: Stack) -> None:
    first, second = trained.second_run()
    assert second["questions"] == 0
    assert second["sampled"] == first["sampled"]
