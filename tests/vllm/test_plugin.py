"""The plugin in vLLM's processes: those of our own engine are adapted, and those of others are not."""

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from teacher_server.engines.vllm.plugin import VARIABLE
from tests.conftest import TeacherProcess, environment_without

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

_LOAD = """
import logging, sys
import vllm.distributed.utils
from vllm.plugins import load_general_plugins
before = vllm.distributed.utils.USE_SCHED_YIELD, logging.getLogger("vllm").handlers[:]
load_general_plugins()
print(before == (vllm.distributed.utils.USE_SCHED_YIELD, logging.getLogger("vllm").handlers))
"""


@pytest.mark.parametrize("ours", [True, False])
def test_only_our_own_engine_is_adapted(ours: bool, tmp_path: Path) -> None:
    env = environment_without(VARIABLE) | ({VARIABLE: str(tmp_path / "failures")} if ours else {})
    done = subprocess.run([sys.executable, "-c", _LOAD], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == str(not ours)


def test_the_variable_is_set_for_the_engines_processes_alone(compact_teacher: TeacherProcess) -> None:
    service = psutil.Process(compact_teacher.process.pid)
    assert VARIABLE not in service.environ()
    assert any(VARIABLE in process.environ() for process in service.children(recursive=True))
