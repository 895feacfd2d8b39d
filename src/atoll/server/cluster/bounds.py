"""Bounds of functions (`max_concurrency`) over machines: which of them serve a bounded function, and how many calls each. Pure.

Theory of operation. The daemon of each machine keeps a bound among the calls that it makes. So a function's bound is
divided: as many machines as it allows calls, in an order of their own for each function, and each has its share. Machines
that have lines of the function come first, so that one that joins takes nothing over. A line goes to a machine whose share
is not used up, else to the one with the fewest lines for its share: it waits there, as on a server with one machine, and
idle leases are asked back. A machine that is cordoned ends its present calls beside the others' shares.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

MOST_KNOWN = 1000
"""Functions whose answer is kept."""


class Bound(NamedTuple):
    """The bound of a function.

    Args:
        key: names the function and its user.
        most: calls at a time.
    """

    key: str
    most: int


def bound_of(user: str, spec: Any) -> Bound | None:
    """Return the bound of a lease's spec, a client's claim; None where it has none."""
    found: dict[str, Any] = spec if isinstance(spec, dict) else {}
    most, identity = found.get("max_concurrency"), found.get("identity")
    if type(most) is not int or most <= 0 or not isinstance(identity, str):
        return None
    return Bound(f"{user}:{identity}", most)


class Bounds:
    """The lines of bounded functions on machines."""

    def __init__(self) -> None:
        self._lines: dict[str, Counter[str]] = {}
        self._placed: dict[str, tuple[str, str]] = {}
        self._known: dict[str, tuple[int, Sequence[str], tuple[str, ...]]] = {}

    def shares(self, bound: Bound, nodes: Iterable[str]) -> dict[str, int]:
        """Return the machines that serve a function, of those that can, and how many calls each may make at a time."""
        lines = self._lines.get(bound.key, Counter[str]())
        ranks = {node: rank(bound, node) for node in nodes}
        chosen = sorted(ranks, key=lambda node: (node not in lines, ranks[node]))[: bound.most]
        each, more = divmod(bound.most, len(chosen)) if chosen else (0, 0)
        # Lines decide who serves it, and not who has one more than others: that would change with each of them.
        return {node: each + (number < more) for number, node in enumerate(sorted(chosen, key=ranks.__getitem__))}

    def allowed(self, bound: Bound, nodes: Sequence[str]) -> tuple[str, ...]:
        """Return the machines of which one is to have a new line of a function; none where none can.

        All that wait ask again and again: the answer is kept until lines or machines change.
        """
        most, known, answer = self._known.get(bound.key, (0, (), ()))
        if most != bound.most or known != nodes:
            answer = self._found(bound, nodes)
            if len(self._known) >= MOST_KNOWN:
                self._known.clear()
            self._known[bound.key] = bound.most, nodes, answer
        return answer

    def _found(self, bound: Bound, nodes: Sequence[str]) -> tuple[str, ...]:
        shares, lines = self.shares(bound, nodes), self._lines.get(bound.key, Counter[str]())
        if free := sorted(node for node, share in shares.items() if lines[node] < share):
            return tuple(free)
        return (min(shares, key=lambda node: lines[node] / shares[node]),) if shares else ()

    def placed(self, wish: str, bound: Bound, node: str) -> None:
        """Note that a machine has a line of a function."""
        self._placed[wish] = bound.key, node
        self._known.pop(bound.key, None)
        self._lines.setdefault(bound.key, Counter())[node] += 1

    def over(self, wish: str) -> None:
        """Note that the line of a wish is over, if its function has a bound."""
        key, node = self._placed.pop(wish, ("", ""))
        self._known.pop(key, None)
        if (lines := self._lines.get(key)) is not None:
            lines[node] -= 1
            if not lines[node]:
                del lines[node]
            if not lines:
                del self._lines[key]


def rank(bound: Bound, node: str) -> bytes:
    """Return a machine's place in the order of a function: one that joins or leaves changes no other's."""
    return hashlib.blake2b(f"{node}\0{bound.key}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
