"""`docker compose up` with docker/compose.fleet.yml: teachers that share their answers in PostgreSQL."""

import os
import subprocess
from collections.abc import Iterator

import pytest

from teacher_api.client import TeacherClient
from teacher_api.schemas import Answer, Question
from teacher_tools.bench.questions import distinct_questions
from tests.docker.conftest import CPU, Stack, stack
from tests.waiting import LONG_S

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1800)]

_POSTGRES = os.environ.get("POSTGRES_IMAGE", "postgres:17-bookworm")


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Two planners, the database and the gateway."""
    if subprocess.run(["docker", "image", "inspect", _POSTGRES], capture_output=True, check=False).returncode:
        pytest.skip(f"there is no image {_POSTGRES}: pull it, or name another in POSTGRES_IMAGE")
    files = f"{CPU} -f docker/compose.fleet.yml"
    variables = {"TEACHER_TEACHER": "planner", "POSTGRES_IMAGE": _POSTGRES}
    with stack("lvlm2p-test-fleet", files, tmp_path_factory.mktemp("fleet"), "teacher", **variables) as made:
        made.up("--wait", "teacher", "gateway")
        yield made


def test_teachers_share_their_answers_also_after_a_restart_of_the_database(fleet: Stack) -> None:
    assert len(fleet.do("ps", "--format", "json", "teacher").splitlines()) == 2
    first, second = distinct_questions(40, seed=3), distinct_questions(40, seed=4)
    new = [question for question in second if question not in first]
    with TeacherClient(fleet.url, deadline_s=LONG_S, batch_size=5) as client:

        def stored(questions: list[Question]) -> list[bool]:
            answers = client.ask_batch(questions)
            assert all(isinstance(answer, Answer) for answer in answers)
            return [answer.stored for answer in answers if isinstance(answer, Answer)]

        assert not any(stored(first))
        assert all(stored(first * 2))  # whichever teacher gets them
        fleet.do("restart", "postgres")
        assert all(stored(first))
        stored(new)
    count = "SELECT count(*) FROM answers"
    told = fleet.do("exec", "-T", "postgres", "psql", "-U", "teacher", "-d", "answers", "-Atc", count)
    assert int(told) == len(first) + len(new)
    assert _asked(fleet) == len(first) + len(new)


def test_the_database_is_for_teachers_alone(fleet: Stack) -> None:
    reach = "import socket; print(socket.create_connection(('postgres', 5432), 5).getpeername()[1])"
    assert fleet.python("teacher", reach) == "5432"
    denied = fleet("run", "--rm", "--no-deps", "-T", "--entrypoint", "curl", "gateway", "postgres:5432")
    assert denied.returncode != 0


def _asked(fleet: Stack) -> int:
    """Returns the questions that the teachers have asked, from the metrics of each of them."""
    read = "import urllib.request; print(urllib.request.urlopen('http://127.0.0.1:8000/metrics').read().decode())"
    pages = [fleet.do("exec", "-T", "--index", str(i), "teacher", "python3", "-c", read) for i in (1, 2)]
    asked = 'teacher_questions_total{way="asked"} '
    return sum(
        int(float(line.removeprefix(asked)))
        for page in pages
        for line in page.splitlines()
        if line.startswith(asked)
    )
