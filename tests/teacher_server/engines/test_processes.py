"""Ending processes with their descendants, whatever they do, and removing their shared memory."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import psutil
import pytest

from teacher_server.engines.vllm.processes import Processes

pytestmark = pytest.mark.integration


def _hold(connection: Connection) -> None:
    """Ignores SIGTERM, holds shared memory, and has an ordinary child."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    segment = SharedMemory(create=True, size=1000)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    connection.send((segment.name, child.pid))
    time.sleep(600)


@pytest.fixture
def holder() -> Iterator[tuple[BaseProcess, Path, psutil.Process]]:
    """Starts a process; returns it, its shared memory and its child."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_hold, args=(there,))
    process.start()
    name, child = here.recv()
    yield process, Path("/dev/shm", name), psutil.Process(child)
    process.kill()
    process.join()


def _lives(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("before", [None, signal.SIGSTOP, signal.SIGKILL])
def test_nothing_is_left(
    holder: tuple[BaseProcess, Path, psutil.Process], before: signal.Signals | None
) -> None:
    process, segment, child = holder
    assert process.pid is not None
    processes = Processes([process.pid])
    assert segment.exists()
    if before is not None:
        os.kill(process.pid, before)
    child.suspend()
    processes.end()
    assert not _lives(child)
    assert not segment.exists()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    processes.end()


def test_those_that_have_ended_are_no_trouble() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
    Processes([ended.pid]).end()
    Processes([]).end()
