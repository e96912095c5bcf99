"""The repository's checkpoint in real vLLM."""

from pathlib import Path

import pytest

from teacher_api.processes import COMPACT
from tests.compact import assert_it_knows_its_tasks
from tests.vllm.conftest import VLLM_FLAGS, StartPrompted

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def checkpoint() -> Path:
    """The checkpoint of this module's teachers."""
    return COMPACT


def test_it_knows_its_tasks(start_prompted: StartPrompted, tmp_path: Path) -> None:
    teacher = start_prompted(*VLLM_FLAGS, "--prompts", "compact")
    assert_it_knows_its_tasks(teacher.url, tmp_path, states=20, episodes=5)
    teacher.end()
