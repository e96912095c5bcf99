"""Checkpoints without model libraries, and the GPUs that torch sees, in processes of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.waiting import LONG_S
from tools.random_checkpoint import make_checkpoint

pytestmark = pytest.mark.integration


def test_no_model_library_is_loaded_to_read_one(tmp_path: Path) -> None:
    reading = "import sys; from pathlib import Path;"
    reading += "from teacher_server.checkpoints.checkpoint import read_checkpoint;"
    reading += "read_checkpoint(Path(sys.argv[1])).digest();"
    reading += "print([name for name in ('torch', 'transformers', 'vllm') if name in sys.modules])"
    command = [sys.executable, "-c", reading, str(make_checkpoint(tmp_path))]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=LONG_S)
    assert done.stdout == "[]\n"


_TORCH = """
class version:
    cuda, hip = "13.0", None

class cuda:
    device_count = staticmethod(lambda: 2)
    mem_get_info = staticmethod(lambda i: (10 + i, 20 + i))
    get_device_name = staticmethod(lambda i: "H100")
"""


def _gpus_with_torch(folder: Path, source: str) -> object:
    """Returns the GPUs in a process whose torch has this source."""
    (folder / "torch.py").write_text(source)
    look = "import dataclasses, json; from teacher_server.checkpoints.memory import gpu_memory as look;"
    look += "seen = look();"
    look += "print(json.dumps(seen and [dataclasses.astuple(place) for place in seen]))"
    done = subprocess.run(
        [sys.executable, "-c", look],
        capture_output=True,
        text=True,
        check=True,
        timeout=LONG_S,
        env=os.environ | {"PYTHONPATH": str(folder)},
    )
    return json.loads(done.stdout)


def test_gpus_that_torch_sees(tmp_path: Path) -> None:
    assert _gpus_with_torch(tmp_path, _TORCH) == [["GPU 0 (H100)", 20, 10], ["GPU 1 (H100)", 21, 11]]


@pytest.mark.parametrize(
    ("source", "seen"),
    [
        (_TORCH.replace('"13.0"', "None"), None),
        ("raise ImportError('libcuda.so: broken')", None),
        (_TORCH.replace("lambda: 2", "lambda: 1 / 0"), []),
        (_TORCH.replace("lambda: 2", "lambda: 0"), []),
    ],
)
def test_gpus_that_torch_does_not_see(tmp_path: Path, source: str, seen: object) -> None:
    assert _gpus_with_torch(tmp_path, source) == seen
