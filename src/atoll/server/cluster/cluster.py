"""The machines behind one server: links, sessions of their nodes, and the place of each line.

Theory of operation. A server whose own node is its only one serves lines itself, as before. With others each new line is
an `Arrival` until it has a place; then it is handed to a session of this process, or of a node. Of a node's sessions this
process knows ids and users, so that a client's connection finds them again; a node that links anew says which it has.

A node that is silent is away. Its sessions are kept for `LOST_SECONDS` after its last word: their clients are told to
try again, and hear of the loss only when the node's own lease is over and its sandboxes are gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from atoll import errors
from atoll.server.cluster import own_node
from atoll.server.cluster.contract import LOCAL, LOST_SECONDS, LiveNode, NodeFacts, NodeLoad, Wish
from atoll.server.cluster.held import Account, Away, Held
from atoll.server.cluster.links.arrival import Arrival
from atoll.server.cluster.links.link import Link
from atoll.server.cluster.links.messages import MessageError, read_facts
from atoll.server.cluster.links.splice import Half
from atoll.server.cluster.places import Places
from atoll.server.cluster.placing.refusals import able
from atoll.server.cluster.wishes import names_uploads
from atoll.server.principal import Principal
from atoll.server.process.background import in_background
from atoll.server.state import ServerState
from atoll.wire.line import DRAINS, KEY_ENDED

log = logging.getLogger("atoll.cluster")

LOOK_SECONDS = 0.5
BEFORE = "{} (before)"
"""The name of a machine whose name another machine has now, while its lease may run on."""


CATCHING_UP = "secrets, quotas and removals of users are being sent"
MOST_REASON = 300
MOST_LOST = 10_000
"""Sessions of lost machines that are remembered."""


class Cluster:
    """The machines of one server.

    Args:
        state: of the server.
        local: whether the server's own machine runs functions.
    """

    def __init__(self, state: ServerState, *, local: bool = True) -> None:
        self.state = state
        self.local = local
        self.server = secrets.token_hex(8)
        """Names this process."""
        self.links: dict[str, Link] = {}
        self.facts: dict[str, NodeFacts] = {}
        """Of the nodes that are placed on, the own one among them."""
        self.carried: defaultdict[str, set[Any]] = defaultdict(set)
        """Spliced connections of nodes, by their accounts: they may outlive a link."""
        self.sessions: dict[str, Held] = {}
        self.lost_with: dict[str, str] = {}
        """The machines of the latest sessions that were lost with theirs, for who asks for such a session."""
        self.spliced: dict[str, Half] = {}
        """The last connections of sessions, to their nodes."""
        self.arrivals: dict[str, Arrival] = {}
        self.places = Places()
        self.others = asyncio.Event()
        """Set when another machine links."""
        options = state.node.options
        self.volumes = "" if options.cluster.own_data or not local else own_node.expected_volumes(options)
        """Identity of the file system that carries `/data`; empty where it may be any, or is not known yet."""
        self._lines: Counter[str] = Counter()
        self._away: dict[str, Away] = {}
        """Nodes without a link."""
        self._accepting: dict[str, bool] = {}
        self._expected: dict[str, float] = {}
        """Sessions may still come with nodes that this process has not heard of."""
        self.on_join: Callable[[Link], None] | None = None
        """Is told of each node that links; it gets no calls until `ready`."""
        self.catching_up: dict[str, str] = {}
        """Linked nodes that are not up to date, with the reason."""
        self.on_need: Callable[[Link, dict[str, Any]], None] | None = None
        """Is told what nodes ask of the server."""
        self.away_names: Callable[[], Sequence[str]] = lambda: tuple(self._away)
        """Returns the machines that belong to the server and have no link."""
        self.missing_names: Callable[[], Sequence[str]] = self.away_names
        """Returns those of them that have run, and so may have calls."""

    # --- queries -----------------------------------------------------------------------------------------------------

    @property
    def alone(self) -> bool:
        """True if the server's own node is the only one, with all of its machine, and no session of another is left."""
        return self.local and self.places.shares is None and not (self.links or self.sessions or self._away)

    def volumes_for(self, spec: Any) -> str:
        """Return the file system that the machine for a lease's spec must have; empty for any.

        Packages that its user has uploaded are on the server's machine, and on those that share its disk.
        """
        if not self.state.node.options.cluster.own_data or not names_uploads(spec):
            return self.volumes
        own = self.facts.get(LOCAL)
        return own.volumes if own is not None else f"{own_node.OWN}{LOCAL}"

    def held(self) -> set[tuple[str, str]]:
        """Return user and key of each line that is a node's or has none yet."""
        arriving = {(one.principal.user, one.principal.key) for one in self.arrivals.values()}
        return arriving | {(one.user, one.key) for one in self.sessions.values()}

    def find(self, session: str, principal: Principal) -> Held | None:
        """Return a session of a node, if the same key has opened it."""
        found = self.sessions.get(session)
        if found is None or found.user != principal.user:
            return None
        return found if secrets.compare_digest(found.key.encode(), principal.key.encode()) else None

    def find_arrival(self, session: str, principal: Principal) -> Arrival | None:
        """Return a line that has no node yet, if the same key has opened it."""
        found = self.arrivals.get(session)
        if found is None or found.principal.user != principal.user:
            return None
        return found if secrets.compare_digest(found.principal.key.encode(), principal.key.encode()) else None

    def may_come_back(self) -> bool:
        """Return whether a session that is unknown here may be one of a node that has not linked yet."""
        now = self._now()
        return any(until > now for until in self._expected.values())

    def rows(self) -> list[LiveNode]:
        """Return the nodes that have a link, or had one just now; the own one is not among them."""
        now = self._now()
        lines = Counter(held.node for held in self.sessions.values())
        found = []
        for name, link in self.links.items():
            load = link.load if link.told else None
            found.append(LiveNode(name, self.facts[name], load, now - link.heard_at, lines[name]))
        for name, was in self._away.items():
            if name in self.facts:
                silent = now - was.until + LOST_SECONDS
                found.append(LiveNode(name, self.facts[name], None, silent, lines[name], linked=False))
        return found

    def node_of_data(self, user: str) -> str:  # noqa: ARG002 - as above
        """Return a node that serves `/data`: the own one, or one that has said a word lately.

        Raises:
            HostUnreachable: there is none.
        """
        if self.local:
            return LOCAL
        linked = [name for name in self.links if self.volumes in ("", self.facts[name].volumes)]
        if not linked:
            raise errors.HostUnreachable("no machine is there", hint="see `atoll nodes list`")
        return min(linked, key=lambda name: self.links[name].load.running)

    # --- machines ----------------------------------------------------------------------------------------------------

    def join_local(self, facts: NodeFacts) -> None:
        """Take the server's own machine."""
        self._choose_volumes(facts)
        self._join(facts)

    def _join(self, facts: NodeFacts) -> None:
        """Place on a node from here on, if its account has it take calls."""
        self.facts[facts.name] = facts
        self.places.join(facts, accepting=self.accepts(facts.name))

    def accepts(self, name: str) -> bool:
        """Return whether a node gets calls: its account has it take some, and it is up to date."""
        return self._accepting.get(name, True) and name not in self.catching_up

    def able(self, wish: Wish) -> list[str]:
        """Return the nodes that get calls, or had a link just now, and hold a wish when they are empty."""
        return able(wish, {name: facts for name, facts in self.facts.items() if self.accepts(name)})

    def hear_local(self, load: NodeLoad) -> None:
        """Take the load of the server's own machine."""
        self.places.load(LOCAL, load)

    def joined(self, link: Link, sessions: list[dict[str, Any]]) -> str:
        """See `link.Owner.joined`."""
        name, facts = link.name, link.facts
        assert facts is not None
        old = self.links.get(name)
        self.links[name] = link
        if old is not None and old is not link:
            old.close()
        before, was = BEFORE.format(name), self._away.pop(name, None)
        if old is not None and old is not link:
            was = Away(old.heard_at + LOST_SECONDS, old.account, old.machine)
        said = {str(row["id"]): (str(row["user"]), str(row["key"])) for row in sessions}
        gone = [one for one, held in self.sessions.items() if held.node == name and one not in said]
        for session in gone:
            if was is None or was.machine == link.machine:  # it has ended them
                self._drop(session)
            else:  # the other machine's lease runs on
                self.sessions[session] = self.sessions[session]._replace(node=before)
                self._away[before] = Away(was.until, "", was.machine)
        for session, (user, key) in said.items():
            held = self.sessions.get(session)
            if held is None:
                self._hold(session, Held(name, user, key, ""))
            elif held.node == before:
                self.sessions[session] = held._replace(node=name)
        self._expected.pop(name, None)
        if self.on_join is not None:
            self.catching_up[name] = CATCHING_UP
            self.on_join(link)
        self._join(facts)
        if self.local and LOCAL not in self.facts:  # its facts are asked for just now: nothing is refused before
            self.places.expect(NodeFacts(LOCAL, "", 1 << 40, 1 << 60, ("any",) * 64, {}, self.volumes))
        self.others.set()
        log.info("node_linked", extra={"fields": {"node": name, "sessions": len(said), "version": facts.version}})
        return self._choose_volumes(facts)

    def behind(self, link: Link, why: str) -> None:
        """Note why a node that has linked is not up to date yet."""
        if self.links.get(link.name) is link:
            self.catching_up[link.name] = why[:MOST_REASON]

    def ready(self, link: Link) -> None:
        """Let a node have calls that has linked and is up to date."""
        if self.links.get(link.name) is link:
            self.catching_up.pop(link.name, None)
            self.places.accept(link.name, accepting=self.accepts(link.name))

    def _choose_volumes(self, facts: NodeFacts) -> str:
        """Decide which file system carries everybody's `/data`; return why a node is not placed on, or nothing."""
        if self.state.node.options.cluster.own_data:
            return ""
        if facts.name == LOCAL or not self.volumes:  # without a machine of the server's own the first one decides
            self.volumes = facts.volumes
        if self.volumes in (facts.volumes, own_node.UNKNOWN):
            return ""
        log.warning("node_apart", extra={"fields": {"node": facts.name}})
        return (
            f"no calls are placed on `{facts.name}`: it does not share the disk of `/data` with the server's other machines;"
            " give it the same `[storage]` in `settings.toml`, or set `own_data = true` below `[cluster]` at the server"
        )

    def heard(self, link: Link) -> None:
        """See `link.Owner.heard`."""
        if self.links.get(link.name) is link:
            self.places.load(link.name, link.load)

    def session_over(self, link: Link, session: str) -> None:
        """See `link.Owner.session_over`."""
        held = self.sessions.get(session)
        if held is not None and held.node == link.name:
            self._drop(session)

    def needed(self, link: Link, message: dict[str, Any]) -> None:
        """See `link.Owner.needed`."""
        if self.on_need is not None:
            self.on_need(link, message)

    def doubtful_names(self) -> Sequence[str]:
        """Return the nodes that have no link and may run something still, some by leases of a process before this one."""
        now = self._now()
        return *self._away, *(name for name, until in self._expected.items() if until > now)

    def away(self, link: Link) -> None:
        """See `link.Owner.away`."""
        if self.links.get(link.name) is not link:
            return
        del self.links[link.name]
        self.catching_up.pop(link.name, None)
        self._away[link.name] = Away(link.heard_at + LOST_SECONDS, link.account, link.machine)
        self.places.leave(link.name)
        log.warning("node_away", extra={"fields": {"node": link.name}})

    def account_changed(self, account: Account) -> None:
        """Heed a node's account: a removed one has no link, a cordoned or draining one gets no new lines."""
        if account.state == "removed":
            if (link := self.links.get(account.name)) is not None and link.account == account.id:
                link.close()
            self._cut_off(account.id)  # it may be a machine that no longer does as it is told
            return
        if account.name != LOCAL and account.name not in self.links:  # it had joined before this process began
            self._expected.setdefault(account.name, self._now() + LOST_SECONDS)
            self._expect(account)
        accepting = account.state == "active"
        self._accepting[account.name] = accepting
        self.places.accept(account.name, accepting=self.accepts(account.name))

    def _expect(self, account: Account) -> None:
        """Have placement count a node as away: what it alone could hold is not refused at once."""
        with contextlib.suppress(MessageError):  # they are the machine's own claims
            self.places.expect(read_facts({**account.facts, "name": account.name, "labels": dict(account.labels)}))

    def _look(self) -> None:
        now = self._now()
        for name, link in tuple(self.links.items()):
            if now - link.heard_at > LOST_SECONDS:
                log.warning("node_silent", extra={"fields": {"node": name}})
                link.close()
        for name, was in tuple(self._away.items()):
            if was.until < now:
                self._lose(name)
        self.places.look()

    def _cut_off(self, account: str) -> None:
        """End the spliced connections of a node: their clients come back, and hear what became of their lines."""
        for one in tuple(self.carried.pop(account, ())):
            one.shutdown()

    def _lose(self, name: str) -> None:
        account = self._away.pop(name).account
        self.facts.pop(name, None)
        self._cut_off(account)
        lost = [session for session, held in self.sessions.items() if held.node == name]
        self.lost_with = dict([*self.lost_with.items(), *((session, name) for session in lost)][-MOST_LOST:])
        for session in lost:
            self._drop(session)
        log.warning("node_lost", extra={"fields": {"node": name, "sessions": len(lost)}})

    # --- lines -------------------------------------------------------------------------------------------------------

    def lines_of(self, user: str) -> int:
        """Return how many lines of a user are nodes' or have none yet."""
        return self._lines[user]

    def add(self, arrival: Arrival) -> None:
        """Keep a line that has no node yet."""
        self.arrivals[arrival.id] = arrival
        self._lines[arrival.principal.user] += 1

    def forget(self, arrival: Arrival) -> None:
        """Keep a line no longer that has ended, or has a node."""
        if self.arrivals.pop(arrival.id, None) is not None:
            self._count_less(arrival.principal.user)

    def hold(self, arrival: Arrival, node: str, wish: str) -> None:
        """Note that a line is a session of a node from here on."""
        self.links[node].given += 1
        principal = arrival.principal
        self._hold(arrival.id, Held(node, principal.user, principal.key, wish))

    def _hold(self, session: str, held: Held) -> None:
        self.sessions[session] = held
        self._lines[held.user] += 1

    def _drop(self, session: str) -> None:
        held = self.sessions.pop(session)
        if (half := self.spliced.pop(session, None)) is not None:
            half.end_soon()
        self._count_less(held.user)
        if held.wish:
            self.places.over(held.wish)

    def _count_less(self, user: str) -> None:
        self._lines[user] -= 1
        if self._lines[user] <= 0:
            del self._lines[user]

    def end_of(self, user: str, key: str = "") -> None:
        """End the lines of a user, or of one of the user's keys, wherever they are."""
        for arrival in tuple(self.arrivals.values()):
            if arrival.principal.user == user and key in ("", arrival.principal.key):
                arrival.end(KEY_ENDED)
        for link in self.links.values():
            link.say({"type": "end", "user": user, "key": key})

    @staticmethod
    def _now() -> float:
        return time.monotonic()

    # --- life --------------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Look after the machines while the context is open."""

        async def look() -> None:
            while True:
                await asyncio.sleep(LOOK_SECONDS)
                self._look()

        async with in_background(look):
            yield
        for arrival in tuple(self.arrivals.values()):
            arrival.end(DRAINS)
