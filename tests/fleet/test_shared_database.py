"""Teachers that share a database: each question is asked once, whoever is killed."""

import random
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from teacher_api.client import TeacherClient
from teacher_api.schemas import Answer, Question
from tests.conftest import AskAbout, StartTeacher, TeacherProcess
from tests.fleet.postgres import PostgresServer
from tests.waiting import LONG_S, metric, wait_until_ready

pytestmark = [pytest.mark.fleet, pytest.mark.timeout(600)]

_CLIENTS, _ROUNDS, _QUESTIONS = 8, 12, 300


@pytest.fixture(scope="module")
def questions(ask_about: AskAbout) -> list[Question]:
    """Distinct ones: the missions tell them apart."""
    question = ask_about("MiniGrid-LavaGapS5-v0")
    return [question.model_copy(update={"mission": f"mission {i}"}) for i in range(_QUESTIONS)]


def _asked(teacher: TeacherProcess) -> int:
    return int(metric(teacher, "teacher_questions_total", way="asked"))


def test_teachers_and_the_database_are_killed_and_no_question_is_asked_twice(
    teacher_process: StartTeacher, database: PostgresServer, questions: list[Question]
) -> None:
    flags = ("--delay-ms", "500", "--concurrency", "4", "--store", database.url())
    teachers = [teacher_process(*flags) for _ in range(3)]
    for teacher in teachers:
        wait_until_ready(teacher)

    def learn(seed: int) -> list[tuple[int, Answer]]:
        """Asks as a student does: batches of states, which overlap with those of others."""
        rng, got = random.Random(seed), list[tuple[int, Answer]]()
        with TeacherClient(teachers[seed % 3].url, deadline_s=LONG_S) as client:
            for upto in range(1, _ROUNDS + 1):
                chosen = rng.sample(range(_QUESTIONS * upto // _ROUNDS), 20)
                for number, answer in zip(
                    chosen, client.ask_batch([questions[i] for i in chosen]), strict=True
                ):
                    assert isinstance(answer, Answer)
                    got.append((number, answer))
        return got

    lost = counted = 0
    with ThreadPoolExecutor(_CLIENTS) as pool:
        students = [pool.submit(learn, seed) for seed in range(_CLIENTS)]
        for victim in (0, "database", 1):
            time.sleep(2)
            if victim == "database":
                database.kill()
                database.start()
                continue
            teacher = teachers[int(victim)]
            counted += _asked(teacher)
            teacher.kill()
            # Asked, or about to be asked, by the one that was killed
            lost += len(database.query("SELECT 1 FROM claims"))
            teacher.restart()
        given = [each for student in students for each in student.result()]
    asked = counted + sum(_asked(teacher) for teacher in teachers)
    different = {number for number, _ in given}
    print(f"\n{asked} asked for {len(different)} questions; {lost} claims at the times of the kills")
    assert lost > 0
    assert database.query("SELECT count(*) FROM answers") == [(len(different),)]
    assert len(different) <= asked + lost
    assert asked <= len(different) + lost
    by_number: dict[int, set[str]] = {}
    for number, answer in given:
        by_number.setdefault(number, set()).add(answer.model_dump_json(exclude={"stored", "milliseconds"}))
    assert all(len(answers) == 1 for answers in by_number.values())
    assert httpx.get(f"{teachers[2].url}/readyz", timeout=LONG_S).status_code == 200


def test_a_teacher_answers_on_without_its_database_and_stores_again(
    teacher_process: StartTeacher, database: PostgresServer, questions: list[Question]
) -> None:
    teacher = teacher_process("--store", database.url())
    wait_until_ready(teacher)
    with TeacherClient(teacher.url, deadline_s=LONG_S) as client:
        client.ask(questions[0])
        database.kill()
        assert not client.ask(questions[1]).stored
        assert client.ask(questions[1]).stored  # from memory
        database.start()
        deadline = time.monotonic() + 60
        while database.query("SELECT count(*) FROM answers") != [(2,)]:
            assert time.monotonic() < deadline
            time.sleep(0.2)
    assert metric(teacher, "teacher_store_failures_total") > 0
    assert "answer store: " in teacher.stderr
