"""A checkpoint of `teacher train` in real vLLM."""

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from gridworld.tasks import TASKS
from teacher_api.client import TeacherClient
from teacher_tools.cli import main
from tests.conftest import AskAbout, TeacherProcess
from tests.vllm.conftest import VLLM_FLAGS, StartPrompted, start_prompted
from tests.waiting import LONG_S

__all__ = ["start_prompted"]

pytestmark = [
    pytest.mark.operate,
    pytest.mark.timeout(900),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs vLLM: make test-operate"),
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A compact checkpoint, trained for a few steps."""
    out = tmp_path_factory.mktemp("trained") / "run"
    flags = ["--pictures", "16", "--samples", "32", "--batch-size", "8", "--no-progress"]
    assert main(["train", "--out", str(out), *flags]) == 0
    return out / "checkpoint"


@pytest.fixture(scope="module")
def teacher(start_prompted: StartPrompted) -> Iterator[TeacherProcess]:
    started = start_prompted(*VLLM_FLAGS, "--prompts", "compact", "--min-label-mass", "0")
    yield started
    started.end()


def test_a_trained_checkpoint_answers_about_every_task(teacher: TeacherProcess, ask_about: AskAbout) -> None:
    with TeacherClient(teacher.url, deadline_s=LONG_S) as client:
        for task in TASKS.values():
            answer = client.ask(ask_about(task.env_id))
            assert list(json.loads(answer.analysis, strict=False)) == [
                "agent",
                "target",
                "hazards",
                "front",
                "direction",
            ]
            assert answer.probabilities is not None
            assert sum(answer.probabilities.values()) == pytest.approx(1)
