"""A sweep's tasks on a Ray cluster; the only file that imports ray."""

import subprocess
import sys
from typing import Any

from student.workers import Outcome, Task, attempt
from teacher_server.command_line import CannotStart

_ANSWER_S = 15
_PROBE = """
import sys, ray
try:
    ray.init(sys.argv[1], log_to_driver=False, logging_level="ERROR")
except Exception as error:
    sys.exit(f"{type(error).__name__}: {' '.join(str(error).split())}")
"""


class RayWorkers:
    """Does tasks on a cluster, each on as many of its CPUs as a run has threads."""

    def __init__(self, address: str, threads: int, jobs: int | None) -> None:
        """Connects to the cluster.

        Args:
            address: HOST:PORT, ray://HOST:PORT or auto.
            jobs: tasks at once; None: as many as the cluster has CPUs for, now and later.

        Raises:
            CannotStart: Ray is not installed, or no cluster answers.
        """
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


def _check_answers(address: str) -> None:
    """Ray itself waits minutes for an address that is not there, and cannot be interrupted while it does."""
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
        raise CannotStart(
            f"no Ray cluster answered at {address} for {_ANSWER_S} s; is it running? (`ray start --head`)"
        ) from error
    if probe.returncode != 0:
        raise CannotStart(f"cannot use the Ray cluster at {address}: {probe.stderr.strip().splitlines()[-1]}")
