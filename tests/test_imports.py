"""What stays out of a process: an import that costs seconds, or needs a package that is not installed."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.integration

_SERVICE = {"vllm", "transformers", "fastapi", "starlette", "uvicorn", "teacher_server", "teacher_tools"}
_MODELS = {"torch", "numpy", "PIL", "minigrid", "gridworld", "student"}


def _loaded(code: str, **env: str) -> set[str]:
    """The modules of a process that ran the code."""
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
    """A known variable is no reason either to load the settings of every command."""
    loaded = _loaded(f"import {program}.cli; {program}.cli.main(['{command}', '--zzz'])", STUDENT_FRAMES="3")
    assert not heavy & loaded
