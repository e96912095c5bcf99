"""Starts stock `vllm serve`, for benchmarks to compare with and for tests to attach to."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import httpx

_VLLM = str(Path(sys.executable).with_name("vllm"))


def stock_flags(
    model: Path, *, pictures: int, dtype: str, max_model_len: int, kv_cache_gib: float
) -> list[str]:
    """`serve` and its flags, for conversations of so many pictures."""
    limit = {"image": {"count": pictures, "width": 1120, "height": 1120}, "video": 0}
    return [
        *("serve", str(model), "--dtype", dtype, "--max-model-len", str(max_model_len)),
        *("--limit-mm-per-prompt", json.dumps(limit)),
        *("--kv-cache-memory-bytes", str(int(kv_cache_gib * 2**30))),
        *("--structured-outputs-config", json.dumps({"backend": "xgrammar"})),
    ]


class StockServer:
    """A `vllm serve` of a tiny checkpoint, on a port that it keeps when it is started again."""

    def __init__(self, model: Path, log: Path, *flags: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.root = f"http://127.0.0.1:{port}"
        self.url = f"{self.root}/v1"
        self._log = log
        stock = stock_flags(model, pictures=6, dtype="float32", max_model_len=16384, kv_cache_gib=1)
        self._command = [_VLLM, *stock, "--host", "127.0.0.1", "--port", str(port), "--enforce-eager", *flags]
        self.start()

    def start(self) -> None:
        """Starts it; seconds to minutes later it is ready."""
        quiet = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdout=log, stderr=log, env=os.environ | quiet, start_new_session=True
            )

    def wait(self, within_s: float = 600) -> None:
        """Returns when it answers."""
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            assert self._process.poll() is None, self._log.read_text()[-3000:]
            with suppress(httpx.TransportError):
                if httpx.get(f"{self.root}/health").status_code == 200:
                    return
            time.sleep(0.5)
        raise AssertionError(f"not ready within {within_s:g} s: {self._log.read_text()[-3000:]}")

    def kill(self) -> None:
        """kill -9, with all that it started."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(60)

    def metric(self, name: str) -> float:
        """The sum of a metric's series, now."""
        lines = httpx.get(f"{self.root}/metrics").text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"{name}{{"))
