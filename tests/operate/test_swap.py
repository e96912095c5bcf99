"""Swaps of the checkpoint in real vLLM, under the load of sixteen clients."""

import importlib.util
import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest

from teacher_api.client import TeacherClient
from teacher_api.schemas import Answer, ErrorAnswer, ErrorBody, Question, Swapped
from teacher_server.checkpoints.architectures import QWEN2, QWEN3
from teacher_server.prompting.prompt_set import load_prompt_set
from teacher_tools.bench.questions import distinct_questions
from tests.conftest import StartTeacher, TeacherProcess, environment_without, started_teachers
from tests.teacher_server.checkpoints.breaking import BLIND, NOT_NUMBERS, WITHOUT_VISION, Break
from tests.waiting import metric, wait_for, wait_until_ready
from tools.random_checkpoint import make_checkpoint, shortened

pytestmark = [
    pytest.mark.operate,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed here"),
]

_STUDENT = str(Path(sys.executable).with_name("student"))
_KEY = "the-admin-key"
_HEADERS = {"Authorization": f"Bearer {_KEY}"}
_CLIENTS = 16
_ROUNDING = 1e-3
"""Largest difference of a probability between batches of different sizes, in float32."""

StartPrompted = Callable[[Path], TeacherProcess]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`one`, `two` and those of other architectures; `red` and `blue` fit into each other's engine."""
    folder = tmp_path_factory.mktemp("models")
    make_checkpoint(folder / "one")
    make_checkpoint(folder / "two", seed=1, config_changes={"num_hidden_layers": 3, "intermediate_size": 192})
    for architecture in (QWEN2, QWEN3):
        make_checkpoint(folder / architecture.family, architecture=architecture)
    for seed, name in enumerate(("red", "blue"), 2):
        make_checkpoint(folder / name, seed=seed, config_changes={"tie_word_embeddings": False})
    return folder


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartPrompted]:
    """Starts teachers with random weights in vLLM, without a store and without a least label mass."""
    folder = tmp_path_factory.mktemp("start")
    (folder / "key").write_text(_KEY)
    prompts = shortened(load_prompt_set("minigrid-zero-shot"), folder / "prompts")
    with started_teachers(tmp_path_factory) as start_teacher:
        yield lambda model: _start(start_teacher, model, prompts, folder / "key")


def _start(start: StartTeacher, model: Path, prompts: Path, key_file: Path) -> TeacherProcess:
    teacher = start(
        *("--teacher", "prompted", "--model", str(model), "--prompts", str(prompts), "--dtype", "float32"),
        *("--engine", "vllm", "--eager", "--kv-cache-gib", "1", "--store", "none", "--min-label-mass", "0"),
        *("--admin-key-file", str(key_file)),
    )
    wait_until_ready(teacher, 900)
    return teacher


def _swap(teacher: TeacherProcess, model: Path, *, in_place: bool = False) -> httpx.Response:
    body = {"model": str(model), "in_place": in_place}
    return httpx.post(f"{teacher.url}/admin/checkpoint", json=body, headers=_HEADERS, timeout=None)


def _swapped(reply: httpx.Response) -> Swapped:
    assert reply.status_code == 200, reply.text
    swapped = Swapped.model_validate_json(reply.content)
    print(f"\n{swapped.how}: {swapped.seconds}; {swapped.sight}")
    return swapped


def _refused(reply: httpx.Response) -> ErrorBody:
    error = ErrorAnswer.model_validate_json(reply.content).error
    print(f"\n{error.status}: {error.reason}")
    return error


def _identity(teacher: TeacherProcess) -> str:
    return str(httpx.get(f"{teacher.url}/teacher").json()["identity"])


def _spoilt(model: Path, folder: Path, spoil: Break) -> Path:
    copy = Path(shutil.copytree(model, folder / "spoilt", dirs_exist_ok=True))
    spoil(copy)
    return copy


def _answers(teacher: TeacherProcess, questions: Sequence[Question]) -> list[Answer]:
    """Returns the answers to questions of one batch."""
    with TeacherClient(teacher.url, deadline_s=900) as client:
        outcomes = client.ask_batch(questions)
    answers = [outcome for outcome in outcomes if isinstance(outcome, Answer)]
    assert len(answers) == len(questions), outcomes
    return answers


