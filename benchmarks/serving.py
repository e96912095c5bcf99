"""Starts servers for benchmarks: local processes that end with the benchmark."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx

from teacher_tools.bench.teachers import served

BIN = Path(sys.executable).parent
"""The folder of this environment's commands."""


def start_teacher(stack: ExitStack, *flags: str) -> Callable[[], str]:
    """Starts a prompted teacher without a store; returns a function that waits and returns its address."""
    return stack.enter_context(served(["--teacher", "prompted", "--store", "none", *flags]))


@contextmanager
def running(command: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Runs a process until the end of the block."""
    quiet = {"VLLM_LOGGING_LEVEL": "ERROR", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | quiet
    ) as process:
        try:
            yield process
        finally:
            process.terminate()
            process.wait(60)


def wait_for(url: str, process: subprocess.Popen[bytes], within_s: float = 1200) -> None:
    """Returns when the address answers with status 200."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise SystemExit(f"{process.args} ended with {process.returncode}")  # type: ignore[str-bytes-safe]
        try:
            if httpx.get(url).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    raise SystemExit(f"{url} was not ready within {within_s:g} s")


def has_gpu() -> bool:
    """Returns whether the machine has an NVIDIA driver, which brings nvidia-smi: also under WSL."""
    return shutil.which("nvidia-smi") is not None
