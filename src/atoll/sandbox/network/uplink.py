"""The machine's own network, as far as an outbound one depends on it: read from `/proc`, compared to see a change."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

RESOLVER = "169.254.53.53"
"""The address at which pasta answers for the machine's resolver. It is link-local, and so can be no other machine's
that a function may reach; the machine's own resolver may listen on its loopback address."""


@dataclass(frozen=True)
class Uplink:
    """What the machine's network is at one moment.

    Args:
        own: the machine's addresses, but for loopback.
        routed: whether a default route leads out, by IPv4 or IPv6.
        ipv6: whether the machine has IPv6 at all.
        resolv: the text of `/etc/resolv.conf`.
    """

    own: tuple[str, ...] = ()
    routed: bool = True
    ipv6: bool = True
    resolv: str = ""


def read() -> Uplink:
    """Look at this machine; costs four small files."""
    inet6 = _text("/proc/self/net/if_inet6")
    routes4 = [line.split() for line in _text("/proc/self/net/route").splitlines()[1:]]
    routes6 = [line.split() for line in _text("/proc/self/net/ipv6_route").splitlines()]
    routed4 = any(row[1] == "00000000" and row[7] == "00000000" for row in routes4 if len(row) > 7)
    routed6 = any(row[0] == "0" * 32 and row[1] == "00" and row[-1] != "lo" for row in routes6 if len(row) > 9)
    return Uplink(
        own=(*addresses4(_text("/proc/self/net/fib_trie")), *addresses6(inet6)),
        routed=routed4 or routed6,
        ipv6=bool(inet6),
        resolv=_text("/etc/resolv.conf"),
    )


def addresses4(trie: str) -> tuple[str, ...]:
    """Return the IPv4 addresses of a machine, but for loopback, from its `fib_trie`."""
    found = []
    leaf = ""
    for line in trie.splitlines():
        words = line.split()
        if words[:1] == ["|--"]:
            leaf = words[1]
        elif words[-3:] == ["/32", "host", "LOCAL"] and not leaf.startswith("127."):
            found.append(leaf)
    return tuple(sorted(set(found)))


def addresses6(table: str) -> tuple[str, ...]:
    """Return the IPv6 addresses of a machine, but for loopback, from its `if_inet6`."""
    rows = [line.split() for line in table.splitlines()]
    found = {ipaddress.IPv6Address(int(row[0], 16)) for row in rows if len(row) >= 6}
    return tuple(sorted(str(address) for address in found if not address.is_loopback))


def resolver_file(text: str, resolver: str) -> str:
    """Return the `resolv.conf` of an outbound network: the machine's, with the carrier's address for a resolver."""
    kept = [line for line in text.splitlines() if line.split()[:1] in (["search"], ["domain"], ["options"])]
    return "\n".join([f"nameserver {resolver}", *kept]) + "\n"


def _text(path: str) -> str:
    try:
        return Path(path).read_text("utf-8", "replace")
    except OSError:
        return ""
