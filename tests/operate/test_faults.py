"""Clients that disconnect, an engine that dies or hangs, and the processes beside the engine."""

import asyncio
import importlib.util
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

from teacher_api.client import TeacherClient
from teacher_api.schemas import Answer, Question
from teacher_server.engines.vllm.plugin import VARIABLE
from teacher_server.prompting.prompt_set import SETS
from teacher_tools.bench.questions import distinct_questions
from tests.conftest import StartTeacher, TeacherProcess, environment_without
from tests.vllm.conftest import VLLM_FLAGS, StartPrompted, checkpoint, start_prompted
from tests.waiting import LONG_S, metric, wait_for

__all__ = ["checkpoint", "start_prompted"]

pytestmark = [
    pytest.mark.operate,
    pytest.mark.timeout(900),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs vLLM: make test-operate"),
]

_ROUNDING = 1e-3
"""Largest difference of a probability between batches of different sizes, in float32."""


@pytest.fixture(scope="module")
def teacher(start_prompted: StartPrompted, tmp_path_factory: pytest.TempPathFactory) -> TeacherProcess:
    """A teacher whose analyses have hundreds of tokens, so that fifty questions take seconds."""
    slow = shutil.copytree(SETS / "minigrid-zero-shot", tmp_path_factory.mktemp("prompts") / "slow")
    schema = json.loads((slow / "analysis.schema.json").read_text())
    schema["properties"] = {"long": {"type": "string", "minLength": 800, "maxLength": 810}}
    schema["required"] = ["long"]
    (slow / "analysis.schema.json").write_text(json.dumps(schema))
    settings = (slow / "set.toml").read_text()
    settings = re.sub(r"analysis_max_tokens = \d+", "analysis_max_tokens = 4000", settings)
    (slow / "set.toml").write_text(settings)
    return start_prompted(
        *(*VLLM_FLAGS, "--prompts", str(slow), "--min-label-mass", "0", "--timeout-s", "600"),
        *("--stall-s", "20", "--watch-s", "600", "--replacements", "2"),
        store="none",
    )


def test_clients_that_disconnect_free_the_engine(teacher: TeacherProcess) -> None:
    questions = distinct_questions(50, seed=7)

    async def ask_and_leave() -> int:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(timeout=None, limits=limits) as http:
            url = f"{teacher.url}/policy"
            asking = [asyncio.create_task(http.post(url, json=q.model_dump(mode="json"))) for q in questions]
            most = await asyncio.to_thread(_wait_for, lambda: _in_engine(teacher), 50)
            assert not any(task.done() for task in asking)
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)
        return int(most)

    running = asyncio.run(ask_and_leave())
    left = time.monotonic()
    while _in_engine(teacher) > 0:
        assert time.monotonic() - left < 30
        time.sleep(0.05)
    print(
        f"\n{running} requests in the engine; none {time.monotonic() - left:.2f} s after their clients left"
    )
    assert metric(teacher, "teacher_in_flight") == 0
    generated = metric(teacher, "vllm:generation_tokens_total")
    time.sleep(1)
    assert metric(teacher, "vllm:generation_tokens_total") == generated
    assert httpx.get(f"{teacher.url}/readyz").status_code == 200


@pytest.fixture(scope="module")
def answers(teacher: TeacherProcess) -> list[Answer]:
    """The answers to 32 questions, from the engine that replaced one that was killed while answering them."""
    return _asked_while(teacher, signal.SIGKILL)


def test_the_questions_of_a_dead_engine_are_answered_by_its_replacement(
    teacher: TeacherProcess, answers: list[Answer]
) -> None:
    assert metric(teacher, "teacher_replacements_total", why="dead", outcome="replaced") == 1
    assert "the engine is dead and is being replaced: vLLM's process has ended" in teacher.stderr
    assert len(answers) == 32


def test_a_stopped_engine_is_replaced_and_the_answers_stay_equal(
    teacher: TeacherProcess, answers: list[Answer]
) -> None:
    again = _asked_while(teacher, signal.SIGSTOP)
    assert metric(teacher, "teacher_replacements_total", why="stuck", outcome="replaced") == 1
    assert "the engine is unresponsive and is being replaced: it has had questions" in teacher.stderr
    for one, other in zip(answers, again, strict=True):
        assert one.teacher == other.teacher
        assert one.probabilities == pytest.approx(other.probabilities, abs=_ROUNDING)


