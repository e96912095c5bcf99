"""A transformers engine that fails on every question, and then hangs: replaced, then the service ends."""

import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from teacher_api.client import TeacherClient
from teacher_api.schemas import Answer
from teacher_server.prompting.prompt_set import SETS
from teacher_tools.bench.questions import distinct_questions
from tests.conftest import TeacherProcess, started_teachers
from tests.waiting import LONG_S, metric, wait_for, wait_until_ready
from tools.random_checkpoint import make_checkpoint

pytestmark = pytest.mark.integration

pytest.importorskip("transformers")

# Python runs this before the teacher: the engine's own thread is what raises or hangs
_ILL = """
import pathlib, threading
from teacher_server.engines import batching

class Ill(batching.Batches):
    made = 0

    def __init__(self, run, size):
        Ill.made += 1
        number = Ill.made

        def ill(requests, take):
            fault = pathlib.Path({folder!r}, str(number))
            if fault.exists():
                if fault.read_text() == "hangs":
                    threading.Event().wait()
                raise RuntimeError("a kernel broke")
            run(requests, take)

        super().__init__(ill, size, end_s=2)

batching.Batches = Ill
"""


@pytest.fixture(scope="module")
def ill(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file 1, 2 or so in this folder says what becomes of the first or second engine: fails, hangs."""
    return tmp_path_factory.mktemp("ill")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("model") / "tiny")


Start = Callable[..., TeacherProcess]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory, ill: Path, model: Path) -> Iterator[Start]:
    """start(*flags): a teacher that is ready; its analyses are a word long."""
    patch = tmp_path_factory.mktemp("patch")
    (patch / "sitecustomize.py").write_text(_ILL.format(folder=str(ill)))
    prompts = Path(shutil.copytree(SETS / "minigrid-zero-shot", patch / "set"))
    settings = (prompts / "set.toml").read_text()
    (prompts / "set.toml").write_text(re.sub(r"_max_tokens = \d+", "_max_tokens = 40", settings))
    word = {"type": "object", "properties": {"front": {"enum": ["wall", "nothing"]}}, "required": ["front"]}
    (prompts / "analysis.schema.json").write_text(json.dumps(word | {"additionalProperties": False}))
    with pytest.MonkeyPatch.context() as environment, started_teachers(tmp_path_factory) as started:
        environment.setenv("PYTHONPATH", ":".join([str(patch), *filter(None, sys.path)]))

        def start(*flags: str) -> TeacherProcess:
            teacher = started(
                *("--teacher", "prompted", "--engine", "transformers", "--device", "cpu"),
                *("--model", str(model), "--prompts", str(prompts), "--min-label-mass", "0", *flags),
                store="none",
            )
            wait_until_ready(teacher)
            return teacher

        yield start


@pytest.fixture(scope="module")
def teacher(start: Start) -> TeacherProcess:
    """A teacher whose engine soon counts as unresponsive."""
    return start("--stall-s", "5", "--watch-s", "1")


def _answers(teacher: TeacherProcess) -> list[Answer]:
    questions = distinct_questions(4, seed=1)
    with TeacherClient(teacher.url, deadline_s=LONG_S) as client:
        return [client.ask(question) for question in questions]


def test_an_engine_that_fails_on_every_question_is_replaced(teacher: TeacherProcess, ill: Path) -> None:
    before = _answers(teacher)
    (ill / "1").write_text("fails")
    replaced = "teacher_replacements_total"
    wait_for(lambda: metric(teacher, replaced, why="stuck", outcome="replaced") == 1, "another engine")
    wait_until_ready(teacher)
    after = _answers(teacher)
    for one, other in zip(before, after, strict=True):
        assert one.teacher == other.teacher
        # In one batch with a question of the watchdog's it is rounded otherwise
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-4)
    assert "a kernel broke" in teacher.stderr


def test_a_hanging_engine_ends_the_process(teacher: TeacherProcess, ill: Path) -> None:
    (question,) = distinct_questions(1, seed=2)
    (ill / "2").write_text("hangs")
    body = question.model_dump(mode="json")
    reply = httpx.post(f"{teacher.url}/policy", json=body, timeout=LONG_S)
    assert (reply.status_code, reply.headers["Retry-After"]) == (503, "1")
    assert teacher.process.wait(LONG_S) == 1
    last = teacher.stderr.splitlines()[-1]
    assert last.startswith(
        "teacher serve: error: the teacher is gone: its engine is unresponsive: it has had"
    )
    assert last.endswith("the engine's batch has not ended within 2 s")


def test_a_swap_does_not_wait_forever_for_a_hanging_engine(start: Start, ill: Path, model: Path) -> None:
    (ill / "key").write_text("key")
    (ill / "1").unlink(missing_ok=True)
    other = make_checkpoint(ill / "other", seed=1)
    teacher = start(
        "--stall-s", "30", "--watch-s", "600", "--timeout-s", "8", "--admin-key-file", str(ill / "key")
    )
    (ill / "1").write_text("hangs")
    (question,) = distinct_questions(1, seed=2)
    body, headers = question.model_dump(mode="json"), {"Authorization": "Bearer key"}
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(httpx.post, f"{teacher.url}/policy", json=body, timeout=LONG_S)
        wait_for(lambda: metric(teacher, "teacher_in_flight") == 1, "the question")
        url = f"{teacher.url}/admin/checkpoint"
        swap = httpx.post(url, json={"model": str(other)}, headers=headers, timeout=LONG_S)
        assert asked.result().status_code == 504
    assert swap.status_code == 500
    assert f"{model} cannot be closed: the engine's batch has not ended" in swap.json()["error"]["reason"]
    assert teacher.process.wait(LONG_S) == 1
