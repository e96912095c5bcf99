"""The student stays light: it needs neither the service's packages nor an engine's."""

import tomllib
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

_HEAVY = {"vllm", "transformers", "fastapi", "starlette", "uvicorn"}


def test_the_students_extra_asks_for_nothing_of_the_service() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["student"]
    assert not _HEAVY & {requirement.partition(">=")[0] for requirement in wanted}
