"""The machines of a Ray cluster as a fleet: an actor on each starts and watches its member process.

Every Ray node with cores runs one, but the server's own. An autoscaler takes no node away on which an actor lives, so
on a cluster with one the process of an empty machine is ended after a rest, and starts again once Ray has put a holder
there.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from atoll import errors
from atoll.server.ray.ledger import RayNode
from atoll.server.ray.shares import RAY_LABEL, RayShares

ANSWER_SECONDS = 60.0
AGAIN_SECONDS, MOST_AGAIN_SECONDS = 2.0, 60.0
LOOK_SECONDS = 1.0
JOIN_SECONDS = 120.0
"""Seconds that a machine's process has to join; after that nothing more is asked for on its Ray node until it has."""
NAME_LENGTH = 63
REMOVED = 3
"""Exit status of a node that the server knows no more: an operator has removed it, and it stays out."""

_log = logging.getLogger("atoll.server")


@dataclass(frozen=True)
class Invitation:
    """What a machine needs to join.

    Args:
        url: of the server, as machines reach it.
        token: by which one machine may join.
        certificates: that it trusts in place of its system's, in PEM; empty for the system's.
    """

    url: str
    token: str
    certificates: str = ""


@dataclass
class _Machine:
    """Args:
    stopped: an operator ended its process.
    resting: it was empty for long.
    report: of its actor; None while there is none.
    joined: its node has been there.
    """

    stopped: bool = False
    resting: bool = False
    report: Mapping[str, Any] | None = None
    joined: bool = False
    starting: bool = False
    again_at: float = 0.0
    pause: float = AGAIN_SECONDS
    began: float = 0.0
    empty_since: float = 0.0


