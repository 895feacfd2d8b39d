"""Versions of the protocol between client and server, and between node and server, and their agreement on one.

A client names the versions that it speaks in `Atoll-Protocol`: `1`, or a range such as `1-3`. The answer names the one
that both use, the highest. A request without the header, as of `curl`, is of the newest version.
"""

from __future__ import annotations

import re

from atoll import errors

HEADER = "atoll-protocol"
LOWEST, HIGHEST = 1, 1
NODE_HEADER = "atoll-node-protocol"
"""The same for nodes: the requests that join, and their links."""
NODE_LOWEST, NODE_HIGHEST = 1, 1
_RANGE = re.compile(r"([0-9]{1,4})(?:-([0-9]{1,4}))?")


def agreed(value: str) -> int:
    """Return the version that client and server speak.

    Raises:
        ProtocolMismatch: there is none; the hint names the side to upgrade.
    """
    return _agreed(value, LOWEST, HIGHEST, "Atoll-Protocol", "client")


def node_agreed(value: str) -> int:
    """Return the version that node and server speak.

    Raises:
        ProtocolMismatch: there is none; the hint names the side to upgrade.
    """
    return _agreed(value, NODE_LOWEST, NODE_HIGHEST, "Atoll-Node-Protocol", "node")


def _agreed(value: str, least: int, most: int, header: str, peer: str) -> int:
    if not value:
        return most
    found = _RANGE.fullmatch(value.strip())
    if found is None:
        raise errors.ProtocolMismatch(f"`{header}` names no versions", hint="send `1`, or a range such as `1-3`")
    lowest = int(found[1])
    highest = int(found[2] or found[1])
    if lowest <= most and highest >= least:
        return min(highest, most)
    ours = str(most) if least == most else f"{least} to {most}"
    theirs = str(lowest) if lowest == highest else f"{lowest} to {highest}"
    older = "upgrade atoll on the server" if lowest > most else "upgrade atoll here: `pip install --upgrade atoll`"
    raise errors.ProtocolMismatch(
        f"the server speaks version {ours} of the protocol, and the {peer} {theirs}",
        hint=older,
        server=[least, most],
        client=[lowest, highest],
    )
