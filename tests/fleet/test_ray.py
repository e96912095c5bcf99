"""Teachers as replicas of Ray Serve: exchanged, scaled and lost while they are asked."""

import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from threading import Event

import httpx
import pytest

from teacher_api.client import TeacherClient
from teacher_api.schemas import Answer, Question
from teacher_tools.bench.questions import distinct_questions
from tests.conftest import StartTeacher
from tests.fleet.ray_cluster import RayCluster, ray_cluster
from tests.waiting import LONG_S, wait_for

pytestmark = [pytest.mark.fleet, pytest.mark.timeout(900)]

_RIGHT = ("--store", "none")
_NOISY = ("--store", "none", "--noise", "0.5")


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    """A cluster with room for four replicas on two nodes."""
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = int(free.getsockname()[1])
    with ray_cluster(port) as started:
        started.add_node(2)
        started.add_node(2)
        yield started


@pytest.fixture(scope="module")
def questions() -> list[Question]:
    return distinct_questions(120, seed=7)


@contextmanager
def _asked(
    url: str, questions: list[Question], clients: int = 8
) -> Iterator[Callable[[], list[tuple[int, Answer]]]]:
    """Asks all the time; `answers()` ends it and returns the number of each question with its answer."""
    enough = Event()

    def ask(first: int) -> list[tuple[int, Answer]]:
        got, number = list[tuple[int, Answer]](), first
        with TeacherClient(url, deadline_s=LONG_S) as client:
            while not enough.is_set():
                chosen = [(number + i) % len(questions) for i in range(4)]
                outcomes = client.ask_batch([questions[i] for i in chosen])
                for i, outcome in zip(chosen, outcomes, strict=True):
                    assert isinstance(outcome, Answer), outcome
                    got.append((i, outcome))
                number += 4
        return got

    def answers() -> list[tuple[int, Answer]]:
        enough.set()
        return [each for asking in all_ for each in asking.result(LONG_S)]

    with ThreadPoolExecutor(clients) as pool:
        all_ = [pool.submit(ask, 15 * i) for i in range(clients)]
        try:
            yield answers
        finally:
            enough.set()


def test_a_teacher_is_exchanged_under_load_and_each_answer_is_its_teachers(
    cluster: RayCluster, questions: list[Question], teacher_process: StartTeacher
) -> None:
    expected = {}
    for flags in (_RIGHT, _NOISY):
        with TeacherClient(teacher_process(*flags).url, deadline_s=LONG_S) as client:
            fresh = client.ask_batch(questions)
        assert all(isinstance(answer, Answer) for answer in fresh)
        expected |= {(answer.teacher, i): answer.probabilities for i, answer in enumerate(fresh)}  # type: ignore[union-attr]

    right = cluster.deploy("--min-replicas", "2", *_RIGHT)
    assert len(cluster.replicas) == 2
    with _asked(cluster.url, questions) as answers:
        time.sleep(2)
        noisy = cluster.deploy("--min-replicas", "2", *_NOISY)
        time.sleep(2)
        got = answers()
    teachers = [answer.teacher for _, answer in got]
    print(f"\n{teachers.count(right)} answers of {right}, {teachers.count(noisy)} of {noisy}")
    assert set(teachers) == {right, noisy}
    assert teachers.count(right) > 0 < teachers.count(noisy)
    for i, answer in got:
        assert answer.probabilities == expected[answer.teacher, i]

    # A teacher that cannot start is not served, and the one before is
    failed = cluster.fleet("deploy", "--min-replicas", "2", "--teacher", "nowhere:Nothing", "--store", "none")
    assert failed.returncode == 1
    assert _last_line(failed.stderr) == (
        "teacher fleet deploy: error: a replica could not start: --teacher nowhere:Nothing cannot be made:"
        " ModuleNotFoundError: No module named 'nowhere'; the teacher before answers again"
    )
    with TeacherClient(cluster.url, deadline_s=LONG_S) as client:
        assert client.teacher().identity == noisy


def test_no_question_is_lost_with_a_node(cluster: RayCluster, questions: list[Question]) -> None:
    cluster.deploy("--min-replicas", "4", "--delay-ms", "50", *_RIGHT)
    cluster.add_node(2)  # so that the replicas of the lost node find a place
    before = cluster.replicas
    assert len(before) == 4
    with _asked(cluster.url, questions) as answers:
        time.sleep(2)
        cluster.kill_node()
        wait_for(lambda: len(cluster.replicas) == 4 and cluster.replicas != before, "new replicas")
        time.sleep(1)
        got = answers()
    print(f"\n{len(got)} answers")
    assert {i for i, _ in got} == set(range(len(questions)))


def test_replicas_come_and_go_with_the_questions(cluster: RayCluster, questions: list[Question]) -> None:
    flags = ("--delay-ms", "200", "--concurrency", "2", "--scale-up-s", "1", "--scale-down-s", "2")
    cluster.deploy("--min-replicas", "1", "--max-replicas", "3", *flags, *_RIGHT)
    cluster.wait_for_replicas(1)
    with _asked(cluster.url, questions) as answers:
        cluster.wait_for_replicas(3)
        answers()
    cluster.wait_for_replicas(1)


def test_a_replica_is_not_administered_by_itself(cluster: RayCluster, tmp_path: Path) -> None:
    key = tmp_path / "admin.key"
    key.write_text("secret")
    cluster.deploy("--admin-key-file", str(key), *_RIGHT)
    reply = httpx.post(
        f"{cluster.url}/admin/checkpoint",
        json={"model": "/models/other"},
        headers={"Authorization": "Bearer secret"},
        timeout=LONG_S,
    )
    assert reply.status_code == 409
    assert "teacher fleet deploy" in reply.json()["error"]["reason"]
    assert cluster.fleet("delete").returncode == 0
    again = cluster.fleet("delete")
    assert again.returncode == 2
    assert _last_line(again.stderr) == (
        f"teacher fleet delete: error: the cluster at {cluster.address} has no teacher"
    )


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            ("--min-replicas", "3", "--replica-gpus", "1"),
            "--min-replicas 3 needs 3 GPUs, and the cluster has 0",
        ),
        (("--min-replicas", "3", "--max-replicas", "2"), "--max-replicas 2 is less than --min-replicas 3"),
    ],
)
def test_what_a_cluster_cannot_run(cluster: RayCluster, flags: tuple[str, ...], said: str) -> None:
    result = cluster.fleet("deploy", *flags)
    assert result.returncode == 2
    assert _last_line(result.stderr) == f"teacher fleet deploy: error: {said}"


def _last_line(stderr: str) -> str:
    """Returns what the command says; before it, Ray itself may warn that the machine has no network."""
    return stderr.strip().splitlines()[-1]
