"""Fixtures: `docker compose` as users start it, with images built from this checkout."""

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import waiting

_ROOT = Path(__file__).parents[2]
GPU = "-f docker-compose.yml"
CPU = f"{GPU} -f docker/compose.cpu.yml"
VLLM_CPU = f"{GPU} -f docker/compose.vllm-cpu.yml"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips the tests, with the reason, where there is no Docker."""
    ours = [item for item in items if item.get_closest_marker("docker")]
    if ours and not docker_info():
        for item in ours:
            item.add_marker(pytest.mark.skip(reason="no Docker engine answers here"))


def docker_info() -> str:
    """Returns the output of `docker info`; empty where there is no Docker."""
    if shutil.which("docker") is None:
        return ""
    done = subprocess.run(["docker", "info"], capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else ""


class Stack:
    """A compose project with its own name, ports and .env file; `variables` may be changed."""

    def __init__(self, name: str, files: str, folder: Path, **variables: str) -> None:
        self._name, self._files, self._env_file = name, files, folder / "env"
        self.teacher_port, self.tensorboard_port = _free_port(), _free_port()
        self._variables = {
            "TEACHER_PORT": str(self.teacher_port),
            "TENSORBOARD_PORT": str(self.tensorboard_port),
            "STUDENT_PROGRESS": "false",
            **variables,
        }
        self.variables = dict(self._variables)

    def reset(self) -> None:
        """Resets `variables`."""
        self.variables = dict(self._variables)

    @property
    def url(self) -> str:
        """The teacher's address as published by the gateway."""
        return f"http://127.0.0.1:{self.teacher_port}"

    def __call__(self, *arguments: str, timeout: float = 600) -> subprocess.CompletedProcess[str]:
        """Runs `docker compose`, which may fail."""
        self._env_file.write_text("".join(f"{name}={value}\n" for name, value in self.variables.items()))
        chosen = ["-p", self._name, "--env-file", str(self._env_file), *self._files.split()]
        return subprocess.run(
            ["docker", "compose", "--ansi", "never", *chosen, *arguments],
            cwd=_ROOT,
            env=os.environ | {"ENV_FILE": str(self._env_file)},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def do(self, *arguments: str, timeout: float = 600) -> str:
        """Runs `docker compose`, which has to succeed; returns its output."""
        done = self(*arguments, timeout=timeout)
        assert done.returncode == 0, f"docker compose {' '.join(arguments)}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def up(self, *arguments: str) -> None:
        """Starts all services or those named; returns when the services that others depend on are healthy."""
        self.do("up", "--detach", "--no-build", *arguments)

    def run_ended(self) -> int:
        """Waits for the student's end; returns its exit code."""
        wait_for(lambda: self.state("student")["State"] == "exited", "the student's end", 300)
        return int(self.state("student")["ExitCode"])

    def summary(self, run: str) -> dict[str, Any]:
        """Returns a run's summary.json from the volume."""
        cat = ("run", "--rm", "--no-deps", "-T", "--entrypoint", "cat", "student")
        summary: dict[str, Any] = json.loads(self.do(*cat, f"/runs/{run}/summary.json"))
        return summary

    def second_run(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Starts anew with the same volumes, for the run `second`; returns both runs' summaries."""
        self.do("down")
        self.variables["STUDENT_RUN"] = "second"
        self.up()
        assert self.run_ended() == 0
        return self.summary("first"), self.summary("second")

    def state(self, service: str) -> dict[str, Any]:
        """Returns the output of `docker compose ps` for a service's container."""
        (line,) = self.do("ps", "--all", "--format", "json", service).splitlines()
        state: dict[str, Any] = json.loads(line)
        return state

    def python(self, service: str, code: str) -> str:
        """Runs Python code in a service's container; returns its output."""
        return self.do("exec", "-T", service, "python3", "-c", code).strip()


def wait_for(condition: Callable[[], object], what: str, seconds: float = 120) -> None:
    """Waits for the condition; a refused connection counts as False."""

    def holds() -> object:
        try:
            return condition()
        except httpx.TransportError:
            return False

    waiting.wait_for(holds, what, seconds)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def stack(name: str, files: str, folder: Path, build: str = "", **variables: str) -> Iterator[Stack]:
    """Yields a stack whose images, or the one named, are built from this checkout; removes it afterwards."""
    made = Stack(name, files, folder, **variables)
    made.do("down", "--volumes", "--remove-orphans")
    made.do("build", *build.split(), timeout=1500)
    try:
        yield made
    finally:
        made.do("down", "--volumes", "--remove-orphans", "--timeout", "20")