def _one_by_one(teacher: TeacherProcess, questions: Sequence[Question]) -> list[tuple[str, dict[str, float]]]:
    """Returns the analysis and the label scores of each question; no two questions share a batch."""
    answers = [_answers(teacher, [question])[0] for question in questions]
    return [(a.analysis, json.loads(a.stages.action.text)) for a in answers if a.stages.action is not None]


def _repeated(said: Sequence[tuple[str, dict[str, float]]]) -> list[tuple[str, Any]]:
    """Returns what compares equal to the same weights' answers: some kernels repeat scores only to 1e-5."""
    return [(analysis, pytest.approx(scores, abs=1e-3)) for analysis, scores in said]


def _difference(one: Answer, other: Answer) -> float:
    assert one.probabilities is not None
    assert other.probabilities is not None
    return max(abs(one.probabilities[a] - other.probabilities[a]) for a in one.probabilities)


@dataclass
class Crowd:
    """Clients that ask one question after the other, each question until it has an answer."""

    url: str
    questions: Sequence[Question]
    answers: list[tuple[float, int, Answer]] = field(default_factory=list)
    """The time, the number of the question, and the answer."""
    failures: list[str] = field(default_factory=list)
    begun: int = 0
    turned_away: int = 0
    """The number of 503s, after each of which the question is asked again."""
    _stop: threading.Event = field(default_factory=threading.Event)
    _numbers: "count[int]" = field(default_factory=count)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Asks until the block ends; each client then waits for its last answer."""
        clients = [threading.Thread(target=self._ask) for _ in range(_CLIENTS)]
        for client in clients:
            client.start()
        try:
            yield
        finally:
            self._stop.set()
            for client in clients:
                client.join()

    def answered_by(self, identity: str) -> list[tuple[float, int, Answer]]:
        with self._lock:
            return [each for each in self.answers if each[2].teacher == identity]

    def _ask(self) -> None:
        with httpx.Client(timeout=300) as http:
            while not self._stop.is_set():
                number = next(self._numbers) % len(self.questions)
                with self._lock:
                    self.begun += 1
                body = self.questions[number].model_dump(mode="json")
                while (reply := http.post(f"{self.url}/policy", json=body)).status_code == 503:
                    with self._lock:
                        self.turned_away += 1
                    time.sleep(float(reply.headers["Retry-After"]))
                with self._lock:
                    if reply.status_code == 200:
                        answer = Answer.model_validate_json(reply.content)
                        self.answers.append((time.monotonic(), number, answer))
                    else:
                        self.failures.append(reply.text)


@pytest.fixture(scope="module")
def teacher(start: StartPrompted, models: Path) -> Iterator[TeacherProcess]:
    """A teacher of `one`, and later of others."""
    teacher = start(models / "one")
    yield teacher
    teacher.end()


def test_swaps_under_load_give_no_wrong_answer_and_lose_no_question(
    start: StartPrompted, models: Path, teacher: TeacherProcess
) -> None:
    questions = distinct_questions(48, seed=11)
    names = ["one", "two", QWEN2.family, QWEN3.family]
    # Each from a new engine
    expected = {_identity(teacher): _answers(teacher, questions)}
    for name in names[1:]:
        other = start(models / name)
        expected[_identity(other)] = _answers(other, questions)
        other.end()
    identities = list(expected)
    for one, two in pairwise(identities):
        apart = sorted(_difference(a, b) for a, b in zip(expected[one], expected[two], strict=True))
        # Otherwise one teacher's answers could pass for the other's
        assert apart[len(apart) // 4] > 10 * _ROUNDING

    crowd = Crowd(teacher.url, questions)

    def enough(identity: str) -> bool:
        return len(crowd.answered_by(identity)) > 2 * len(questions)

    with crowd.asking():
        wait_for(lambda: enough(identities[0]), "the first answers", 900)
        for name, (one, two) in zip(names[1:], pairwise(identities), strict=True):
            swapped = _swapped(_swap(teacher, models / name, in_place=True))
            assert (swapped.old, swapped.new, swapped.how) == (one, two, "new engine")
            wait_for(lambda two=two: enough(two), f"the answers of {name}", 900)  # type: ignore[misc]
    assert crowd.failures == []
    assert len(crowd.answers) == crowd.begun
    assert crowd.turned_away > 0
    wrong = [
        (answer.teacher, number, _difference(answer, expected[answer.teacher][number]))
        for _, number, answer in crowd.answers
    ]
    assert max(difference for _, _, difference in wrong) < _ROUNDING
    given = [crowd.answered_by(identity) for identity in identities]
    assert sum(map(len, given)) == len(crowd.answers)
    away_s = [
        min(at for at, _, _ in after) - max(at for at, _, _ in before) for before, after in pairwise(given)
    ]
    assert min(away_s) > 0
    shares = ", ".join(f"{name} {len(each)}" for name, each in zip(names, given, strict=True))
    print(
        f"\n{_CLIENTS} clients, {crowd.begun} questions, answered by {shares}: none wrong (largest difference"
        f" {max(difference for _, _, difference in wrong):.1e}), none lost; {crowd.turned_away} times 503;"
        f" {', '.join(f'{each:.1f}' for each in away_s)} s without an answer"
    )


def test_the_vision_check_refuses_bad_weights_and_the_previous_checkpoint_answers_as_before(
    teacher: TeacherProcess, models: Path, tmp_path: Path
) -> None:
    identity, questions = _identity(teacher), distinct_questions(8, seed=12)
    before = _repeated(_one_by_one(teacher, questions))
    for spoil, status, reason in (
        (WITHOUT_VISION, 422, "lack 30 tensors (the first: visual."),
        (NOT_NUMBERS, 502, "not all numbers"),
        (BLIND, 502, "vision check: changing one tile moves"),
    ):
        error = _refused(_swap(teacher, _spoilt(models / "one", tmp_path, spoil)))
        assert error.status == status
        assert reason in error.reason
        assert _identity(teacher) == identity
        assert httpx.get(f"{teacher.url}/readyz").status_code == 200
        assert _one_by_one(teacher, questions) == before
        shutil.rmtree(tmp_path / "spoilt")
    assert metric(teacher, "teacher_swaps_total", outcome="went_back") == 2


@pytest.fixture(scope="module")
def red(start: StartPrompted, models: Path) -> Iterator[TeacherProcess]:
    teacher = start(models / "red")
    yield teacher
    teacher.end()


def test_weights_loaded_in_place_answer_as_in_a_new_engine(
    start: StartPrompted, red: TeacherProcess, models: Path, tmp_path: Path
) -> None:
    questions = distinct_questions(12, seed=13)
    blue = start(models / "blue")
    expected = {_identity(blue): _repeated(_one_by_one(blue, questions))}
    blue.end()
    expected[_identity(red)] = _repeated(_one_by_one(red, questions))
    for name in ("blue", "red", "blue", "red"):
        swapped = _swapped(_swap(red, models / name, in_place=True))
        assert swapped.how == "in place"
        assert _identity(red) == swapped.new
        assert _one_by_one(red, questions) == expected[swapped.new]
    error = _refused(_swap(red, _spoilt(models / "blue", tmp_path, BLIND), in_place=True))
    assert error.status == 502
    assert _identity(red) == swapped.new
    assert _one_by_one(red, questions) == expected[swapped.new]


def test_students_in_training_stop_or_continue_as_set(
    red: TeacherProcess, models: Path, tmp_path: Path
) -> None:
    flags = ["--env", "MiniGrid-LavaGapS6-v0", "--teacher", red.url, "--environments", "4", "--no-progress"]
    flags += ["--rollout-steps", "4", "--log-every", "16", "--evaluation-episodes", "1"]
    env = environment_without("STUDENT_")

    def train(name: str, *more: str) -> "subprocess.Popen[str]":
        command = [_STUDENT, "train", *flags, *more, "--out", str(tmp_path / name)]
        return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)

    def has_begun(name: str) -> bool:
        metrics = tmp_path / name / "metrics.jsonl"
        return metrics.exists() and metrics.stat().st_size > 0

    # More frames than fit before the swap, so that both students are still training
    pinned = train("pinned", "--frames", "100000")
    allowing = train("allowing", "--frames", "2048", "--allow-teacher-change")
    wait_for(lambda: has_begun("pinned") and has_begun("allowing"), "both students' beginning", 600)
    assert allowing.poll() is None
    swapped = _swapped(_swap(red, models / "blue", in_place=True))
    said = pinned.communicate(timeout=300)[1]
    assert pinned.returncode == 3, said
    assert f"the run learns from the teacher {swapped.old}" in said
    assert "saved after" in said
    said = allowing.communicate(timeout=600)[1]
    assert allowing.returncode == 0, said
    summary = json.loads((tmp_path / "allowing" / "summary.json").read_text())
    assert summary["teacher"] == swapped.new
