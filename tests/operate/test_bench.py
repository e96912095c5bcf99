"""`teacher bench` on real vLLM: a teacher, a checkpoint's folder and stock `vllm serve` take turns."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from teacher_server.prompting.prompt_set import load_prompt_set
from tests.conftest import TeacherProcess
from tests.vllm.conftest import VLLM_FLAGS, StartPrompted, checkpoint, short_prompts, start_prompted
from tests.waiting import metric
from tools.stock_vllm import StockServer

__all__ = ["checkpoint", "short_prompts", "start_prompted"]

pytestmark = [
    pytest.mark.operate,
    pytest.mark.timeout(900),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs vLLM: make test-operate"),
]

# Random weights put little mass on labels, and their numbers rarely sum to 1
_LENIENT = ("--min-label-mass", "0", "--sum-tolerance", "1")

_MOST_TOKENS = load_prompt_set("minigrid").analysis_max_tokens + 1
"""Of an answer, both stages."""


@pytest.fixture(scope="module")
def teacher(start_prompted: StartPrompted, short_prompts: Path) -> TeacherProcess:
    """A prompted teacher with a store."""
    return start_prompted(*VLLM_FLAGS, "--prompts", str(short_prompts), *_LENIENT)


@pytest.fixture(scope="module")
def stock(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StockServer]:
    """A `vllm serve` with the same checkpoint."""
    server = StockServer(checkpoint, tmp_path_factory.mktemp("stock") / "log.txt")
    try:
        server.wait()
        yield server
    finally:
        server.kill()


def _bench(out: Path, *flags: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "teacher_tools", "bench", *flags]
    at = command.index("--") if "--" in command else len(command)
    command[at:at] = ["--out", str(out)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stderr
    print("\n" + done.stdout)
    report: dict[str, Any] = json.loads((out / "bench.json").read_text())
    return report


def test_tokens_and_store_hits_equal_the_counts_of_vllm_and_the_service(
    teacher: TeacherProcess, tmp_path: Path
) -> None:
    before = metric(teacher, "vllm:generation_tokens_total")
    flags = ("--concurrency", "1", "--questions", "40", "--warm-up", "0", "--target-ms", "60000")
    cold, warm = _bench(tmp_path, teacher.url, *flags)["points"]
    generated = metric(teacher, "vllm:generation_tokens_total") - before
    assert cold["errors"] == warm["errors"] == {}
    assert (cold["stored"], warm["stored"]) == (0, 40)
    assert cold["tokens"]["action"] == 1
    counted = round(40 * sum(cold["tokens"].values()))
    print(f"vLLM generated {generated:.0f} tokens; those of the 40 counted questions are {counted}")
    assert 0 < generated - counted <= _MOST_TOKENS  # one uncounted question
    assert warm["tokens"] == {}
    assert warm["latency_ms"]["p50"] < cold["latency_ms"]["p50"]


def test_a_checkpoints_folder_is_served_during_the_run(
    teacher: TeacherProcess, checkpoint: Path, short_prompts: Path, tmp_path: Path
) -> None:
    flags = (
        "--vs",
        str(checkpoint),
        "--concurrency",
        "1",
        "--questions",
        "12",
        "--rounds",
        "3",
        "--warm-up",
        "1",
    )
    served = (*VLLM_FLAGS, "--dtype", "float32", "--max-model-len", "16384", *_LENIENT)
    report = _bench(tmp_path, teacher.url, *flags, "--", *served, "--prompts", str(short_prompts))
    teachers = report["teachers"]
    assert teachers["vs"]["folder"] == str(checkpoint)
    assert teachers["vs"]["identity"] == teachers["teacher"]["identity"]  # same flags, same checkpoint
    points = [
        (point["teacher"], point["pass"], point["answered"], point["stored"]) for point in report["points"]
    ]
    assert points == [
        *(("teacher", "cold", 12, 0), ("vs", "cold", 12, 0)),
        *(("teacher", "warm", 12, 12), ("vs", "warm", 12, 12)),
    ]
    assert [ratio["pass"] for ratio in report["ratios"]] == ["cold", "warm"]
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{teachers['vs']['address']}/livez")


def test_stock_vllm_gets_the_same_two_stages(
    teacher: TeacherProcess, stock: StockServer, short_prompts: Path, tmp_path: Path
) -> None:
    before = stock.metric("vllm:generation_tokens_total")
    flags = ("--concurrency", "2", "--questions", "12", "--rounds", "3", "--warm-up", "0", "--no-warm")
    openai = ("--vs-openai", stock.url, "--prompts", str(short_prompts))
    report = _bench(tmp_path, teacher.url, *flags, *openai)
    generated = stock.metric("vllm:generation_tokens_total") - before
    ours, theirs = report["points"]
    assert (ours["teacher"], theirs["teacher"]) == ("teacher", "openai")
    assert theirs["errors"].keys() <= {"cut off"}  # random weights may generate without an end
    assert theirs["answered"] > 0
    assert set(theirs["parts_ms"]) == {"analysis", "action"}
    assert theirs["tokens"]["action"] > 1  # numbers are written out
    most = load_prompt_set(str(short_prompts)).numbers_max_tokens
    assert theirs["tokens"]["action"] <= most
    assert generated >= theirs["answered"] * sum(theirs["tokens"].values())
