"""Private addresses, and connections that go only to addresses that were checked."""

import asyncio
import socket
from collections.abc import Callable, Sequence
from typing import Any

import httpx
import pytest

from teacher_server.engines.openai.private_addresses import (
    NoAddress,
    NotPrivate,
    PrivateTransport,
    addresses_of,
    is_private,
)
from tests.http_servers import http_server

pytestmark = pytest.mark.unit

_NAME = "models.test"
Resolve = Callable[..., None]


@pytest.fixture
def resolve(monkeypatch: pytest.MonkeyPatch) -> Resolve:
    """resolve([addresses], [addresses], ...) sets what a name resolves to, look-up by look-up."""
    real = socket.getaddrinfo

    def stand_for(*looks: Sequence[str]) -> None:
        left = list(looks)

        def getaddrinfo(host: Any, port: Any, *rest: Any, **named: Any) -> Any:
            if host != _NAME:
                return real(host, port, *rest, **named)
            addresses = left.pop(0) if len(left) > 1 else left[0]
            return [found for address in addresses for found in real(address, port, *rest, **named)]

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)

    return stand_for


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.8.9.10", "::1", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.3.4"),
        *("169.254.1.1", "fe80::1", "fe80::1%eth0", "fd12:3456::1", "::ffff:192.168.1.1"),
    ],
)
def test_private(address: str) -> None:
    assert is_private(address)


@pytest.mark.parametrize(
    "address",
    [
        *("8.8.8.8", "172.15.0.1", "172.32.0.1", "192.169.0.1", "100.64.0.1", "0.0.0.0", "11.0.0.1"),
        *("2001:4860:4860::8888", "::", "::ffff:8.8.8.8", "64:ff9b::a00:1", "2002:a00:1::"),
    ],
)
def test_not_private(address: str) -> None:
    assert not is_private(address)
    with pytest.raises(NotPrivate, match="set `allow_host` to"):
        asyncio.run(addresses_of(address))
    assert asyncio.run(addresses_of(address, allowed=True)) == [address]


def test_one_address_that_is_not_private_is_enough_to_refuse_a_name(resolve: Resolve) -> None:
    resolve(["10.1.2.3", "8.8.8.8"])
    with pytest.raises(NotPrivate, match=r"models\.test \(8\.8\.8\.8\) is not on the local network"):
        asyncio.run(addresses_of(_NAME))


def test_a_name_without_an_address() -> None:
    with pytest.raises(NoAddress, match=r"nowhere\.invalid has no address here"):
        asyncio.run(addresses_of("nowhere.invalid"))


def _get(port: int, times: int = 1, allow_host: str | None = None) -> list[httpx.Response]:
    async def get() -> list[httpx.Response]:
        transport = PrivateTransport(httpx.AsyncHTTPTransport(), allow_host)
        async with httpx.AsyncClient(transport=transport, trust_env=False) as client:
            return [await client.get(f"http://{_NAME}:{port}/") for _ in range(times)]

    return asyncio.run(get())


def test_the_server_is_asked_by_its_name_at_the_address_that_was_checked(resolve: Resolve) -> None:
    # A second look-up for the connection would give another address
    resolve(["127.0.0.1"], ["8.8.8.8"])
    with http_server(lambda _: (200, "here")) as server:
        (response,) = _get(server.port)
    assert response.json() == "here"
    assert server.asked[0].headers["host"] == f"{_NAME}:{server.port}"


def test_a_name_that_moves_out_of_the_local_network_is_followed_no_further(resolve: Resolve) -> None:
    resolve(["127.0.0.1"], ["127.0.0.1"], ["8.8.8.8"])
    with http_server(lambda _: (200, "here")) as server:
        with pytest.raises(NotPrivate):
            _get(server.port, times=3)
        assert len(server.asked) == 2


def test_all_addresses_of_a_name_are_tried(resolve: Resolve) -> None:
    resolve(["127.0.0.2", "127.0.0.1"])  # nothing listens on the first
    with http_server(lambda _: (200, "here")) as server:
        assert _get(server.port)[0].json() == "here"
