"""Connects only to private addresses: nothing leaves the local network unless a setting allows it."""

import asyncio
import socket
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import httpx

from teacher_server.engines.base import EngineUnavailable

_NETWORKS = tuple(
    ip_network(network)
    for network in (
        "127.0.0.0/8",
        "::1/128",
        # RFC 1918 and RFC 4193
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "fc00::/7",
        # Link-local
        "169.254.0.0/16",
        "fe80::/10",
    )
)


class NotPrivate(EngineUnavailable):
    """A host has an address outside the local network."""


class NoAddress(EngineUnavailable):
    """A host's name does not resolve."""


def is_private(address: str) -> bool:
    """Returns whether an IP address is this machine's own or in a local network."""
    parsed: IPv4Address | IPv6Address | None = ip_address(address)
    if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped:
        parsed = parsed.ipv4_mapped
    return any(parsed in network for network in _NETWORKS)


async def addresses_of(host: str, *, allowed: bool = False) -> list[str]:
    """Returns the IP addresses that a name resolves to now.

    Args:
        allowed: accept public addresses too.

    Raises:
        NoAddress: the name does not resolve.
        NotPrivate: an address is public and not allowed.
    """
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise NoAddress(f"the name {host} has no address here ({error.strerror})") from error
    addresses = list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))
    public = [address for address in addresses if not is_private(address)]
    if public and not allowed:
        named = host if host in public else f"{host} ({public[0]})"
        raise NotPrivate(
            f"{named} is not on the local network: pictures and missions would leave it; set `allow_host` to"
            f" {host} to allow that"
        )
    return addresses


class PrivateTransport(httpx.AsyncBaseTransport):
    """Resolves the host for each request and connects only to the addresses that were checked."""

    def __init__(self, inner: httpx.AsyncBaseTransport, allow_host: str | None) -> None:
        self._inner, self._allow_host = inner, allow_host

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Sends a request to the first reachable address of its host.

        Raises:
            NoAddress, NotPrivate: see `addresses_of`; nothing was sent.
        """
        url, host = request.url, request.url.host
        addresses = await addresses_of(host, allowed=host == self._allow_host)
        # The Host header keeps the name; this extension is for the check of certificates
        request.extensions = {**request.extensions, "sni_hostname": host}
        for address in addresses[:-1]:
            request.url = url.copy_with(host=address)
            try:
                return await self._inner.handle_async_request(request)
            except (httpx.ConnectError, httpx.ConnectTimeout):
                continue
        request.url = url.copy_with(host=addresses[-1])
        return await self._inner.handle_async_request(request)

    async def aclose(self) -> None:
        """Closes all connections."""
        await self._inner.aclose()
