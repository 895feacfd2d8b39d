"""Versions of the protocol between client and server, and their agreement on one.

A client names the versions that it speaks in `Atoll-Protocol`: `1`, or a range such as `1-3`. The answer names the one
that both use, the highest. A request without the header, as of `curl`, is of the newest version.
"""

from __future__ import annotations

import re

from atoll import errors

HEADER = "atoll-protocol"
LOWEST, HIGHEST = 1, 1
_RANGE = re.compile(r"([0-9]{1,4})(?:-([0-9]{1,4}))?")


def agreed(value: str) -> int:
    """Return the version that both ends speak.

    Raises:
        ProtocolMismatch: there is none; the hint names the side to upgrade.
    """
    if not value:
        return HIGHEST
    found = _RANGE.fullmatch(value.strip())
    if found is None:
        raise errors.ProtocolMismatch("`Atoll-Protocol` names no versions", hint="send `1`, or a range such as `1-3`")
    lowest = int(found[1])
    highest = int(found[2] or found[1])
    if lowest <= HIGHEST and highest >= LOWEST:
        return min(highest, HIGHEST)
    ours = str(HIGHEST) if LOWEST == HIGHEST else f"{LOWEST} to {HIGHEST}"
    theirs = str(lowest) if lowest == highest else f"{lowest} to {highest}"
    older = "upgrade atoll on the server" if lowest > HIGHEST else "upgrade atoll here: `pip install --upgrade atoll`"
    raise errors.ProtocolMismatch(
        f"the server speaks version {ours} of the protocol, and the client {theirs}",
        hint=older,
        server=[LOWEST, HIGHEST],
        client=[lowest, highest],
    )
