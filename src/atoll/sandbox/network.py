"""The networks of sandboxes: which policy a call gets.

A policy that a caller names is given or refused, never weakened. One that names none gets `outbound` where this
machine can make it, else shares the machine's network, which it is told once.
"""

from __future__ import annotations

from atoll.errors import ResourcesUnavailable
from atoll.model.specs import NETWORKS


def within(asked: str, outer: str) -> str:
    """Return the policy of a call that is made from inside a sandbox: at most as open as the sandbox's own.

    Args:
        asked: what the call names; empty for nothing, which gives the sandbox's own.
        outer: the policy of the sandbox.

    Raises:
        ResourcesUnavailable: the call names a policy that is more open.
    """
    if not asked:
        return outer
    if NETWORKS.index(asked) > NETWORKS.index(outer):
        raise ResourcesUnavailable(
            f"a function with network `{outer}` cannot call one with network `{asked}`, which would let it out",
            hint=f'give the inner function `network="{outer}"`, or call it from the program itself',
        )
    return asked
