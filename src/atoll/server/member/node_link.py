"""The member's end of its link: says what the node is and how it fares, and does as the server says."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import OrderedDict
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from atoll import errors
from atoll.server.cluster.contract import LEASE_SECONDS, LOST_SECONDS, NodeFacts, NodeLoad
from atoll.server.cluster.links.messages import MessageError, Messages, read_principal, write
from atoll.server.line.sessions import Sessions
from atoll.server.node import Node

log = logging.getLogger("atoll.member")

MOST_SENT = 64
"""Words whose moments are remembered until they are acknowledged."""


def clock() -> float:
    """Return seconds that only rise, also while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _machine(home: Path) -> str:
    """Return a name of this machine's run and state directory: what ran for them before is over when they link again."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        space, place = os.stat("/proc/self/ns/pid"), os.stat(home)
    except OSError:
        return ""
    return f"{boot} {space.st_ino} {place.st_dev}:{place.st_ino}"


class Owner(Protocol):
    """The member, as its link calls back."""

    def welcomed(self, link: NodeLink, notice: str) -> None:
        """Note that the server has taken this node; a notice is for its operator."""

    def leased(self, until: float) -> None:
        """Note until when, by `clock`, the node may run calls."""

    def wanted(self, count: int) -> None:
        """Dial so many connections for lines."""

    def lost(self, link: NodeLink) -> None:
        """Note that the link has ended."""


class NodeLink(asyncio.Protocol):
    """The member's end of a link.

    Args:
        node: answers requests in the names of users.
    """

    def __init__(
        self, transport: asyncio.Transport, node: Node, sessions: Sessions, facts: NodeFacts, owner: Owner
    ) -> None:
        self._transport, self._node, self._sessions, self._owner = transport, node, sessions, owner
        self._loop = asyncio.get_running_loop()
        self._messages = Messages()
        self._sent: OrderedDict[int, float] = OrderedDict()
        self._number = 0
        self._asked: dict[int, asyncio.Task[None]] = {}
        self._needs: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.over = False
        self._heard_at = clock()
        self.taken = 0
        """Placed lines that came over this link."""
        self.lost: asyncio.Future[None] = self._loop.create_future()
        known = [
            {"id": one.id, "user": one.principal.user, "key": one.principal.key}
            for one in sessions.all()
            if not one.ended
        ]
        machine = _machine(node.options.home)
        self.say({"type": "hello", "facts": asdict(facts), "sessions": known, "versions": "1", "machine": machine})

    def say(self, message: dict[str, Any]) -> None:
        """Send a message; a link that is over sends none."""
        if not self._transport.is_closing():
            self._transport.write(write(message))

    def tell_load(self, load: NodeLoad) -> None:
        """Say how the node fares; the answer renews its lease from now on.

        A server that is silent for long is dialled anew: behind a cut that has healed TCP would be silent for minutes.
        """
        if clock() - self._heard_at > LOST_SECONDS:
            self.close()
            return
        self._number += 1
        self._sent[self._number] = clock()
        if len(self._sent) > MOST_SENT:
            self._sent.popitem(last=False)
        self.say({"type": "load", "number": self._number, "load": asdict(load)})

    async def need(self, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Ask the server.

        Raises:
            HostUnreachable: the link has ended.
            AtollError: as the server answers.
        """
        self._number += 1
        number = self._number
        future: asyncio.Future[dict[str, Any]] = self._loop.create_future()
        self._needs[number] = future
        self.say({"type": "need", "id": number, "name": name, "arguments": arguments})
        try:
            message = await future
        finally:
            self._needs.pop(number, None)
        if "error" in message:
            raise errors.from_data(message["error"])
        value = message.get("value")
        return value if isinstance(value, dict) else {}

    def data_received(self, data: bytes) -> None:
        """Take messages of the server."""
        self._heard_at = clock()
        try:
            for message in self._messages.feed(data):
                self._take(message)
        except (MessageError, KeyError, TypeError, ValueError) as error:
            log.warning("server_not_understood", extra={"fields": {"error": str(error)[:200]}})
            self._transport.abort()
        except Exception:
            log.exception("link_failed")
            self._transport.abort()

    def _take(self, message: dict[str, Any]) -> None:
        match message["type"]:
            case "beat":
                sent = self._sent.pop(message["number"], None)
                if sent is not None:
                    self._owner.leased(sent + LEASE_SECONDS)
            case "dial":
                self._owner.wanted(int(message["count"]))
            case "ask":
                task = self._loop.create_task(self._answer(message))
                self._asked[message["id"]] = task
                task.add_done_callback(lambda _task: self._asked.pop(message["id"], None))
            case "unask":
                if (found := self._asked.get(message["id"])) is not None:
                    found.cancel()
            case "end":
                self._sessions.end_of(message["user"], message["key"])
            case "met":
                future = self._needs.get(message["id"])
                if future is not None and not future.done():
                    future.set_result(message)
            case "welcome":
                self._owner.welcomed(self, str(message.get("notice", "")))
            case _:  # of a newer server
                pass

    async def _answer(self, message: dict[str, Any]) -> None:
        number = message["id"]
        try:
            asked = message["principal"]
            principal = None if asked is None else read_principal(asked)
            value = await self._node.ask(principal, message["name"], message["arguments"])
            self.say({"type": "answer", "id": number, "value": value})
        except errors.AtollError as error:
            self.say({"type": "answer", "id": number, "error": error.to_data()})
        except OSError as error:
            failed = errors.HostUnreachable(f"the node cannot be asked: {error}", hint="try again in a while")
            self.say({"type": "answer", "id": number, "error": failed.to_data()})
        except Exception as error:
            log.exception("request_failed")
            known = errors.InternalError(f"the node failed: {error!r}", hint="see its log")
            self.say({"type": "answer", "id": number, "error": known.to_data()})

    def eof_received(self) -> bool:
        """Have the transport closed."""
        return False

    def connection_lost(self, _error: Exception | None) -> None:
        """Fail what waits."""
        self.over = True
        for task in tuple(self._asked.values()):
            task.cancel()
        for future in self._needs.values():
            if not future.done():
                future.set_exception(errors.HostUnreachable("the server does not answer", hint="try again in a while"))
        if not self.lost.done():
            self.lost.set_result(None)
        self._owner.lost(self)

    def close(self) -> None:
        """End the link."""
        self._transport.abort()
