"""OpenMP's threads sleep while they wait in each command that loads torch, unless the user sets otherwise."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("torch")

pytestmark = pytest.mark.integration

_COMMAND = """
from teacher_api.commands import Command, Group, dispatch
command = Command("", "teacher_tools.prompts:ListSettings", "torch:is_tensor")
dispatch("some", Group("", {"command": command}), ["command"])
"""


def _openmp(**variables: str) -> str:
    """Returns OpenMP's report of its settings when a command loads torch."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    env |= {"OMP_DISPLAY_ENV": "VERBOSE"} | variables
    command = [sys.executable, "-c", _COMMAND]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=env, timeout=300).stderr


def test_threads_wait_asleep() -> None:
    said = _openmp()
    if "GOMP_SPINCOUNT" in said:  # GNU's OpenMP, as on Linux
        assert "GOMP_SPINCOUNT = '0'" in said
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in said or "OMP_WAIT_POLICY='PASSIVE'" in said


def test_what_the_user_has_set_stands() -> None:
    assert "ACTIVE'" in _openmp(OMP_WAIT_POLICY="ACTIVE")
