"""Importing this project changes no environment variable; `set_offline` keeps the libraries offline."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.conftest import environment_without

pytestmark = pytest.mark.integration

_IMPORT_ALL = """
import os, pkgutil
from contextlib import suppress
from importlib import import_module

for name in ("minigrid", "vllm"):  # these change variables themselves
    with suppress(ModuleNotFoundError):
        import_module(name)
before = dict(os.environ)
for package in ("gridworld", "teacher_api", "teacher_server", "teacher_tools", "student"):
    for module in pkgutil.walk_packages(import_module(package).__path__, f"{package}."):
        if not module.name.endswith("__main__"):
            with suppress(ModuleNotFoundError):  # an optional package
                import_module(module.name)
            assert dict(os.environ) == before, module.name
"""
_SET = """
from teacher_server.engines.offline import set_offline
set_offline()
import os, huggingface_hub.constants
print(huggingface_hub.constants.HF_HUB_OFFLINE, os.environ["VLLM_LOGGING_STREAM"])
"""

_SET_BY_THE_STUDENT = """
from student.runs.onnx_student import needed
needed("onnxruntime")
"""
_SESSION = """
import onnxruntime
from onnx import TensorProto, helper
x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "graph", [x], [y])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
"""


def _run(code: str, **variables: str) -> str:
    env = environment_without("HF_") | variables
    return subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    ).stdout


def test_no_module_changes_the_environment_when_it_is_imported() -> None:
    _run(_IMPORT_ALL)


def test_set_offline_keeps_the_hub_away() -> None:
    assert _run(_SET).split() == ["True", "ext://sys.stderr"]


@pytest.mark.skipif(find_spec("onnxruntime") is None, reason="onnxruntime is not installed")
@pytest.mark.parametrize("setting", [_SET, _SET_BY_THE_STUDENT], ids=["teacher", "student"])
def test_onnxruntime_prepares_no_usage_reports(tmp_path: Path, setting: str) -> None:
    """It would store them, and a number for this machine, in the user's cache."""
    _run(setting + _SESSION, XDG_CACHE_HOME=str(tmp_path))
    assert list(tmp_path.iterdir()) == []
