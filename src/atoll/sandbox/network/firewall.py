"""The packet filter of an outbound network, as netlink messages to the kernel: pure.

Routes are not enough. The kernel takes an address that no route leads to as one on the link when a program names the
device itself (`SO_BINDTODEVICE`, `IP_PKTINFO`, an IPv6 scope), which needs no privilege. So a table of nf_tables in
the sandbox's network namespace checks each outgoing packet. Only a process with capabilities over the user namespace
that owns the network can change the table, and no process of a sandbox ever has them.

The messages follow `<linux/netfilter/nf_tables.h>`: one batch of a table, a chain on the way out and its rules for
each address family, sent by `namespace_keeper`, which is inside. Accepted are loopback, the resolver's address for
DNS, and neighbour discovery of ICMPv6. Then every address of the list is refused, with an answer that a program sees
at once.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Iterable
from typing import TypeAlias

from atoll.errors import SandboxUnavailable

IPNetwork: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

REFUSED: tuple[IPNetwork, ...] = tuple(
    ipaddress.ip_network(text)
    for text in (
        # Loopback and addresses that no router forwards (RFC 6890); multicast and broadcast stay on the local link.
        *("0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/4", "240.0.0.0/4"),
        *("::/127", "::ffff:0:0/96", "ff00::/8"),
        # Link-local addresses, where clouds have their metadata services (169.254.169.254 and others).
        *("169.254.0.0/16", "fe80::/10"),
        # Metadata services elsewhere: Alibaba, Azure's wire server, Oracle; Amazon and Google over IPv6.
        *("100.100.100.200/32", "168.63.129.16/32", "192.0.0.192/32"),
        *("fd00:ec2::/32", "fd20:ce::254/128"),
    )
)
"""Addresses that no outbound network reaches, beside the machine's own."""

PRIVATE: tuple[IPNetwork, ...] = tuple(
    ipaddress.ip_network(text)
    # RFC 1918, RFC 6598 (carriers, and overlay networks such as Tailscale's), RFC 2544, RFC 4193, RFC 3879
    for text in (
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "100.64.0.0/10",
        "198.18.0.0/15",
        "fc00::/7",
        "fec0::/10",
    )
)
"""Networks of the machine's surroundings, which users of a server do not reach either."""

NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
"""The addresses that represent IPv4 ones where the local network translates (RFC 6052)."""

TABLE, CHAIN = "atoll", "out"

# <linux/netfilter/nf_tables.h>, <linux/netfilter/nfnetlink.h>, <linux/netlink.h>, <linux/netfilter.h>
_BATCH_BEGIN, _BATCH_END = 16, 17
_SUBSYSTEM = 10
_NEW_TABLE, _NEW_CHAIN, _NEW_RULE = 0, 3, 6
_REQUEST, _ACK, _CREATE, _APPEND = 0x1, 0x4, 0x400, 0x800
_NESTED = 0x8000
_IPV4, _IPV6 = 2, 10
_LOCAL_OUT = 3
_ACCEPT = 1
_EQUAL, _LESS_OR_EQUAL, _GREATER_OR_EQUAL = 0, 3, 5
_NETWORK_HEADER, _TRANSPORT_HEADER = 1, 2
_META_OUT_NAME, _META_PROTOCOL = 7, 16
_TCP, _UDP, _ICMPV6 = 6, 17, 58
_NEIGHBOURS = (133, 136)
"""ICMPv6 types of router and neighbour discovery (RFC 4861)."""
_PROHIBITED = {_IPV4: 13, _IPV6: 1}
"""The ICMP codes for `administratively prohibited`."""


def private_but(reachable: Iterable[str]) -> list[IPNetwork]:
    """Return the private networks, without those that an operator opens.

    Raises:
        SandboxUnavailable: one of these is no network.
    """
    closed = list(PRIVATE)
    for text in reachable:
        try:
            opened = ipaddress.ip_network(text)
        except ValueError as error:
            raise SandboxUnavailable(
                f"`users.reachable` names `{text}`: {error}", hint="write networks such as `10.1.2.0/24`"
            ) from error
        closed = [left for one in closed for left in _without(one, opened)]
    return closed


def _without(network: IPNetwork, opened: IPNetwork) -> list[IPNetwork]:
    if isinstance(network, ipaddress.IPv4Network) and isinstance(opened, ipaddress.IPv4Network):
        if network.subnet_of(opened):
            return []
        return list(network.address_exclude(opened)) if opened.subnet_of(network) else [network]
    if isinstance(network, ipaddress.IPv6Network) and isinstance(opened, ipaddress.IPv6Network):
        if network.subnet_of(opened):
            return []
        return list(network.address_exclude(opened)) if opened.subnet_of(network) else [network]
    return [network]


def refused(own: Iterable[str], private: Iterable[IPNetwork] = ()) -> list[IPNetwork]:
    """Return all that an outbound network may not reach.

    Args:
        own: the addresses of the machine itself.
        private: further ones, for users of a server.
    """
    networks = [*REFUSED, *private, *(ipaddress.ip_network(address) for address in own)]
    translated = [
        ipaddress.IPv6Network((int(NAT64.network_address) | int(network.network_address), 96 + network.prefixlen))
        for network in networks
        if isinstance(network, ipaddress.IPv4Network)
    ]
    return list(dict.fromkeys([*networks, *translated]))