def test_after_too_many_replacements_the_service_ends(teacher: TeacherProcess, answers: list[Answer]) -> None:
    assert len(answers) == 32  # it was replaced before
    (question,) = distinct_questions(1, seed=9)
    left = _engine(teacher)
    with httpx.Client(timeout=LONG_S) as http, ThreadPoolExecutor() as pool:
        asked = pool.submit(http.post, f"{teacher.url}/policy", json=question.model_dump(mode="json"))
        _wait_for(lambda: _in_engine(teacher), 1)
        left[0].kill()
        reply = asked.result()
    assert (reply.status_code, reply.headers["Retry-After"]) == (503, "1")
    assert "vLLM's process has ended" in reply.json()["error"]["reason"]
    assert teacher.process.wait(60) == 1
    assert "teacher serve: error: the teacher is gone: its engine is dead" in teacher.stderr
    assert "it has been replaced 2 times within an hour, as often as --replacements allows" in teacher.stderr
    assert not any(map(_lives, left))


def test_a_loading_engine_ends_with_the_service(teacher_process: StartTeacher, checkpoint: Path) -> None:
    loading = teacher_process("--teacher", "prompted", "--model", str(checkpoint), *VLLM_FLAGS)
    wait_for(lambda: len(_engine(loading)) == 2, "the engine's process and its worker")
    left = _engine(loading)
    assert httpx.get(f"{loading.url}/readyz").status_code == 503
    assert loading.stop() == 0
    assert not any(map(_lives, left))
    assert "Traceback" not in loading.stderr.replace("(EngineCore", "")


def test_vllm_yields_the_cpu_to_other_programs() -> None:
    found_in_every_process = (
        "import vllm.distributed.utils as waiting; from vllm.plugins import load_general_plugins;"
        "load_general_plugins(); print('yields', waiting.USE_SCHED_YIELD)"
    )
    for ours, yields in ((True, False), (False, True)):
        env = environment_without(VARIABLE) | ({VARIABLE: "failures"} if ours else {})
        command = [sys.executable, "-c", found_in_every_process]
        said = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True, env=env)
        assert f"yields {yields}" in said.stdout


def test_the_reason_why_an_engine_cannot_start_is_one_line(
    teacher_process: StartTeacher, checkpoint: Path
) -> None:
    flags = ("--tensor-parallel-size", "2")
    failing = teacher_process("--teacher", "prompted", "--model", str(checkpoint), *VLLM_FLAGS, *flags)
    assert failing.process.wait(600) == 1
    assert f"vLLM cannot serve {checkpoint}: Not enough allowed NUMA nodes" in failing.stderr.splitlines()[-1]


def _in_engine(teacher: TeacherProcess) -> float:
    return metric(teacher, "vllm:num_requests_running") + metric(teacher, "vllm:num_requests_waiting")


def _engine(teacher: TeacherProcess) -> list[psutil.Process]:
    """Returns vLLM's processes, the parent of the others first, whatever their titles."""
    found: list[psutil.Process] = []
    for child in psutil.Process(teacher.process.pid).children():
        if "resource_tracker" not in " ".join(child.cmdline()):
            found += [child, *child.children(recursive=True)]
    return found


def _shared_memory(process: psutil.Process) -> set[Path]:
    return {Path(each.path) for each in process.memory_maps() if each.path.startswith("/dev/shm/psm_")}


def _lives(process: psutil.Process) -> bool:
    # A container without an init does not reap a process whose parent was killed
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def _asked_while(teacher: TeacherProcess, number: signal.Signals) -> list[Answer]:
    """Returns the answers to 32 questions, asked until they are answered, while the engine gets a signal."""
    questions = distinct_questions(32, seed=8)
    old = _engine(teacher)
    segments = _shared_memory(old[0])
    names = [process.name() for process in old]
    assert len(old) > 1
    assert segments

    def ask(question: Question) -> Answer:
        with TeacherClient(teacher.url, deadline_s=LONG_S) as client:
            return client.ask(question)

    with ThreadPoolExecutor(len(questions)) as pool:
        asked = [pool.submit(ask, question) for question in questions]
        _wait_for(lambda: _in_engine(teacher), 8)  # the engine receives them one by one
        old[0].send_signal(number)
        began = time.monotonic()
        url = f"{teacher.url}/teacher"
        wait_for(lambda: httpx.get(url).json()["state"] == "replacing", "the replacement")
        noticed = time.monotonic() - began
        assert httpx.get(f"{teacher.url}/readyz").status_code == 503
        answers = [each.result() for each in asked]
    print(
        f"\n{number.name}: noticed after {noticed:.1f} s, all answered after {time.monotonic() - began:.1f} s"
    )
    assert not any(map(_lives, old))
    assert not any(segment.exists() for segment in segments)
    assert [process.name() for process in _engine(teacher)] == names
    return answers


def _wait_for(count: object, least: float, within_s: float = 240) -> float:
    assert callable(count)
    deadline = time.monotonic() + within_s
    while (now := count()) < least:
        assert time.monotonic() < deadline, f"only {now:g} within {within_s:g} s"
        time.sleep(0.05)
    return float(now)
