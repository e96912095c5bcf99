"""The repository's checkpoint in stock `vllm serve`, without code of this project in the server."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest

from teacher_api.processes import COMPACT
from tests.compact import assert_it_knows_its_tasks
from tests.conftest import StartTeacher
from tests.waiting import wait_until_ready
from tools.stock_vllm import StockServer

pytestmark = [
    pytest.mark.operate,
    pytest.mark.timeout(900),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs vLLM: make test-operate"),
]


@pytest.fixture
def stock(tmp_path: Path) -> Iterator[StockServer]:
    """A stock server with the unchanged checkpoint."""
    server = StockServer(COMPACT, tmp_path / "stock.txt", "--served-model-name", "compact")
    try:
        server.wait()
        yield server
    finally:
        server.kill()


def test_it_knows_its_tasks(stock: StockServer, teacher_process: StartTeacher, tmp_path: Path) -> None:
    teacher = teacher_process(
        *("--teacher", "prompted", "--engine", "openai", "--prompts", "compact"),
        *("--openai-url", stock.url, "--openai-model", "compact"),
    )
    wait_until_ready(teacher)
    assert_it_knows_its_tasks(teacher.url, tmp_path, states=20, episodes=5)
