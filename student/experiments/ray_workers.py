"""Runs the jobs of a sweep on a Ray cluster."""

from typing import Any

from student.experiments.workers import Job, JobOutcome, run_job
from teacher_api.ray_cluster import connect_to_ray


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
        ray = connect_to_ray(address, "ray")
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
