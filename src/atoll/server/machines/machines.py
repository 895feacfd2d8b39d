"""Requests of a server with several machines, by their names.

- Lists and sums are merged over all machines that are there (`merging.MERGED`); those that are away are named in `away`.
- Calls, batches and environments are looked for by id, and their machine answers (`finding`).
- Changes that concern every machine are made on all; one that is away makes them up when it comes back (`copies`).
- Secrets are kept by the server's own node, and copied to all.
- All else goes to one machine that serves `/data`, the server's own if it can.

A batch of detached calls stays on one machine, which is chosen when it is submitted: the one where least waits for the
size of the machine. The same spool sent again goes to the same one.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from atoll import errors
from atoll.daemon.request_arguments import MOST_ROWS
from atoll.server.cluster import waiting
from atoll.server.cluster.bounds import bound_of, rank
from atoll.server.cluster.contract import LOCAL, NodeFacts, NodeLoad
from atoll.server.cluster.links.arrival import Arrival
from atoll.server.cluster.placing.refusals import able
from atoll.server.cluster.wishes import wish_of
from atoll.server.machines import merging
from atoll.server.machines.asks import Answers, Asks, Failures, asked_of_all
from atoll.server.machines.copies import Copies
from atoll.server.machines.finding import Finding
from atoll.server.principal import Principal

log = logging.getLogger("atoll.machines")

OF_CALLS = ("calls.show", "calls.output", "calls.cancel", "calls.stacks")
OF_DETACHED = ("show", "wait", "result", "output", "cancel", "forget")
EVERYWHERE = {
    "users.remove": merging.removed,
    "quotas.set": merging.first,
    "environments.prune": merging.pruned,
    "environments.upgrade": merging.upgraded,
    "secrets.rotate": merging.rotated,
    "detached.flush": merging.flushed,
}
"""Requests that every machine performs, with the merging of their answers."""
OF_SERVER = ("users.remove",)
"""Those of them that the server alone asks for."""
WITH_PROGRESS = ("environments.build", "environments.lock", "volume.restore", "volume.make_room")
"""Requests that a line hands to their machine whole: their progress is shown."""


class Link(Asks, Protocol):
    """A machine behind a link (`server.cluster.link.Link`)."""

    load: NodeLoad


class Cluster(Protocol):
    """The machines as links and placement know them (`server.cluster.cluster.Cluster`)."""

    local: bool

    @property
    def links(self) -> Mapping[str, Link]: ...
    @property
    def arrivals(self) -> Mapping[str, Arrival]: ...
    @property
    def facts(self) -> Mapping[str, NodeFacts]: ...
    @property
    def alone(self) -> bool: ...
    def away_names(self) -> Sequence[str]:
        """Return the names of machines that belong to the server and have no link."""
        ...

    def missing_names(self) -> Sequence[str]:
        """Return those of them that have run, and so may have calls."""
        ...

    def node_of_data(self, user: str) -> str: ...
    def volumes_for(self, spec: Any) -> str: ...
    def accepts(self, name: str) -> bool: ...


class OwnNode(Asks, Protocol):
    """The server's own node (`server.node.Node`)."""

    async def ask_counted(self, principal: Principal | None, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """As `ask`, for a request that is counted already."""
        ...


class _Uncounted:
    """The own node, asked for requests that the server has counted."""

    def __init__(self, node: OwnNode) -> None:
        self._node = node

    async def ask(self, principal: Principal | None, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        return await self._node.ask_counted(principal, name, arguments)


class Machines:
    """Answers requests for all machines of a server; see the module.

    Args:
        own: the server's own node, which keeps secrets also where it runs no functions.
    """

    def __init__(self, own: OwnNode, cluster: Cluster, copies: Copies) -> None:
        self._own, self._cluster, self._copies = _Uncounted(own), cluster, copies
        self._finding = Finding(self.nodes, cluster.missing_names)

    def nodes(self) -> dict[str, Asks]:
        """Return the machines that are there, the server's own first."""
        own: dict[str, Asks] = {LOCAL: self._own} if self._cluster.local else {}
        links = self._cluster.links
        return own | {name: links[name] for name in sorted(links)}

    async def ask(self, principal: Principal | None, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Answer a request in a user's name, or the server's own; `away` in the answer names machines that have no part.

        Raises:
            HostUnreachable: no machine answers, or the one that knows is away.
            AtollError: as the machines answer.
        """
        if name in OF_SERVER:
            return await self._removed(principal, name, arguments)
        if self._cluster.alone and not self._cluster.away_names():
            return await self._own.ask(principal, name, arguments)
        if name.startswith("secrets.") and name not in EVERYWHERE:
            return await self._secrets(principal, name, arguments)
        if name in merging.MERGED:
            answer = await self._merged(principal, name, arguments)
            return self._with_waiting(principal, name, arguments, answer)
        if name in EVERYWHERE:
            return await self._everywhere(principal, name, arguments)
        if name == "calls.cancel" and (
            done := waiting.cancel(self._cluster.arrivals.values(), principal, arguments.get("call"))
        ):
            return done
        node = await self._node_for(principal, name, arguments)
        return merging.placed(node, await self._of(node).ask(principal, name, arguments))

    ask_counted = ask

    async def answer(self, principal: Principal, header: dict[str, Any]) -> dict[str, Any] | None:
        """Answer a request of a line; None for one that a single machine answers, see `find`.

        Raises:
            AtollError: as `ask`.
        """
        name, arguments = header.get("name"), header.get("arguments")
        if not isinstance(name, str) or not isinstance(arguments, dict):
            raise errors.ProtocolMismatch("a request has a `name` and `arguments`", hint="upgrade the older side")
        if name in WITH_PROGRESS or (name.startswith("detached.") and name not in merging.MERGED):
            return None
        return await self.ask(principal, name, arguments)

    async def find(self, principal: Principal, header: dict[str, Any]) -> str:
        """Return the machine for a line that is no lease.

        Raises:
            ResourcesUnavailable, CallUnknown: none knows the call or batch that it is about.
            HostUnreachable: the one that knows it is away.
        """
        if header["type"] == "exec":
            return await self._finding.call(principal, header.get("call"))
        arguments = header.get("arguments")
        if header["type"] == "request" and isinstance(arguments, dict):
            return await self._node_for(principal, str(header.get("name")), arguments)
        return self._cluster.node_of_data(principal.user)

    # --- one machine -------------------------------------------------------------------------------------------------

    def _of(self, node: str) -> Asks:
        found = self.nodes().get(node)
        if found is None:
            raise errors.HostUnreachable(f"the machine `{node}` does not answer", hint="see `atoll nodes list`")
        return found

    async def _node_for(self, principal: Principal | None, name: str, arguments: dict[str, Any]) -> str:
        if name in OF_CALLS:
            return await self._finding.call(principal, arguments.get("call"))
        if name == "environments.show":
            return await self._finding.environment(principal, arguments.get("key"))
        group, _, verb = name.partition(".")
        if group == "detached":
            if verb == "accept":
                return await self._for_spool(principal, arguments)
            if verb in OF_DETACHED and not arguments.get("batch"):
                return await self._finding.detached(principal, arguments.get("call"))
            return await self._finding.batch(principal, arguments.get("batch"))
        return self._cluster.node_of_data(principal.user if principal is not None else "")

    async def _for_spool(self, principal: Principal | None, arguments: dict[str, Any]) -> str:
        """Return the machine that has a spool, or else one for a new one: of those with room for its function if empty.

        Raises:
            HostUnreachable: the spool is sent `again`, and a machine that may have it is away.
        """
        user, needs = principal.user if principal is not None else "", arguments.get("needs")
        nodes, cluster = self.nodes(), self._cluster
        question = {"spool": arguments.get("spool")}
        answers, failures = await asked_of_all(nodes, principal, "detached.accepted", question)
        for node, answer in answers.items():
            if answer["calls"]:
                return node
        if arguments.get("again") is True and (missing := sorted({*failures, *cluster.missing_names()})):
            raise errors.HostUnreachable(
                f"{', '.join(f'`{node}`' for node in missing)} is away, and may have taken the call already",
                hint="before you submit it again, look for it with `atoll calls list` when the machine is back",
            )
        wish = wish_of("", user, needs, cluster.volumes_for(needs))
        known = {node: cluster.facts[node] for node in answers if cluster.accepts(node) and node in cluster.facts}
        fitting = able(wish, known)
        if (bound := bound_of(user, needs)) is not None and fitting:  # one machine keeps the bound of all its calls
            fitting = [min(fitting, key=lambda node: rank(bound, node))]
        loads, _ = await asked_of_all({node: nodes[node] for node in fitting}, None, "load", {})
        if not loads:
            return cluster.node_of_data(user)  # which says why it cannot
        return min(loads, key=lambda node: (self._pressure(node, loads[node]), node != LOCAL))

    def _pressure(self, node: str, load: Mapping[str, Any]) -> float:
        facts = self._cluster.facts.get(node)
        cores = max(facts.millicores / 1000 if facts is not None else 1.0, 0.1)
        return round((float(load["running"]) + 2 * float(load["waiting"])) / cores, 2)

    # --- several -----------------------------------------------------------------------------------------------------

    async def _merged(self, principal: Principal | None, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        if name == "calls.list":
            answers, failures = await self._recorded(principal, arguments)
            arguments = {**arguments, "limit": self._rows(principal, arguments)}
        else:
            answers, failures = await asked_of_all(self.nodes(), principal, name, arguments)
        if not answers:
            raise _first(failures)
        try:
            return self._with_away(self._joined(name, answers, arguments), failures)
        except Exception:  # a machine answers as none does: the others are shown without it
            sound = {node: answer for node, answer in answers.items() if self._is_sound(node, name, answer, arguments)}
            if not sound or len(sound) == len(answers):
                raise
        odd = errors.ProtocolMismatch("a machine answers as none does", hint="upgrade it")
        failures |= dict.fromkeys(answers.keys() - sound, odd)
        return self._with_away(self._joined(name, sound, arguments), failures)

    def _with_waiting(
        self, principal: Principal | None, name: str, arguments: dict[str, Any], answer: dict[str, Any]
    ) -> dict[str, Any]:
        """Return an answer with the calls that wait for a machine."""
        if name not in ("status", "calls.running"):
            return answer
        of_all = principal is None or (principal.may_administer and arguments.get("all", True) is True)
        rows = waiting.rows(self._cluster.arrivals.values(), None if principal is None or of_all else principal.user)
        if rows and name == "status":
            answer["daemon"]["waiting"] += len(rows)
        return {**answer, "calls": [*answer["calls"], *rows]}

    def _joined(self, name: str, answers: Answers, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return the answers as one."""
        answer = merging.MERGED[name](answers, arguments)
        if name not in ("status", "capacity"):
            return answer
        room = {node: one for node, one in answers.items() if self._gets_calls(node)} or answers  # where calls may go
        given = merging.MERGED[name](room, arguments)
        return {**answer, "capacity": given["capacity"]} if name == "status" else given

    @staticmethod
    def _is_sound(node: str, name: str, answer: dict[str, Any], arguments: Mapping[str, Any]) -> bool:
        try:
            merging.MERGED[name]({node: answer}, arguments)
        except Exception as error:
            fields = {"node": node, "request": name, "error": repr(error)[:200]}
            log.warning("answer_not_understood", extra={"fields": fields})
            return False
        return True

    def _gets_calls(self, node: str) -> bool:
        facts = self._cluster.facts.get(node)
        shares = facts is not None and self._cluster.volumes_for(None) in ("", facts.volumes)
        return shares and self._cluster.accepts(node)

    def _rows(self, principal: Principal | None, arguments: Mapping[str, Any]) -> int:
        limit = arguments.get("limit", 50)
        return limit if principal is None or type(limit) is not int else min(limit, MOST_ROWS)

    async def _recorded(self, principal: Principal | None, arguments: dict[str, Any]) -> tuple[Answers, Failures]:
        """Ask each machine for its newest calls, as many as the asked part may have, some at a time."""
        offset, limit = arguments.get("offset", 0), self._rows(principal, arguments)
        if type(offset) is not int or type(limit) is not int or offset < 0 or limit < 0:
            return await asked_of_all(self.nodes(), principal, "calls.list", arguments)
        answers, failures, nodes = Answers(), Failures(), self.nodes()
        for place in range(0, max(offset + limit, 1), MOST_ROWS):
            count = min(MOST_ROWS, offset + limit - place)
            asked = {**arguments, "offset": place, "limit": count}
            found, failed = await asked_of_all(nodes, principal, "calls.list", asked)
            failures |= failed
            for node, answer in found.items():
                answers.setdefault(node, {"calls": []})["calls"] += answer["calls"]
            nodes = {node: nodes[node] for node, answer in found.items() if len(answer["calls"]) >= count}
            if not nodes:  # an offset behind all calls
                break
        return {node: answer for node, answer in answers.items() if node not in failures}, failures

    async def _everywhere(self, principal: Principal | None, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        answers, failures = await asked_of_all(self.nodes(), principal, name, arguments, None)
        for error in failures.values():
            if not isinstance(error, errors.HostUnreachable) or not answers:
                raise error
        return self._with_away(EVERYWHERE[name](answers, arguments), failures)

    async def _removed(self, principal: Principal | None, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Have all machines perform what the server alone asks for, the own node too, since it keeps the secrets."""
        if principal is not None:  # a machine that is away makes it up in the server's own name
            raise errors.ResourcesUnavailable(
                f"this user cannot ask for `{name}` here", hint="ask the server's operator"
            )
        nodes = {LOCAL: self._own, **self.nodes()}
        answers, failures = await self._copies.everywhere(nodes, self._cluster.away_names(), name, arguments)
        for node, error in failures.items():
            if not isinstance(error, errors.HostUnreachable) or not answers:
                where = "" if node == LOCAL else f" on `{node}`"
                again = f"it is tried again{where} every few seconds, until it is done"
                raise errors.from_data({**error.to_data(), "hint": f"{error.hint}; {again}" if error.hint else again})
        return self._with_away(EVERYWHERE[name](answers, arguments), failures)

    async def _secrets(self, principal: Principal | None, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        if name not in ("secrets.set", "secrets.delete"):
            return await self._own.ask(principal, name, arguments)
        async with self._copies.changing:
            answer = await self._own.ask(principal, name, arguments)
            failures = await self._copies.copy({node: one for node, one in self.nodes().items() if node != LOCAL})
        for node, error in failures.items():
            log.warning("secrets_not_copied", extra={"fields": {"node": node, "error": error.message[:200]}})
        return self._with_away(answer, failures)

    def _with_away(self, answer: dict[str, Any], failures: Failures) -> dict[str, Any]:
        away = sorted({*failures, *self._cluster.missing_names()})
        return {**answer, "away": away} if away else answer


def _first(failures: Failures) -> errors.AtollError:
    for error in failures.values():
        if not isinstance(error, errors.HostUnreachable):
            return error
    return next(iter(failures.values()), errors.HostUnreachable("no machine is there", hint="see `atoll nodes list`"))