def messages(networks: Iterable[IPNetwork], resolver: str, *, ipv6: bool) -> bytes:
    """Return the netlink messages that make the table; the kernel acknowledges the last rule of each family.

    Args:
        networks: the refused addresses.
        resolver: the IPv4 address of the resolver, reached at port 53 even if refused.
        ipv6: whether the machine has IPv6 at all.
    """
    networks = list(networks)
    parts = [_message(_BATCH_BEGIN, _REQUEST, 0, b"", _SUBSYSTEM)]
    for family in (_IPV4, _IPV6) if ipv6 else (_IPV4,):
        size = 4 if family == _IPV4 else 16
        rules = [_meta(_META_OUT_NAME) + _compare(_EQUAL, b"lo".ljust(16, b"\0")) + _verdict(_ACCEPT)]
        if family == _IPV4:
            address = ipaddress.IPv4Address(resolver).packed
            rules += [
                _meta(_META_PROTOCOL)
                + _compare(_EQUAL, bytes([protocol]))
                + _payload(_NETWORK_HEADER, 16, 4)
                + _compare(_EQUAL, address)
                + _payload(_TRANSPORT_HEADER, 2, 2)
                + _compare(_EQUAL, struct.pack("!H", 53))
                + _verdict(_ACCEPT)
                for protocol in (_UDP, _TCP)
            ]
        else:
            rules.append(
                _meta(_META_PROTOCOL)
                + _compare(_EQUAL, bytes([_ICMPV6]))
                + _payload(_TRANSPORT_HEADER, 0, 1)
                + _compare(_GREATER_OR_EQUAL, bytes([_NEIGHBOURS[0]]))
                + _compare(_LESS_OR_EQUAL, bytes([_NEIGHBOURS[1]]))
                + _verdict(_ACCEPT)
            )
        rules += [
            _payload(_NETWORK_HEADER, 16 if size == 4 else 24, size)
            + _mask(network.netmask.packed)
            + _compare(_EQUAL, network.network_address.packed)
            + _reject(family)
            for network in networks
            if len(network.network_address.packed) == size
        ]
        parts.append(_message(_NEW_TABLE, _REQUEST | _CREATE, family, _text(1, TABLE) + _number(2, 0)))
        hook = _number(1, _LOCAL_OUT) + _number(2, 0)
        chain = _text(1, TABLE) + _text(3, CHAIN) + _nest(4, hook) + _number(5, _ACCEPT) + _text(7, "filter")
        parts.append(_message(_NEW_CHAIN, _REQUEST | _CREATE, family, chain))
        for position, rule in enumerate(rules):
            last = _ACK if position == len(rules) - 1 else 0
            body = _text(1, TABLE) + _text(2, CHAIN) + _nest(4, rule)
            parts.append(_message(_NEW_RULE, _REQUEST | _CREATE | _APPEND | last, family, body))
    parts.append(_message(_BATCH_END, _REQUEST, 0, b"", _SUBSYSTEM))
    return b"".join(parts)


def _message(kind: int, flags: int, family: int, body: bytes, resource: int = 0) -> bytes:
    number = kind if kind in (_BATCH_BEGIN, _BATCH_END) else _SUBSYSTEM << 8 | kind
    body = struct.pack("!BBH", family, 0, resource) + body
    return struct.pack("=IHHII", 16 + len(body), number, flags, 1, 0) + body


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + b"\0" * (-len(value) % 4)


def _nest(kind: int, value: bytes) -> bytes:
    return _attribute(kind | _NESTED, value)


def _text(kind: int, value: str) -> bytes:
    return _attribute(kind, value.encode() + b"\0")


def _number(kind: int, value: int) -> bytes:
    return _attribute(kind, struct.pack("!I", value))


def _expression(name: str, attributes: bytes) -> bytes:
    return _nest(1, _text(1, name) + _nest(2, attributes))


def _meta(key: int) -> bytes:
    return _expression("meta", _number(1, 1) + _number(2, key))


def _payload(base: int, offset: int, length: int) -> bytes:
    return _expression("payload", _number(1, 1) + _number(2, base) + _number(3, offset) + _number(4, length))


def _compare(operator: int, value: bytes) -> bytes:
    return _expression("cmp", _number(1, 1) + _number(2, operator) + _nest(3, _attribute(1, value)))


def _mask(mask: bytes) -> bytes:
    both = _nest(4, _attribute(1, mask)) + _nest(5, _attribute(1, bytes(len(mask))))
    return _expression("bitwise", _number(1, 1) + _number(2, 1) + _number(3, len(mask)) + both)


def _verdict(code: int) -> bytes:
    return _expression("immediate", _number(1, 0) + _nest(2, _nest(2, _number(1, code))))


def _reject(family: int) -> bytes:
    return _expression("reject", _number(1, 0) + _attribute(2, bytes([_PROHIBITED[family]])))
