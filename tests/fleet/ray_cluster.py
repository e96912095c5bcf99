"""A Ray cluster of several nodes on 127.0.0.1, and the commands that put teachers on it."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from tests.waiting import LONG_S, wait_for

cluster_utils = pytest.importorskip(
    "ray.cluster_utils", reason="Ray is not installed: pip install '.[fleet]'"
)


class RayCluster:
    """A head node that runs no replicas, and nodes that can be added and killed.

    Attributes:
        port: where the teacher is to listen, on 127.0.0.1.
        nodes: those that were added and not killed.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self.nodes: list[Any] = []
        self._cluster = cluster_utils.Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 0, "include_dashboard": False, "node_ip_address": "127.0.0.1"},
        )

    @property
    def address(self) -> str:
        """The address of the head node."""
        return str(self._cluster.address)

    @property
    def url(self) -> str:
        """The address of the teacher."""
        return f"http://127.0.0.1:{self.port}"

    def add_node(self, cpus: int) -> None:
        """Adds a node."""
        self.nodes.append(self._cluster.add_node(num_cpus=cpus, node_ip_address="127.0.0.1"))

    def kill_node(self) -> None:
        """Kills the oldest node that was added, and all that runs on it."""
        self._cluster.remove_node(self.nodes.pop(0), allow_graceful=False)

    def stop(self) -> None:
        """Ends all nodes."""
        self._cluster.shutdown()

    def fleet(self, command: str, *flags: str) -> subprocess.CompletedProcess[str]:
        """Runs `teacher fleet COMMAND` to its end."""
        listening = (f"--port={self.port}",) if command == "deploy" else ()
        return subprocess.run(
            [
                sys.executable,
                "-m",
                "teacher_tools",
                "fleet",
                command,
                f"--ray={self.address}",
                *listening,
                *flags,
            ],
            capture_output=True,
            text=True,
            timeout=LONG_S,
            check=False,
        )

    def deploy(self, *flags: str) -> str:
        """Deploys a teacher, and returns its identity."""
        result = self.fleet("deploy", *flags)
        assert result.returncode == 0, result.stderr
        return result.stdout.split()[-1]

    @property
    def replicas(self) -> set[str]:
        """The names of the replicas that answer, from the page of metrics."""
        page = httpx.get(f"{self.url}/metrics", timeout=LONG_S).text
        ready = [line for line in page.splitlines() if line.startswith("teacher_ready{")]
        return {line.split('"')[1] for line in ready if line.endswith(" 1.0")}

    def wait_for_replicas(self, count: int, seconds: float = LONG_S) -> None:
        """Returns when so many replicas answer."""
        wait_for(lambda: len(self.replicas) == count, f"{count} replicas", seconds)


@contextmanager
def ray_cluster(port: int) -> Iterator[RayCluster]:
    """Starts a cluster for the time of the block."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S"] = "1"
    started = RayCluster(port)
    try:
        yield started
    finally:
        started.stop()
