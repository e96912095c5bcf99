"""A reader who types a page's commands into shells, beside the servers that earlier ones started."""

import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from safetensors.torch import load_file, save_file

from tests.docs.exceptions import SMOKE, VARIABLES, as_typed, may_read
from tests.docs.pages import ROOT, Command, Reply
from tests.waiting import LONG_S

_SERVERS = r"(?:[A-Z_]+=\S+ )*(teacher serve|tensorboard) "
_HELP = """\
A reader of the page meets this: mend the page or the command. A command that cannot be run here (a GPU, the
network, minutes) gets an entry in tests/docs/exceptions.py: in SHORTER or PLACEHOLDERS if a part of it can be
replaced, else in NOT_RUN, with the reason. `pytest tests/docs -k NAME` tries the page NAME.md alone."""


class DoesNotWork(AssertionError):
    """What a page has its reader type does not do what it should."""

    def __init__(self, command: Command, why: str, output: str) -> None:
        super().__init__(f"{command}\n{why}\n{output.strip()[-3000:]}\n\n{_HELP}")


@dataclass
class _Server:
    command: Command
    text: str
    port: str
    process: subprocess.Popen[bytes]
    output: Path


class Reader:
    """Has a copy of the repository, and ports of its own wherever the page names one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ports: defaultdict[str, int] = defaultdict(_free_port)
        self._servers: list[_Server] = []
        self._done: dict[str, str] = {}
        self._printed = ""
        for name in ("checkpoints", "examples", "prompts", "sweeps"):
            shutil.copytree(ROOT / name, folder / name)
        smoke = folder / "sweeps/smoke.toml"
        plan = smoke.read_text(encoding="utf-8")
        for setting, value in SMOKE.items():
            plan, found = re.subn(rf"^{setting} = .*$", f"{setting} = {value}", plan, flags=re.MULTILINE)
            assert found == 1, f"sweeps/smoke.toml sets no {setting}"
        smoke.write_text(plan, encoding="utf-8")

    def bring_checkpoints(self) -> None:
        """Puts those in place that a page calls models/A and models/B."""
        for name in "AB":
            shutil.copytree(ROOT / "checkpoints/compact", self._folder / "models" / name)
        weights = self._folder / "models/B/model.safetensors"
        tensors = load_file(weights)
        save_file({name: tensor * 1.001 for name, tensor in tensors.items()}, weights, {"format": "pt"})

    def type(self, command: Command) -> None:
        """Runs a command to its end, unless an earlier page had it, or starts a server and waits for it.

        Raises:
            DoesNotWork: it fails, or the server ends.
        """
        text = re.sub(
            r"(\w:|port )(\d{4,5})\b",
            lambda found: f"{found[1]}{self._ports[found[2]]}",
            as_typed(command.text),
        )
        if re.match(_SERVERS, text) and "--help" not in text:
            self._serve(command, text.removesuffix("&"))
            return
        if self._done.setdefault(command.text, command.page) != command.page:
            return
        done = subprocess.run(
            ["bash", "-e", "-o", "pipefail", "-c", text],
            cwd=self._folder,
            env=self._variables(text),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=LONG_S,
            check=False,
        )
        self._printed = _text(done.stdout)
        if done.returncode != 0:
            raise DoesNotWork(command, f"exit code {done.returncode}", self._printed)

    def compare(self, reply: Reply) -> None:
        """Fails unless the newest command printed what the page shows, but for times."""
        printed, _ = json.JSONDecoder().raw_decode(self._printed[self._printed.index("{") :])
        if not _alike(json.loads(reply.text), printed):
            raise DoesNotWork(Command(reply.page, reply.line, "the reply"), "it is another", self._printed)

    def stop_newest(self) -> None:
        """Ends the newest server."""
        self._stop(self._servers[-1])

    def _stop(self, server: _Server) -> None:
        self._servers.remove(server)
        with suppress(ProcessLookupError):
            os.killpg(server.process.pid, signal.SIGTERM)
        try:
            code = server.process.wait(60)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(server.process.pid, signal.SIGKILL)
        if code not in (0, 128 + signal.SIGTERM, -signal.SIGTERM):
            raise DoesNotWork(
                server.command, f"exit code {code} when it was ended", _text(server.output.read_bytes())
            )

    def leave(self) -> None:
        """Ends all servers."""
        while self._servers:
            self.stop_newest()

    def _serve(self, command: Command, text: str) -> None:
        """Starts a server, unless an earlier page has; ends the one that an earlier page has on its port."""
        named = re.search(r"--port (\d+)", text)
        port = named[1] if named else str(self._ports["8000"])
        for server in list(self._servers):
            if server.text == text:
                return
            if server.port == port:
                self._stop(server)
        output = self._folder / f"server-{_free_port()}.txt"
        with output.open("wb") as file:
            process = subprocess.Popen(
                ["bash", "-c", f"exec env {text}"],
                cwd=self._folder,
                env=self._variables(text),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._servers.append(_Server(command, text, port, process, output))
        end = time.monotonic() + LONG_S
        while not self._answers(text, output):
            if process.poll() is not None or time.monotonic() > end:
                said = _text(output.read_bytes())
                raise DoesNotWork(command, f"it does not serve; exit code {process.poll()}", said)
            time.sleep(0.05)

    @staticmethod
    def _answers(text: str, output: Path) -> bool:
        address = re.search(r"(?:listening on|TensorBoard \S+ at) (\S+)", _text(output.read_bytes()))
        if address is None:
            return False
        url = address[1].replace("0.0.0.0", "127.0.0.1").rstrip("/")
        ready = f"{url}/readyz" if "teacher serve" in text else url
        with suppress(httpx.HTTPError):
            return httpx.get(ready, timeout=10).status_code == httpx.codes.OK
        return False

    def _variables(self, text: str) -> dict[str, str]:
        ours = {
            name: value for name, value in os.environ.items() if not name.startswith(("TEACHER_", "STUDENT_"))
        }
        teacher = f"http://127.0.0.1:{self._ports['8000']}"
        given = {
            **VARIABLES,
            "TEACHER_PORT": str(self._ports["8000"]),
            "TEACHER_URL": teacher,
            "TEACHER_SCORE_URL": teacher,
        }
        return {
            **ours,
            **{name: value for name, value in given.items() if may_read(text, name)},
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}",
        }


def _alike(shown: Any, printed: Any) -> bool:
    """Whether a page shows what was printed: texts may be cut off by "...", and times differ."""
    if isinstance(shown, dict) and isinstance(printed, dict):
        names = set(shown) - {"milliseconds", "stored"}
        return set(shown) == set(printed) and all(_alike(shown[name], printed[name]) for name in names)
    if isinstance(shown, str) and shown.endswith("..."):
        return str(printed).startswith(shown.removesuffix("..."))
    if isinstance(shown, float):
        return math.isclose(shown, printed, abs_tol=1e-4)
    return bool(shown == printed)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


def _text(output: bytes) -> str:
    return output.decode(errors="replace")
