"""Fixtures: prompted teachers in their own processes, with a checkpoint in real vLLM."""

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from teacher_api.processes import COMPACT
from teacher_server.prompting.prompt_set import load_prompt_set
from tests.conftest import TeacherProcess, started_teachers
from tests.teacher_server.checkpoints.breaking import set_fields
from tests.waiting import wait_until_ready
from tools.random_checkpoint import make_checkpoint, shortened

VLLM_FLAGS = ("--engine", "vllm", "--eager", "--kv-cache-gib", "1")

StartPrompted = Callable[..., TeacherProcess]
"""start(*flags, model, ready, **variables) starts a prompted teacher; it waits for it, if `ready`."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips these tests, with a reason, where vLLM is not installed."""
    if importlib.util.find_spec("vllm") is None:
        for item in items:
            if item.get_closest_marker("vllm"):
                item.add_marker(pytest.mark.skip(reason="vLLM is not installed here: make test-vllm"))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen2.5-VL checkpoint of under a million parameters, with random weights.

    Its own pixel bounds would scale each prepared picture; they may have no effect.
    """
    folder = make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny")
    set_fields("preprocessor_config.json", min_pixels=448 * 448)(folder)
    return folder


@pytest.fixture(scope="session")
def short_prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`minigrid` with analyses short enough to be complete."""
    return shortened(load_prompt_set("minigrid"), tmp_path_factory.mktemp("prompts") / "short")


@pytest.fixture(scope="module")
def start_prompted(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Iterator[StartPrompted]:
    """Starts prompted teachers, and kills them after the module's tests."""
    with started_teachers(tmp_path_factory) as start_teacher:

        def start(
            *flags: str, model: Path = checkpoint, ready: bool = True, **variables: str
        ) -> TeacherProcess:
            teacher = start_teacher(
                *("--teacher", "prompted", "--model", str(model), "--dtype", "float32"),
                *("--max-model-len", "16384", *flags),
                **variables,
            )
            if ready:
                wait_until_ready(teacher)
            return teacher

        yield start


@pytest.fixture(scope="session")
def compact_teacher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TeacherProcess]:
    """A vLLM teacher with the repository's checkpoint."""
    with started_teachers(tmp_path_factory) as start_teacher:
        teacher = start_teacher(
            *("--teacher", "prompted", "--model", str(COMPACT), "--prompts", "compact"),
            *("--dtype", "float32", "--max-model-len", "16384", *VLLM_FLAGS),
        )
        wait_until_ready(teacher)
        yield teacher