class RayFleet:
    """Implements `cluster.contract.Fleet`; a machine's name is the id of its Ray node.

    Args:
        send: sends a message to the driver.
        invite: makes an invitation.
        program: `atoll` on the machines; that word stands for the installation that Ray's workers there have.
        home: state directory of a node; `{name}` in it stands for the node's name.
        rest_seconds: that a machine of an autoscaler may be empty before its process is ended.
        local: the driver's machine is the server's own node, and needs no process.
    """

    def __init__(
        self,
        shares: RayShares,
        send: Callable[..., None],
        invite: Callable[[], Awaitable[Invitation]],
        *,
        program: Sequence[str],
        home: str,
        rest_seconds: float,
        local: bool = True,
    ) -> None:
        self._has_local = local
        self._shares = shares
        self._ledger = shares.ledger
        self._send = send
        self._invite = invite
        self._program = tuple(program)
        self._home = home
        self._rest_seconds = rest_seconds
        self._machines: dict[str, _Machine] = {}
        self._asks: dict[int, asyncio.Future[None]] = {}
        self._numbers = itertools.count(1)
        self._local = ""
        self._connected = False
        self._tasks = set[asyncio.Task[None]]()

    # --- the contract -----------------------------------------------------------------------------------------------

    async def start(self, machine: str) -> None:
        node = self._ledger.nodes.get(machine)
        if node is None:
            raise errors.HostUnreachable(
                f"the Ray cluster has no node `{machine}`", hint="`ray list nodes` has those that live"
            )
        known = self._machines.setdefault(machine, _Machine())
        known.stopped = known.resting = False
        name = self._name(node)
        invitation = await self._invite()
        labels = {RAY_LABEL: node.id, **{key: value for key, value in node.labels.items() if "/" not in key}}
        await self._ask(
            do="start",
            node=machine,
            name=name,
            home=self._home.format(name=name),
            env={"ATOLL_JOIN_TOKEN": invitation.token},
            given=invitation.certificates,
            join=[
                *(*self._program, "node", "join", invitation.url, "--name", name, "--replace", "--no-run"),
                *(word for key, value in sorted(labels.items()) for word in ("--label", f"{key}={value}")),
                *(("--ca-file", "-") if invitation.certificates else ()),
            ],
            argv=[*self._program, "node", "run"],
        )
        known.began = asyncio.get_running_loop().time()

    async def machines(self) -> Sequence[Mapping[str, Any]]:
        return [
            {
                "machine": node.id,
                "state": "alive",
                "node": self._ledger.node_of(node.id),
                "host": node.host,
                "process": self._process(node.id),
                "lines": list((self._report(node.id) or {}).get("lines", ())),
            }
            for node in self._ledger.nodes.values()
        ]

    async def stop(self, machine: str) -> None:
        known = self._machines.setdefault(machine, _Machine())
        known.stopped = True
        await self._ask(do="stop", node=machine)

    # --- the driver -------------------------------------------------------------------------------------------------

    def hear(self, message: Mapping[str, Any]) -> None:
        """Take a message of the driver's."""
        match message["event"]:
            case "ready":
                self._local, self._connected = message["local"] if self._has_local else "", True
                for known in self._machines.values():
                    known.report = None
                for node, report in message["machines"].items():
                    self._machines.setdefault(node, _Machine()).report = report or {"state": "unknown"}
            case "machine":
                known = self._machines.setdefault(message["node"], _Machine())
                known.report = message["report"]
                if known.report and known.report.get("status") == REMOVED and not known.stopped:
                    known.stopped = True
                    self._attend(self._end(message["node"]))
            case "answer":
                self._answered(message["ask"], message["error"])
            case "gone":
                self._connected = False
                for ask in list(self._asks):
                    self._answered(ask, _no_driver().to_data())

    def _answered(self, ask: int, error: dict[str, Any] | None) -> None:
        future = self._asks.pop(ask, None)
        if future is not None and not future.done():
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(errors.from_data(error))

    async def _ask(self, **message: Any) -> None:
        if not self._connected:
            raise _no_driver()
        number = next(self._numbers)
        self._asks[number] = future = asyncio.get_running_loop().create_future()
        try:
            self._send(ask=number, **message)
            await asyncio.wait_for(future, ANSWER_SECONDS)
        except TimeoutError:
            raise errors.HostUnreachable("Ray did not answer", hint="see `ray status`, and the driver's log") from None
        finally:
            self._asks.pop(number, None)

    # --- all machines -----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep a process on each machine until cancelled."""
        try:
            while True:
                if self._connected:
                    self._look(asyncio.get_running_loop().time())
                await asyncio.sleep(LOOK_SECONDS)
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _look(self, now: float) -> None:
        for gone in self._machines.keys() - self._ledger.nodes.keys():
            if self._ledger.nodes:
                del self._machines[gone]
        for node in self._ledger.nodes.values():
            if node.id == self._local or not node.total.millicores:
                continue
            known = self._machines.setdefault(node.id, _Machine(empty_since=now))
            if not self._ledger.is_empty(node.id):
                known.resting, known.empty_since = False, now
            elif self._ledger.scales and known.report and now - known.empty_since >= self._rest_seconds:
                if not known.resting:
                    known.resting = True
                    self._attend(self._rest(node.id))
                continue
            wanted = not known.stopped and not known.resting
            if wanted and known.report is None and not known.starting and now >= known.again_at:
                known.starting, known.empty_since = True, now
                self._attend(self._start(node.id, known))
            if self._ledger.node_of(node.id):
                known.joined, known.began = True, now
            elif known.report and known.began and now - known.began > JOIN_SECONDS:
                self._not_joined(node.id, known)

    async def _start(self, machine: str, known: _Machine) -> None:
        try:
            await self.start(machine)
            known.pause = AGAIN_SECONDS
            known.report = known.report or {"state": "starting"}
            _log.info("ray.machine_started", extra={"fields": {"machine": machine}})
        except errors.AtollError as error:
            fields = {"machine": machine, "cause": error.message[:300], "hint": error.hint[:300]}
            _log.warning("ray.machine_not_started", extra={"fields": fields})
            known.pause = min(2 * known.pause, MOST_AGAIN_SECONDS)
        finally:
            known.starting = False
            known.again_at = asyncio.get_running_loop().time() + known.pause

    def _not_joined(self, machine: str, known: _Machine) -> None:
        """Ask for nothing more on a machine that does not join; one that never has begins anew, since its token expires."""
        known.began = 0.0
        self._ledger.unfit.add(machine)
        fields = {"machine": machine, "cause": " ".join((known.report or {}).get("lines", ())[-2:])[:300]}
        _log.warning("ray.machine_not_joined", extra={"fields": fields})
        if not known.joined:
            self._attend(self._end(machine))

    async def _rest(self, machine: str) -> None:
        _log.info("ray.machine_rests", extra={"fields": {"machine": machine}})
        if not await self._end(machine):
            self._machines[machine].resting = False

    async def _end(self, machine: str) -> bool:
        try:
            await self._ask(do="stop", node=machine)
        except errors.AtollError as error:
            _log.warning("ray.machine_not_stopped", extra={"fields": {"machine": machine, "cause": error.message}})
            return False
        return True

    def _attend(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- small parts ------------------------------------------------------------------------------------------------

    def _report(self, machine: str) -> Mapping[str, Any] | None:
        known = self._machines.get(machine)
        return known.report if known is not None else None

    def _process(self, machine: str) -> str:
        if machine == self._local:
            return "the server's own"
        known = self._machines.get(machine)
        if known is None or known.report is None:
            return "stopped" if known is not None and known.stopped else "resting" if known and known.resting else ""
        return str(known.report.get("state", ""))

    def _name(self, node: RayNode) -> str:
        """Return the name of a machine's node: its host's, with the beginning of the Ray node's id if two share it.

        Two Ray nodes at one address are one machine, started again before Ray has missed what ran there before.
        """
        host = re.sub(r"[^a-z0-9]+", "-", node.host.lower()).strip("-") or "ray"
        alike = [one for one in self._ledger.nodes.values() if one.host == node.host]
        shared = any(one.address != node.address for one in alike)
        return f"{host[: NAME_LENGTH - 9]}-{node.id[:8]}" if shared else host[:NAME_LENGTH]


def _no_driver() -> errors.HostUnreachable:
    return errors.HostUnreachable(
        "the server has no connection to the Ray cluster at present",
        hint="it tries again by itself; see `ray status` and `logs/ray-driver.log` in the server's state directory",
    )
