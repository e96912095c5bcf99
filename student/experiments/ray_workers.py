"""A sweep's tasks on a Ray cluster; the only file that imports ray."""

import os
import socket
import subprocess
import sys
from typing import Any
from urllib.parse import urlsplit

from student.experiments.workers import Outcome, Task, attempt
from teacher_api.command_line import CannotStart

_ANSWER_S = 15
_PROBE = """
import sys, ray
try:
    ray.init(sys.argv[1], log_to_driver=False, logging_level="ERROR")
except Exception as error:
    print(f"{type(error).__name__}: {' '.join(str(error).split())}")
    sys.exit(1)
"""
_PORTS = (
    "HOST:PORT is the head's (6379 unless it was started with --port), ray://HOST:PORT its clients' (10001)"
)


class RayWorkers:
    """Does tasks on a cluster, each on as many of its CPUs as a run has threads."""

    def __init__(self, address: str, threads: int, jobs: int | None) -> None:
        """Connects to the cluster.

        Args:
            address: HOST:PORT, ray://HOST:PORT or auto.
            jobs: tasks at once; None: as many as the cluster has CPUs for, now and later.

        Raises:
            CannotStart: Ray is not installed, the address is none, or no cluster takes this machine's tasks.
        """
        address = os.environ.get("RAY_ADDRESS") or address if address == "auto" else address
        if address != "auto":
            check_listens(address)
        try:
            import ray  # noqa: PLC0415
        except ImportError as error:
            raise CannotStart("--ray needs Ray, which is not installed: pip install 'lvlm2p[ray]'") from error
        _check_answers(address)
        ray.init(address, log_to_driver=False, logging_level="ERROR")
        self._ray, self._threads, self._jobs = ray, threads, jobs
        self._attempt = ray.remote(num_cpus=threads, max_retries=0)(attempt)
        self._busy: dict[Any, Task] = {}

    @property
    def capacity(self) -> int:
        return self._jobs or max(1, int(self._ray.cluster_resources().get("CPU", 1)) // self._threads)

    @property
    def is_this_machine(self) -> bool:
        """Whether the cluster is this machine alone, so that it reaches what listens on 127.0.0.1."""
        nodes = {node["NodeManagerAddress"] for node in self._ray.nodes() if node["Alive"]}
        return nodes <= {"127.0.0.1", self._ray.util.get_node_ip_address()}

    def start(self, task: Task) -> None:
        self._busy[self._attempt.remote(task)] = task

    def ended(self, timeout_s: float) -> list[tuple[Task, Outcome]]:
        if not self._busy:
            return []
        ready, _ = self._ray.wait(list(self._busy), timeout=timeout_s)
        return [(self._busy.pop(reference), self._outcome(reference)) for reference in ready]

    def _outcome(self, reference: Any) -> Outcome:
        try:
            outcome: Outcome = self._ray.get(reference)
        except self._ray.exceptions.TaskCancelledError:
            return Outcome("stopped")
        except self._ray.exceptions.RayError as error:
            return Outcome("died", str(error).strip().splitlines()[-1])
        return outcome

    def interrupt(self) -> None:
        for reference in self._busy:
            self._ray.cancel(reference)

    def close(self) -> None:
        self._ray.shutdown()


def host_and_port(address: str) -> tuple[str, int]:
    """Where HOST:PORT or ray://HOST:PORT is.

    Raises:
        CannotStart: the address has another form.
    """
    try:
        place = urlsplit(f"//{address.removeprefix('ray://')}")
        if place.hostname and place.port and place.netloc == address.removeprefix("ray://"):
            return place.hostname, place.port
    except ValueError:
        pass
    raise CannotStart(f"--ray {address!r} is no address: write HOST:PORT, ray://HOST:PORT or auto")


def check_listens(address: str) -> None:
    """Finds out why an address cannot be reached, which Ray does not say.

    Raises:
        CannotStart: it cannot.
    """
    try:
        socket.create_connection(host_and_port(address), _ANSWER_S).close()
    except OSError as error:
        raise CannotStart(
            f"no Ray cluster at {address}: {error.strerror or error}. `ray start --head` starts one. {_PORTS}"
        ) from error


def _check_answers(address: str) -> None:
    """Ray itself waits minutes for an answer, and cannot be interrupted while it does."""
    try:
        probe = subprocess.run(
            [sys.executable, "-c", _PROBE, address],
            timeout=_ANSWER_S,
            capture_output=True,
            text=True,
            check=False,
            encoding="utf-8",
        )
    except subprocess.TimeoutExpired as error:
        raise CannotStart(f"no Ray cluster answered at {address} for {_ANSWER_S} s. {_PORTS}") from error
    if probe.returncode != 0:
        lines = (probe.stdout.strip() or probe.stderr.strip()).splitlines()
        raise CannotStart(refusal(address, lines[-1] if lines else f"it ended with {probe.returncode}"))


def refusal(address: str, said: str) -> str:
    """Why Ray does not connect and what to do, in a line, from the error that it raised."""
    if "Could not find any running Ray" in said:  # Ray goes on with a flag that this command does not have
        return (
            f"--ray {address}: no Ray cluster runs on this machine: `ray start --head` starts one, `ray start"
            " --address HOST:PORT` joins this machine to one. Elsewhere: --ray HOST:PORT"
        )
    advice = ". Install the cluster's versions here, or these there" if "Version mismatch" in said else ""
    return f"cannot use the Ray cluster at {address}: {said.rstrip('. ')}{advice}"
