"""The checkpoint that the repository has, in real vLLM: in our service, and in stock `vllm serve`."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from student.teachers import COMPACT
from tests.compact import assert_it_knows_its_tasks
from tests.conftest import StartTeacher
from tests.stock import StockServer
from tests.vllm.conftest import VLLM_FLAGS, StartPrompted
from tests.waiting import wait_until_ready

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def checkpoint() -> Path:
    """What prompted teachers are started with here."""
    return COMPACT


@pytest.fixture
def stock(tmp_path: Path) -> Iterator[StockServer]:
    """With nothing of ours in it."""
    server = StockServer(COMPACT, tmp_path / "stock.txt", "--served-model-name", "compact")
    try:
        server.wait()
        yield server
    finally:
        server.kill()


def test_it_knows_its_tasks(start_prompted: StartPrompted, tmp_path: Path) -> None:
    teacher = start_prompted(*VLLM_FLAGS, "--prompts", "compact")
    assert_it_knows_its_tasks(teacher.url, tmp_path, states=20, episodes=5)
    teacher.end()


def test_it_knows_them_in_stock_vllm(
    stock: StockServer, teacher_process: StartTeacher, tmp_path: Path
) -> None:
    teacher = teacher_process(
        *("--teacher", "prompted", "--engine", "openai", "--prompts", "compact"),
        *("--openai-url", stock.url, "--openai-model", "compact"),
    )
    wait_until_ready(teacher)
    assert_it_knows_its_tasks(teacher.url, tmp_path, states=20, episodes=5)
