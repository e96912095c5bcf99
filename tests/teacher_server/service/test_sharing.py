"""Each question is asked once, ever: in flight, after kill -9, and by several processes on one file."""

import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from teacher_api.client import TeacherClient
from teacher_api.schemas import Answer, ErrorBody, Question
from tests.conftest import AskAbout, StartTeacher, TeacherProcess
from tests.waiting import LONG_S

pytestmark = pytest.mark.integration

_ENV = "MiniGrid-LavaGapS5-v0"


@pytest.fixture(scope="module")
def questions(ask_about: AskAbout) -> list[Question]:
    """Distinct ones: the missions tell them apart, and a lava gap is crossed whatever the mission says."""
    question = ask_about(_ENV)
    return [question.model_copy(update={"mission": f"mission {i}"}) for i in range(100)]


def _asked(teacher: TeacherProcess) -> int:
    page = httpx.get(f"{teacher.url}/metrics", timeout=LONG_S).text
    counts = [line for line in page.splitlines() if line.startswith('teacher_questions_total{way="asked"}')]
    return int(float(counts[0].split()[-1])) if counts else 0


def _stored(outcomes: list[Answer | ErrorBody]) -> list[bool]:
    return [outcome.stored for outcome in outcomes if isinstance(outcome, Answer)]


def test_equal_questions_of_many_clients_are_asked_once(
    teacher_process: StartTeacher, questions: list[Question]
) -> None:
    teacher = teacher_process("--delay-ms", "300")
    ready = threading.Barrier(8)

    def ask() -> list[Answer | ErrorBody]:
        with TeacherClient(teacher.url, deadline_s=60) as client:
            ready.wait()
            return client.ask_batch(questions[:5])

    with ThreadPoolExecutor(8) as pool:
        outcomes = [future.result() for future in [pool.submit(ask) for _ in range(8)]]
    assert all(isinstance(outcome, Answer) for some in outcomes for outcome in some)
    assert _asked(teacher) == 5


def test_answers_outlive_kill_9(teacher_process: StartTeacher, questions: list[Question]) -> None:
    teacher = teacher_process()
    with TeacherClient(teacher.url, deadline_s=60) as client:
        first = client.ask_batch(questions)
        teacher.kill()
        teacher.restart()
        again = client.ask_batch(questions)
    assert _stored(first) == [False] * 100
    assert _stored(again) == [True] * 100
    assert _asked(teacher) == 0
    for before, after in zip(first, again, strict=True):
        assert isinstance(before, Answer)
        assert isinstance(after, Answer)
        assert before.model_dump(exclude={"stored", "milliseconds"}) == after.model_dump(
            exclude={"stored", "milliseconds"}
        )


def test_killed_in_mid_batch_nothing_is_lost_or_doubled(
    teacher_process: StartTeacher, questions: list[Question], tmp_path: Path
) -> None:
    store = tmp_path / "shared.sqlite3"
    teacher = teacher_process("--delay-ms", "20", "--concurrency", "1", store=store)
    with (
        TeacherClient(teacher.url, deadline_s=60) as client,
        ThreadPoolExecutor(1) as pool,
        TeacherClient(teacher.url, deadline_s=60) as other,
    ):
        asking = pool.submit(client.ask_batch, questions)
        while not _stored([other.ask(questions[10])])[0]:
            pass
        teacher.kill()
        teacher.restart()
        outcomes = asking.result()
    assert all(isinstance(outcome, Answer) for outcome in outcomes)
    rows = sqlite3.connect(store).execute("SELECT mission FROM answers").fetchall()
    assert len(rows) == len(set(rows)) == 100


def test_two_processes_share_a_store(
    teacher_process: StartTeacher, questions: list[Question], tmp_path: Path
) -> None:
    store = tmp_path / "shared.sqlite3"
    one, two = teacher_process(store=store), teacher_process(store=store)
    with (
        TeacherClient(one.url, deadline_s=60) as asker,
        TeacherClient(two.url, deadline_s=60) as other,
        ThreadPoolExecutor(2) as pool,
    ):
        asker.ask_batch(questions[:50])
        assert _stored(other.ask_batch(questions[:50])) == [True] * 50
        both = [pool.submit(client.ask_batch, questions) for client in (asker, other)]
        assert all(isinstance(outcome, Answer) for future in both for outcome in future.result())
    assert sqlite3.connect(store).execute("SELECT count(*) FROM answers").fetchone() == (100,)


def test_answers_of_two_teachers_never_mix(
    teacher_process: StartTeacher, questions: list[Question], tmp_path: Path
) -> None:
    store = tmp_path / "shared.sqlite3"
    plain, noisy = teacher_process(store=store), teacher_process("--noise", "1", store=store)
    with TeacherClient(plain.url, deadline_s=60) as one, TeacherClient(noisy.url, deadline_s=60) as other:
        (right,), (wrong,) = one.ask_batch(questions[:1]), other.ask_batch(questions[:1])
        assert isinstance(right, Answer)
        assert isinstance(wrong, Answer)
        assert not wrong.stored
        assert right.action != wrong.action
        assert right.teacher == one.teacher().identity != wrong.teacher == other.teacher().identity
