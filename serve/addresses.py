"""Where a call comes from: its connection's address, or the one that a proxy tells where that proxy is believed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any
from urllib.parse import unquote

import psutil

from factory.errors import Detail, InvalidRequest

Networks = tuple[IPv4Network | IPv6Network, ...]


def networks(named: str | None) -> Networks:
    """Return the proxies that are believed, as ``FACTORY_TRUSTED_PROXIES`` names them.

    Raises:
        InvalidRequest: one is no address and no network.
    """
    try:
        return tuple(ip_network(entry.strip()) for entry in (named or "").split(",") if entry.strip())
    except ValueError as error:
        raise InvalidRequest(
            f"FACTORY_TRUSTED_PROXIES: {error}.",
            hint="Write addresses or networks, as 10.0.0.7,192.168.1.0/24.",
            details=[Detail("FACTORY_TRUSTED_PROXIES", str(error))],
        ) from error


def origin_of(client: str, forwarded: Iterable[str], proxies: Networks, *, first: Networks = ()) -> str:
    """Return the address of whoever calls.

    Args:
        client: Address of the connection.
        forwarded: The ``X-Forwarded-For`` headers, in their order.
        proxies: Who is believed.
        first: Who is believed as the connection itself too, and not further back.
    """
    address, believed = client, (*proxies, *first)
    for told in reversed(",".join(forwarded).split(",")):
        if not _is_in(address, believed) or (found := _address(told)) is None:
            break
        address, believed = str(found), proxies
    return address[:64]


class Origins:
    """Tells where a predictor's calls come from: HAProxy on this machine is believed, and the proxies that are named.

    Args:
        proxies: That are believed wherever they stand.
    """

    def __init__(self, proxies: Networks) -> None:
        addresses = (each.address.partition("%")[0] for found in psutil.net_if_addrs().values() for each in found)
        self._own = tuple(ip_network(found) for told in addresses if (found := _address(told)) is not None)
        self._proxies = proxies

    def of(self, connection: Mapping[str, Any]) -> str:
        """Return the address of whoever calls.

        Args:
            connection: An ASGI scope; over gRPC ``headers`` and what returns the ``peer``.
        """
        headers = connection.get("headers", ())
        forwarded = [value.decode("latin-1") for name, value in headers if name == b"x-forwarded-for"]
        if "peer" in connection:
            client = host_of_peer(connection["peer"]())
        else:
            client = (connection.get("client") or ("local",))[0]
        return origin_of(client, forwarded, self._proxies, first=self._own)


def host_of_peer(peer: str) -> str:
    """Return the address of what gRPC calls a peer.

    >>> host_of_peer("ipv4:10.0.0.7:40000"), host_of_peer("ipv6:%5B::1%5D:40000")
    ('10.0.0.7', '::1')
    """
    return unquote(peer).partition(":")[2].rpartition(":")[0].strip("[]")


def _is_in(address: str, those: Networks) -> bool:
    found = _address(address)
    return found is not None and any(found in network for network in those)


def _address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(text.strip())
    except ValueError:
        return None
