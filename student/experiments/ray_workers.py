"""Runs the jobs of a sweep on a Ray cluster; the only module that imports ray."""

import os
import socket
import subprocess
import sys
from typing import Any
from urllib.parse import urlsplit

from student.experiments.workers import Job, JobOutcome, run_job
from teacher_api.command_line import CannotStart

_ANSWER_S = 15
"""Seconds to wait for the cluster."""
_PROBE = """
import sys, ray
try:
    ray.init(sys.argv[1], log_to_driver=False, logging_level="ERROR")
except Exception as error:
    print(f"{type(error).__name__}: {' '.join(str(error).split())}")
    sys.exit(1)
"""
_PORTS = (
    "HOST:PORT is the address of the head node (port 6379 by default), ray://HOST:PORT that of its client"
    " server (port 10001)"
)


class RayWorkers:
    """Runs jobs on a cluster, each on as many CPUs as a run has threads."""

    def __init__(self, address: str, threads: int, jobs: int | None) -> None:
        """Connects to the cluster.

        Args:
            address: HOST:PORT, ray://HOST:PORT or auto.
            threads: CPUs of each job.
            jobs: the number of jobs at a time; None: as many as the cluster has CPUs for at any time.

        Raises:
            CannotStart: Ray is not installed, the address is malformed, or no cluster there can be used.
        """
        address = os.environ.get("RAY_ADDRESS") or address if address == "auto" else address
        if address != "auto":
            check_listens(address)
        try:
            import ray  # noqa: PLC0415
        except ImportError as error:
            raise CannotStart("`ray` needs Ray, which is not installed: pip install 'lvlm2p[ray]'") from error
        _check_answers(address)
        ray.init(address, log_to_driver=False, logging_level="ERROR")
        self._ray, self._threads, self._jobs = ray, threads, jobs
        self._run_job = ray.remote(num_cpus=threads, max_retries=0)(run_job)
        self._busy: dict[Any, Job] = {}

    @property
    def capacity(self) -> int:
        return self._jobs or max(1, int(self._ray.cluster_resources().get("CPU", 1)) // self._threads)

    @property
    def is_this_machine(self) -> bool:
        """Whether the cluster is this machine alone, and so can reach servers on 127.0.0.1."""
        nodes = {node["NodeManagerAddress"] for node in self._ray.nodes() if node["Alive"]}
        return nodes <= {"127.0.0.1", self._ray.util.get_node_ip_address()}

    def start(self, job: Job) -> None:
        self._busy[self._run_job.remote(job)] = job

    def ended(self, timeout_s: float) -> list[tuple[Job, JobOutcome]]:
        if not self._busy:
            return []
        ready, _ = self._ray.wait(list(self._busy), timeout=timeout_s)
        return [(self._busy.pop(reference), self._outcome(reference)) for reference in ready]

    def _outcome(self, reference: Any) -> JobOutcome:
        try:
            outcome: JobOutcome = self._ray.get(reference)
        except self._ray.exceptions.TaskCancelledError:
            return JobOutcome("interrupted")
        except self._ray.exceptions.RayError as error:
            return JobOutcome("crashed", str(error).strip().splitlines()[-1])
        return outcome

    def interrupt(self) -> None:
        for reference in self._busy:
            self._ray.cancel(reference)

    def close(self) -> None:
        self._ray.shutdown()


def host_and_port(address: str) -> tuple[str, int]:
    """Returns the host and port of HOST:PORT or ray://HOST:PORT.

    Raises:
        CannotStart: the address has another form.
    """
    try:
        parts = urlsplit(f"//{address.removeprefix('ray://')}")
        if parts.hostname and parts.port and parts.netloc == address.removeprefix("ray://"):
            return parts.hostname, parts.port
    except ValueError:
        pass
    raise CannotStart(f"`ray` {address!r} is not an address: write HOST:PORT, ray://HOST:PORT or auto")


def check_listens(address: str) -> None:
    """Checks that an address accepts connections, because Ray does not report why it cannot connect.

    Raises:
        CannotStart: the address cannot be reached; the message says why.
    """
    try:
        socket.create_connection(host_and_port(address), _ANSWER_S).close()
    except OSError as error:
        raise CannotStart(
            f"no Ray cluster at {address}: {error.strerror or error}. `ray start --head` starts a cluster."
            f" {_PORTS}"
        ) from error


def _check_answers(address: str) -> None:
    """Tries to connect in a process with a time-out: Ray itself waits minutes, without interruption."""
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
        raise CannotStart(
            refusal(address, lines[-1] if lines else f"the probe ended with exit code {probe.returncode}")
        )


def refusal(address: str, error: str) -> str:
    """Returns why Ray does not connect and what to do, in one line, from the error that Ray raised."""
    if "Could not find any running Ray" in error:  # Ray's own advice names a flag that this command lacks
        return (
            f"`ray` {address}: no Ray cluster runs on this machine: `ray start --head` starts a cluster, `ray"
            " start --address HOST:PORT` joins this machine to one. For a cluster elsewhere: `ray` HOST:PORT"
        )
    advice = ". Install the same versions on both sides" if "Version mismatch" in error else ""
    return f"cannot use the Ray cluster at {address}: {error.rstrip('. ')}{advice}"
