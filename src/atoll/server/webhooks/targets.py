"""Targets of requests, such as webhooks: addresses that anybody may name, and that must be none of this server's own surroundings.

Theory of operation. A name is looked up once, each address is checked, and the connection is made to that address: a name
that means another one a moment later gains nothing. Certificates are checked for the name.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from urllib.parse import SplitResult, urlsplit

from atoll import errors
from atoll.work_threads import WorkThreads

MOST_URL = 2048
Network = IPv4Network | IPv6Network
_EMBEDDED = (ip_network("64:ff9b::/96"), ip_network("64:ff9b:1::/48"), ip_network("::/96"))
"""IPv6 addresses that lead to the IPv4 address in their last bytes (RFC 6052, RFC 8215, RFC 4291)."""

_threads = WorkThreads("webhooks", 8)


@dataclass(frozen=True)
class Target:
    """An address that has been checked.

    Args:
        host: the name of the URL, for the certificate.
        address: where to connect.
        named: the value of the header `Host`.
        path: path and query.
    """

    host: str
    address: str
    port: int
    secure: bool
    named: str
    path: str


def check_url(url: str) -> SplitResult:
    """Return the parts of a URL, before its name is looked up.

    Raises:
        CallerError: it cannot be a webhook.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise _refused("it is no URL") from None
    if len(url) > MOST_URL or not url.isascii() or any(not " " < one < "\x7f" for one in url) or "\\" in url:
        raise _refused(f"it has characters that no URL has, or more than {MOST_URL} of them")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise _refused("it begins with neither `http://` nor `https://`, or names no host")
    if "@" in parts.netloc or port == 0:
        raise _refused("it has credentials, or no port")
    return parts


def _refused(reason: str) -> errors.CallerError:
    return errors.CallerError(
        f"no request is sent to this address: {reason}", hint="give an address such as `https://example.com/x`"
    )


def networks(texts: Sequence[str]) -> list[Network]:
    """Return the networks that the settings name.

    Raises:
        StateUnusable: one is none.
    """
    try:
        return [ip_network(text, strict=False) for text in texts]
    except ValueError as error:
        raise errors.StateUnusable(
            f"`webhooks.allowed_networks` has no network: {error}", hint="write such as `10.1.0.0/16`"
        ) from error


def _is_allowed(text: str, allowed: Sequence[Network]) -> bool:
    address: IPv4Address | IPv6Address = ip_address(text.partition("%")[0])
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return any(address.version == network.version and address in network for network in allowed)


def may_be_told(text: str, allowed: Sequence[Network]) -> bool:
    """Return whether an address is public, or one that the settings allow."""
    address: IPv4Address | IPv6Address = ip_address(text.partition("%")[0])
    if isinstance(address, IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)
        if inner is None and any(address in network for network in _EMBEDDED):
            inner = IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None and not (isinstance(inner, IPv4Address) and may_be_told(str(inner), allowed)):
            return False
        if address.ipv4_mapped is not None:
            return True  # the address within has been checked
    if _is_allowed(text, allowed):
        return True
    return address.is_global and not (
        address.is_multicast
        or address.is_private
        or address.is_loopback
        or address.is_link_local
        or address.is_reserved
        or address.is_unspecified
    )


def is_own(text: str) -> bool:
    """Return whether an address is one of this machine's: what listens there may trust what comes from the machine."""
    address = ip_address(text.partition("%")[0])
    with socket.socket(socket.AF_INET if address.version == 4 else socket.AF_INET6, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((text.partition("%")[0], 0))
        except OSError:
            return False
    return True


def _address_of(host: str, port: int, allowed: Sequence[Network]) -> str | None:
    """Return the first address of a name that may be told; None for none. It blocks."""
    found = [str(one[4][0]) for one in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    for one in found:
        if may_be_told(one, allowed) and (_is_allowed(one, allowed) or not is_own(one)):
            return one
    return None


async def resolve(user: str, url: str, allowed: Sequence[Network]) -> Target:
    """Look a URL's host up, and return where to connect.

    Args:
        user: in whose turn: names of one user's that nobody answers for hold up no others.

    Raises:
        CallerError: it cannot be a webhook, or all its addresses are such as may not be told.
        OSError: the name is not known.
    """
    parts = check_url(url)
    host, secure = parts.hostname or "", parts.scheme == "https"
    port = parts.port or (443 if secure else 80)
    address = await _threads.run(user, partial(_address_of, host, port, allowed))
    if address is None:
        raise _refused("its address is not public, and `webhooks.allowed_networks` does not name it")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Target(host, address, port, secure, parts.netloc, path)
