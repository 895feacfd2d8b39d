"""Addresses of clients, also behind proxies whose word counts."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from functools import cache
from typing import Any

from atoll import errors

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@cache
def _networks(texts: tuple[str, ...]) -> tuple[_Network, ...]:
    try:
        return tuple(ipaddress.ip_network(text, strict=False) for text in texts)
    except ValueError as error:
        raise errors.StateUnusable(
            f"a trusted proxy is no address or network: {error}", hint="give 10.0.0.0/8"
        ) from error


def check_proxies(trusted: Sequence[str]) -> None:
    """Check the addresses of proxies.

    Raises:
        StateUnusable: one is neither an address nor a network.
    """
    _networks(tuple(trusted))


def is_trusted(address: str, trusted: Sequence[str]) -> bool:
    """Return whether a proxy at this address is believed."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
        found = found.ipv4_mapped
    return any(found in network for network in _networks(tuple(trusted)))


def client_address(peer: Any, forwarded: str, trusted: Sequence[str]) -> str:
    """Return the address of the client behind a connection.

    Args:
        peer: the socket's peer, as the event loop names it.
        forwarded: the values of `X-Forwarded-For`, joined by commas.
        trusted: see `ServerOptions.trusted_proxies`. Proxies append: the last address that none of them has is the
            client's; everything before it is the client's own claim.
    """
    address = str(peer[0]) if isinstance(peer, tuple) and peer else ""
    if not forwarded or not is_trusted(address, trusted):
        return address
    for text in reversed([part.strip() for part in forwarded.split(",")]):
        try:
            ipaddress.ip_address(text)
        except ValueError:
            return address
        address = text
        if not is_trusted(text, trusted):
            return address
    return address


def source(address: str) -> str:
    """Return the bucket of an address: its own for IPv4, its /56 for IPv6, where one person has so many."""
    return f"address {_network(address, 32, 56)}"


def ranges(address: str) -> tuple[str, ...]:
    """Return the wider networks of an address, the narrowest first: a site's, and a provider's."""
    return tuple(f"range {_network(address, *bits)}" for bits in ((24, 48), (16, 32)))


def _network(address: str, bits_4: int, bits_6: int) -> str:
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address[:64]
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
        found = found.ipv4_mapped
    bits = bits_4 if found.version == 4 else bits_6
    return str(ipaddress.ip_network((found, bits), strict=False))
