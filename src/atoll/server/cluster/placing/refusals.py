"""Refusals and reasons: why no node can ever hold a wish, or why it waits, in one line for its user. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from atoll.server.cluster.contract import NodeFacts, Wish
from atoll.server.cluster.placing.kinds import Kind
from atoll.server.cluster.placing.sizes import TYPES, Size

AWAY_SECONDS = 60.0
"""How long a node that has left, or is expected, counts as one that can hold wishes."""


class Away:
    """Nodes that are expected back."""

    def __init__(self) -> None:
        self._facts: dict[str, tuple[NodeFacts, float]] = {}

    def add(self, facts: NodeFacts, now: float) -> None:
        """Expect a node from now on."""
        self._facts.pop(facts.name, None)
        self._facts[facts.name] = facts, now

    def discard(self, name: str) -> None:
        """Expect a node no more."""
        self._facts.pop(name, None)

    def known(self, now: float) -> list[NodeFacts]:
        """Return the nodes that are expected, and forget those that were away for too long."""
        for name in [name for name, (_, since) in self._facts.items() if now - since >= AWAY_SECONDS]:
            del self._facts[name]
        return [facts for facts, _ in self._facts.values()]


def refusal_of(wish: Wish, here: Sequence[NodeFacts], away: Iterable[NodeFacts]) -> str:
    """Return why none of these nodes can ever hold a wish; empty where one can, or none is known."""
    known = [*here, *away]
    if not known:
        return ""
    if wish.volumes:
        known = [one for one in known if one.volumes == wish.volumes]
        if not known:
            return "no machine has the file system that carries its `/data`"
    for name, value in wish.labels.items():
        if not any(one.labels.get(name) == value for one in known):
            return f"no machine has the label `{name}={value}`"
    known = [one for one in known if all(one.labels.get(name) == value for name, value in wish.labels.items())]
    if not known:
        labels = ", ".join(f"`{name}={value}`" for name, value in wish.labels.items())
        return f"no machine has all of the labels {labels}"
    size = Size(wish.millicores, wish.memory_bytes, wish.gpus)
    typed = TYPES.get(wish.machine_type) == size
    totals = [total_of(one) for one in known]
    # A type is cut down to a machine that is smaller, except for its GPUs; numbers are not (`model.resources`).
    if any(size.gpus <= one.gpus and (typed or _within(size, one)) for one in totals):
        return ""
    largest = max(totals, key=lambda one: (one.gpus, one) if size.gpus else (one.millicores, one))
    name = f"machine type `{wish.machine_type}`" if wish.machine_type and typed else "the function"
    return f"{name} takes {size}, and the largest machine has {largest}"


def _within(size: Size, total: Size) -> bool:
    return all(mine <= has for mine, has in zip(size, total, strict=True))


def able(wish: Wish, known: Mapping[str, NodeFacts]) -> list[str]:
    """Return the names of the nodes that hold a wish when they are empty: those that do so without a cut of its type, if any."""
    size = Size(wish.millicores, wish.memory_bytes, wish.gpus)
    found = [name for name, facts in known.items() if not refusal_of(wish, [facts], ())]
    return [name for name in found if _within(size, total_of(known[name]))] or found


def reason_of(kind: Kind, before: int, here: Iterable[NodeFacts]) -> str:
    """Return why a wish of this kind waits.

    Args:
        before: of the same user.
        here: nodes that have joined.
    """
    if not kind.capable:
        if any(kind.allows(one) and kind.fits_whole(total_of(one)) for one in here):
            return "the machines that can hold it are being drained"
        return "no machine that can hold it is connected"
    place = f"{before:,} of your requests before this one" if before else "this is your next request"
    if kind.shut:
        return f"the share of every machine is used: {place}"
    if kind.nodes:
        return f"every machine that serves this function, which has a bound, is full: {place}"
    full = "every GPU that will do is taken" if kind.size.gpus else "every machine is full"
    return f"{full}: {place}"


def total_of(facts: NodeFacts) -> Size:
    """Return what a node has."""
    return Size(facts.millicores, facts.memory_bytes, len(facts.gpus))
