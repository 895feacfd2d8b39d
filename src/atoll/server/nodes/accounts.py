"""The nodes of a server: authentication by their credentials, and word of changes for those who hold their links.

Theory of operation. A link outlives the request that opened it, so who holds it is told when its node is drained or
removed: at once by a change of this process, and within `WATCH_SECONDS` by one of the command line on the server's
machine, which the database's mark tells. `known` is the state that the hooks have been told; a node that joined again
under its name is told of as removed first, by its old id.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, TypeVar

from sqlalchemy import Connection

from atoll import errors
from atoll.server.accounts.accounts import Accounts
from atoll.server.accounts.audit import audit
from atoll.server.addresses import source
from atoll.server.nodes import credentials, rows
from atoll.server.nodes.rows import NodeAccount
from atoll.server.principal import Principal
from atoll.server.process.background import in_background

T = TypeVar("T")

WATCH_SECONDS = 0.5
SEEN_SECONDS = 30.0
"""The most that the moment of a node's last word is behind in the database, while its link is open."""
MOST_REMEMBERED = 10_000
_log = logging.getLogger("atoll.server")


class Nodes:
    """The accounts of nodes; for the event loop's thread.

    Args:
        accounts: of the server: database, pepper, and the limit of failed attempts.
    """

    def __init__(self, accounts: Accounts) -> None:
        self._accounts = accounts
        self._database = accounts.database
        self.pepper = accounts.pepper
        self._remembered: dict[str, tuple[bytes, NodeAccount]] = {}
        self._mark: object = None
        self._ends = 0
        self._told: dict[str, NodeAccount] = {}
        self._telling = asyncio.Lock()
        self._seen: dict[str, float] = {}
        self._heard: set[str] = set()
        self._heard_names: set[str] = set()
        self._facts: dict[str, Mapping[str, Any]] = {}
        self.on_change: list[Callable[[NodeAccount], None]] = []
        """Each is called with a node that has joined or changed its state; with `removed`, its links are to end."""

    def known(self) -> list[NodeAccount]:
        """Return the nodes as they were told last: the server's own first, then by name."""
        return list(self._told.values())

    def has_run(self, node: NodeAccount) -> bool:
        """Return whether a node was ever heard of, or the one that it has replaced: that may be the same machine."""
        return node.seen is not None or node.id in self._heard or node.name in self._heard_names

    async def authenticate(self, headers: Mapping[str, str], address: str) -> NodeAccount:
        """Return the node of a request, by `Authorization: Node ID:SECRET`.

        Args:
            headers: names in lower case.
            address: of the machine.

        Raises:
            NotAuthorized: 401 for no valid credentials, 403 for a node that was removed, 429 for too many failures.
        """
        pair = credentials.read_header(headers.get("authorization", ""))
        if pair is None or not credentials.made(self.pepper, pair[0]):
            raise self._refused(address, "")
        found = await self._find(pair[0])
        if found is None or not hmac.compare_digest(found[0], credentials.node_digest(self.pepper, pair[1])):
            raise self._refused(address, pair[0])
        if found[1].state == rows.REMOVED:
            raise errors.NotAuthorized(
                f"the node `{found[1].name}` was removed from this server",
                hint="to join again: `atoll nodes token` on the server, and `atoll node join` here",
                status=403,
            )
        return found[1]

    async def _find(self, node_id: str) -> tuple[bytes, NodeAccount] | None:
        for _ in range(8):  # what was looked up before a removal is neither remembered nor used
            mark, ends = self._database.mark(rows.MARK), self._ends
            if mark != self._mark:
                self._remembered.clear()
                self._mark = mark
            found = self._remembered.get(node_id)
            if found is None:
                found = await self._database.run(lambda connection: rows.look_up(connection, node_id), writes=False)
            if (self._database.mark(rows.MARK), self._ends) == (mark, ends):
                if found is not None and len(self._remembered) < MOST_REMEMBERED:
                    self._remembered[node_id] = found
                return found
        return found

    def _refused(self, address: str, node_id: str) -> errors.NotAuthorized:
        try:
            self._accounts.limiter.failed(source(address), f"node {node_id}" if node_id else "")
        except errors.NotAuthorized as error:
            return error
        return errors.NotAuthorized(
            "the credentials of the node are not valid",
            hint="if another machine took its name, join again: `atoll nodes token` on the server gives a token",
        )

    # --- changes ----------------------------------------------------------------------------------------------------

    async def join(
        self,
        token: str,
        name: str,
        *,
        facts: Mapping[str, Any],
        labels: Mapping[str, str],
        replace: bool = False,
        address: str = "",
    ) -> rows.Joined:
        """Let a machine join by a token; failed attempts are limited by its address.

        Raises:
            NotAuthorized, CallerError: see `rows.join`.
        """

        def act(connection: Connection) -> rows.Joined:
            joined = rows.join(connection, self.pepper, token, name, facts=facts, labels=labels, replace=replace)
            actor = Principal(joined.node.id, f"node {name}"[:64])
            details = {"name": name, "address": address, "token_of": joined.maker, "labels": dict(joined.node.labels)}
            audit(connection, actor, "node.join", joined.node.id, details)
            return joined

        try:
            return await self.change(act)
        except errors.NotAuthorized:
            self._accounts.limiter.failed(source(address))
            raise

    async def change(self, function: Callable[[Connection], T]) -> T:
        """Call a function with a transaction that may change nodes, and tell those who hold their links."""
        result = await self._database.run(function)
        self._remembered.clear()
        self._ends += 1
        await self.tell()
        return result

    async def tell(self) -> None:
        """Tell the hooks of all that has changed since the last time."""
        async with self._telling:
            found = {node.id: node for node in await self._database.run(rows.all_nodes, writes=False)}
            before, self._told = self._told, found
            gone = [
                NodeAccount(**{**vars(one), "state": rows.REMOVED}) for one in before.values() if one.id not in found
            ]
            changed = [one for one in found.values() if _parts(one) != _parts(before.get(one.id))]
            for node in [*gone, *changed]:
                for hook in self.on_change:
                    try:
                        hook(node)
                    except Exception:  # the others are told all the same
                        _log.exception("nodes.hook_failed")

    def heard(self, node_id: str, facts: Mapping[str, Any] | None = None) -> None:
        """Note that a node's word has come just now, with its facts where it said them; written down in a while."""
        self._seen[node_id] = time.time()
        self._heard.add(node_id)
        if (known := self._told.get(node_id)) is not None:
            self._heard_names.add(known.name)
        if facts is not None:
            self._facts[node_id] = facts

    @contextlib.asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Watch for changes by other processes while the context is open, and write down last words."""
        await self.tell()
        async with in_background(self._watch):
            yield
        with contextlib.suppress(errors.AtollError):
            await self._write_seen()

    async def _watch(self) -> None:
        mark: object = None
        written = time.monotonic()
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            try:
                present = self._database.mark(rows.MARK)
                if present != mark:
                    await self.tell()
                    mark = present
                if self._facts or time.monotonic() - written >= SEEN_SECONDS:
                    written = time.monotonic()
                    await self._write_seen()
            except errors.AtollError as error:
                _log.warning("nodes.watch_failed", extra={"error": error.message})

    async def _write_seen(self) -> None:
        moments, facts = self._seen, self._facts
        if not moments and not facts:
            return
        self._seen, self._facts = {}, {}
        await self._database.run(lambda connection: rows.note_seen(connection, moments, facts))


def _parts(node: NodeAccount | None) -> tuple[Any, ...]:
    """Return those parts of a node whose change is told; of facts and last words its link knows more."""
    return () if node is None else (node.name, node.state, dict(node.labels))
