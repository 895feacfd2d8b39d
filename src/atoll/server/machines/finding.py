"""The machine that knows a call, a batch or an environment by its id, or by the beginning of one."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from atoll import errors
from atoll.server.machines.asks import Asks, asked_of_all
from atoll.server.principal import Principal

MOST_REMEMBERED = 4096
_UNKNOWN = (errors.ResourcesUnavailable, errors.CallUnknown)


class Finding:
    """Finds machines, and remembers those of ids that were asked for lately.

    Args:
        nodes: returns the machines that are there.
        away: returns the names of those that are not.
    """

    def __init__(self, nodes: Callable[[], Mapping[str, Asks]], away: Callable[[], Sequence[str]]) -> None:
        self._nodes, self._away = nodes, away
        self._known: OrderedDict[str, str] = OrderedDict()

    def remember(self, name: str, node: str) -> None:
        """Remember the machine of an id."""
        self._known[name] = node
        self._known.move_to_end(name)
        if len(self._known) > MOST_REMEMBERED:
            self._known.popitem(last=False)

    async def call(self, principal: Principal | None, start: Any) -> str:
        """Return the machine of a call, running, waiting or over, or of a batch; one that says so where none knows it.

        Raises:
            ResourcesUnavailable: several machines know one, or none that is there.
            HostUnreachable: the machine that has it is away.
        """
        return await self._find(principal, start, ("calls.show", "call"), ("detached.counts", "batch"), any_says=True)

    async def detached(self, principal: Principal | None, start: Any) -> str:
        """Return the machine of a detached call.

        Raises:
            CallUnknown, ResourcesUnavailable: no machine knows one, or several do.
            HostUnreachable: it is away, or one that may have it is.
        """
        return await self._find(principal, start, ("detached.show", "call"), certain=True)

    async def batch(self, principal: Principal | None, batch: Any) -> str:
        """Return the machine of a batch; raises as `detached`."""
        return await self._find(principal, batch, ("detached.counts", "batch"), certain=True)

    async def environment(self, principal: Principal | None, key: Any) -> str:
        """Return a machine that has an environment; raises as it does where none has."""
        answers, failures = await asked_of_all(self._nodes(), principal, "environments.show", {"key": key})
        return _first(answers, failures)

    async def _find(
        self,
        principal: Principal | None,
        start: Any,
        *questions: tuple[str, str],
        certain: bool = False,
        any_says: bool = False,
    ) -> str:
        nodes, away = self._nodes(), self._away()
        if isinstance(start, str) and (known := self._known.get(start)) is not None:
            if known in nodes:
                return known
            if known in away:
                raise _is_away([known], start)
        failures: dict[str, errors.AtollError] = {}
        for name, argument in questions:
            answers, failed = await asked_of_all(nodes, principal, name, {argument: start})
            failures |= {node: error for node, error in failed.items() if node not in failures}
            if answers:
                return self._one(start, {node: _id_of(answer) or str(start) for node, answer in answers.items()})
        silent = [node for node, error in failures.items() if isinstance(error, errors.HostUnreachable)]
        missing = sorted({*away, *silent})
        says = [node for node, error in failures.items() if not isinstance(error, errors.HostUnreachable)]
        raised = failures[says[0]] if says else None
        if missing and (certain or raised is None):
            raise _is_away(missing, str(start))
        if raised is None:
            raise _is_away([], str(start))
        if missing and isinstance(raised, _UNKNOWN):
            raise type(raised)(raised.message, hint=f"{', '.join(missing)} may know it, and is away: try again later")
        if any_says and isinstance(raised, _UNKNOWN):
            return says[0]  # in the words for what is asked of it
        raise raised

    def _one(self, start: Any, found: dict[str, str]) -> str:
        exact = [node for node, call in found.items() if call == start]
        nodes = exact or list(found)
        if len(nodes) > 1 and len(set(found.values())) > 1:
            shown = ", ".join(f"`{call}` on {node}" for node, call in found.items())
            raise errors.ResourcesUnavailable(
                f"more than one call has an id that begins with `{start}`", hint=f"one of {shown}"
            )
        self.remember(found[nodes[0]], nodes[0])
        return nodes[0]


def _id_of(answer: Mapping[str, Any]) -> str:
    """Return the id of the call that an answer is about."""
    if isinstance(one := answer.get("call"), dict):
        return str(one["call"])
    rows = [*answer.get("unfinished", ()), *answer.get("calls", ())]
    return str(rows[0]["call"]) if rows else ""


def _first(answers: Mapping[str, Any], failures: Mapping[str, errors.AtollError]) -> str:
    if answers:
        return next(iter(answers))
    raise min(failures.values(), key=lambda error: isinstance(error, errors.HostUnreachable))


def _is_away(names: Sequence[str], start: str) -> errors.HostUnreachable:
    machines = ", ".join(f"`{name}`" for name in names) or "every machine"
    return errors.HostUnreachable(
        f"{machines} is away, and may have `{start[:80]}`",
        hint="try again in a while, or see `atoll nodes list`",
        machine=", ".join(names),
    )
