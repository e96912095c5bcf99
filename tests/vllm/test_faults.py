"""Clients that go away in mid-answer, an engine that dies, and what runs beside it."""

import asyncio
import json
import re
import shutil
import subprocess
import sys
import time

import httpx
import psutil
import pytest

from teacher_server.bench.questions import distinct_questions
from teacher_server.prompts import SETS
from tests.conftest import TeacherProcess
from tests.vllm.conftest import VLLM_FLAGS, StartPrompted
from tests.waiting import metric

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def slow_teacher(start_prompted: StartPrompted, tmp_path_factory: pytest.TempPathFactory) -> TeacherProcess:
    """Its analyses are thousands of tokens long: minutes for fifty of them."""
    slow = shutil.copytree(SETS / "minigrid-zero-shot", tmp_path_factory.mktemp("prompts") / "slow")
    schema = json.loads((slow / "analysis.schema.json").read_text())
    endless = {"type": "string", "minLength": 40_000, "maxLength": 50_000}
    schema["properties"] = {"endless": endless}
    schema["required"] = ["endless"]
    (slow / "analysis.schema.json").write_text(json.dumps(schema))
    settings = (slow / "set.toml").read_text()
    settings = re.sub(r"analysis_max_tokens = \d+", "analysis_max_tokens = 8000", settings)
    (slow / "set.toml").write_text(settings)
    return start_prompted(*VLLM_FLAGS, "--prompts", str(slow), "--timeout-s", "600")


def test_clients_that_go_away_free_the_engine(slow_teacher: TeacherProcess) -> None:
    questions = distinct_questions(50, seed=7)

    async def ask_and_leave() -> int:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(timeout=None, limits=limits) as http:
            url = f"{slow_teacher.url}/policy"
            asking = [asyncio.create_task(http.post(url, json=q.model_dump(mode="json"))) for q in questions]
            most = await asyncio.to_thread(_wait_for, lambda: _in_engine(slow_teacher), 50)
            assert not any(task.done() for task in asking)
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)
        return int(most)

    running = asyncio.run(ask_and_leave())
    left = time.monotonic()
    while _in_engine(slow_teacher) > 0:
        assert time.monotonic() - left < 30
        time.sleep(0.05)
    print(
        f"\n{running} requests in the engine; none {time.monotonic() - left:.2f} s after their clients left"
    )
    assert metric(slow_teacher, "teacher_in_flight") == 0
    generated = metric(slow_teacher, "vllm:generation_tokens_total")
    time.sleep(1)
    assert metric(slow_teacher, "vllm:generation_tokens_total") == generated
    assert httpx.get(f"{slow_teacher.url}/readyz").status_code == 200


def test_an_engine_that_dies_is_told_and_ends_the_service(slow_teacher: TeacherProcess) -> None:
    questions = distinct_questions(32, seed=8)

    async def ask_and_kill() -> list[httpx.Response]:
        async with httpx.AsyncClient(timeout=None) as http:
            url = f"{slow_teacher.url}/policy"
            asking = [asyncio.create_task(http.post(url, json=q.model_dump(mode="json"))) for q in questions]
            await asyncio.to_thread(_wait_for, lambda: _in_engine(slow_teacher), len(questions))
            assert not any(task.done() for task in asking)
            engine = psutil.Process(slow_teacher.process.pid).children()  # under whatever title it runs
            assert engine
            for process in engine:
                process.kill()
            return await asyncio.wait_for(asyncio.gather(*asking), 120)

    for reply in asyncio.run(ask_and_kill()):
        assert reply.status_code == 502
        assert "gone" in reply.json()["error"]["reason"]
    assert slow_teacher.process.wait(60) == 1
    assert "teacher: error: the teacher is gone" in slow_teacher.stderr


def test_vllm_leaves_other_programs_their_turn_on_cpus() -> None:
    found_in_every_process = (
        "import vllm.distributed.utils as waiting; from vllm.plugins import load_general_plugins;"
        "load_general_plugins(); print('yields', waiting.USE_SCHED_YIELD)"
    )
    said = subprocess.run(
        [sys.executable, "-c", found_in_every_process],
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    assert "yields False" in said.stdout


def _in_engine(teacher: TeacherProcess) -> float:
    return metric(teacher, "vllm:num_requests_running") + metric(teacher, "vllm:num_requests_waiting")


def _wait_for(count: object, least: float, within_s: float = 240) -> float:
    assert callable(count)
    deadline = time.monotonic() + within_s
    while (now := count()) < least:
        assert time.monotonic() < deadline, f"only {now:g} within {within_s:g} s"
        time.sleep(0.05)
    return float(now)
