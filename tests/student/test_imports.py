"""The student stays light: it needs neither the service's packages nor an engine's."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

_HEAVY = {"vllm", "transformers", "fastapi", "starlette", "uvicorn"}


def test_the_student_loads_nothing_of_the_service() -> None:
    modules = "student.cli, student.trainer, student.runs.evaluate, student.demo, student.experiments.report"
    code = f"import sys, {modules}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    names = set(loaded.split())
    assert not _HEAVY & {name.partition(".")[0] for name in names}
    ours = {name for name in names if name.startswith("teacher_server.")}
    assert "scipy.stats" not in names  # it costs every student more than a second
    assert ours == {
        f"teacher_server.{name}" for name in ("client", "command_line", "keys", "schemas", "terminal")
    }


def test_the_students_extra_asks_for_nothing_of_the_service() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["student"]
    assert not _HEAVY & {requirement.partition(">=")[0] for requirement in wanted}
