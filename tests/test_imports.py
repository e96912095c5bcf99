"""Imports that would cost seconds, or need a package of another extra, do not happen."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

_SERVICE = {"vllm", "transformers", "fastapi", "starlette", "uvicorn", "teacher_server", "teacher_tools"}
_MODELS = {"torch", "numpy", "PIL", "minigrid", "gridworld", "student"}


def _loaded(code: str, **env: str) -> set[str]:
    """Returns the modules of a process that ran the code."""
    command = [sys.executable, "-c", f"import sys; {code}; print(*sys.modules)"]
    done = subprocess.run(command, env=os.environ | env, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_client_loads_neither_the_service_nor_a_model() -> None:
    assert not (_SERVICE | _MODELS) & _loaded("import teacher_api.client")


def test_the_student_loads_nothing_of_the_service() -> None:
    modules = "student.cli, student.trainer, student.runs.evaluate, student.demo, student.experiments.report"
    loaded = _loaded(f"import {modules}")
    assert not _SERVICE & loaded
    assert "scipy.stats" not in loaded  # it costs every student more than a second


@pytest.mark.parametrize(
    ("program", "command", "heavy"),
    [
        ("student", "train", {"torch", "matplotlib"}),
        ("student", "report", {"scipy", "matplotlib"}),
        ("teacher_tools", "serve", {"fastapi", "tokenizers"}),
    ],
)
def test_a_wrong_flag_is_refused_before_the_command_is_loaded(
    program: str, command: str, heavy: set[str]
) -> None:
    """A variable of another command does not load that command's settings either."""
    loaded = _loaded(f"import {program}.cli; {program}.cli.main(['{command}', '--zzz'])", STUDENT_FRAMES="3")
    assert not heavy & loaded


def test_the_students_extra_asks_for_nothing_of_the_service() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["student"]
    assert not _SERVICE & {requirement.partition(">=")[0] for requirement in wanted}
