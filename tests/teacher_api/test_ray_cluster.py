"""The words in which a command says why it does not reach a Ray cluster."""

import socket

import pytest

from teacher_api.command_line import CannotStart
from teacher_api.ray_cluster import check_listens, connect_to_ray, host_and_port, refusal

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("address", "place"),
    [
        ("10.0.0.5:6379", ("10.0.0.5", 6379)),
        ("ray://head:10001", ("head", 10001)),
        ("[::1]:6379", ("::1", 6379)),
    ],
)
def test_addresses(address: str, place: tuple[str, int]) -> None:
    assert host_and_port(address) == place


@pytest.mark.parametrize(
    "address",
    ["nonsense", "::", "", "head:", "ray://head", "head:port", "head:99999", "http://head:1", "local"],
)
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(CannotStart, match="is not an address: write HOST:PORT, ray://HOST:PORT or auto"):
        host_and_port(address)


def test_no_ray_on_this_machine() -> None:
    said = (  # by Ray 2.60.0, as the next two
        "ConnectionError: Could not find any running Ray instance. Please specify the one to connect to by"
        " setting `--address` flag or `RAY_ADDRESS` environment variable."
    )
    assert refusal("auto", said) == (
        "`ray` auto: no Ray cluster runs on this machine: `ray start --head` starts a cluster, `ray start"
        " --address HOST:PORT` joins this machine to one. For a cluster elsewhere: `ray` HOST:PORT"
    )


def test_other_versions() -> None:
    said = (
        "RuntimeError: Version mismatch: The cluster was started with: Ray: 2.52.0 Python: 3.11.7 This"
        " process on node 192.0.2.2 was started with: Ray: 2.60.0 Python: 3.11.7"
    )
    assert refusal("head:6379", said) == (
        f"cannot use the Ray cluster at head:6379: {said}. Install the same versions on both sides"
    )


def test_any_other_reason() -> None:
    said = "ConnectionError: ray client connection timeout"
    assert refusal("ray://head:1", said) == f"cannot use the Ray cluster at ray://head:1: {said}"


def _unused_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_where_nothing_listens(scheme: str) -> None:
    address = scheme + _unused_address()
    with pytest.raises(
        CannotStart,
        match=f"no Ray cluster at {address}: Connection refused. `ray start --head` starts a cluster",
    ):
        check_listens(address)


def test_auto_is_where_the_variable_says(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install '.[ray]'")
    monkeypatch.setenv("RAY_ADDRESS", address := _unused_address())
    with pytest.raises(CannotStart, match=f"no Ray cluster at {address}: Connection refused"):
        connect_to_ray("auto", "ray")
