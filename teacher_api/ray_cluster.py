"""Connects to a Ray cluster, with the reason in one line where that fails."""

import logging
import os
import socket
import subprocess
import sys
from typing import Any
from urllib.parse import urlsplit

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


def connect_to_ray(address: str, extra: str) -> Any:
    """Connects this process to a cluster; returns the module `ray`.

    Args:
        address: HOST:PORT, ray://HOST:PORT or auto.
        extra: the extra that installs Ray.

    Raises:
        CannotStart: Ray is not installed, the address is malformed, or no cluster there can be used.
    """
    address = os.environ.get("RAY_ADDRESS") or address if address == "auto" else address
    if address != "auto":
        check_listens(address)
    try:
        import ray  # noqa: PLC0415
    except ImportError as error:
        raise CannotStart(
            f"`ray` needs Ray, which is not installed: pip install 'lvlm2p[{extra}]'"
        ) from error
    _check_answers(address)
    ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    return ray


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
