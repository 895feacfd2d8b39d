"""The placement, which assigns nodes to wishes: a pure state machine without clock or I/O.

Theory of operation. Events (`join`, `load`, `ask`, `over`, ...) change the state and return the places that follow from it.
Time is an argument. A node says its room from time to time; placements since then are subtracted (`placing.node_room`).

- Of the nodes with room a wish gets the one where a sandbox of the same use was given back last, then the last one that has
  such a sandbox, then one that has built its environment; the latter two only if they have nearly as much room as the best.
  Else it gets the one with the most room after it. Wishes without GPUs come last to nodes with GPUs, and wishes with GPUs
  are packed (`placing.kinds`).
- Wishes without room wait. Users take turns by their placed cores for their weight (`placing.queue`).
- The first wish of a kind waits for one node in particular: the node is *held*. A wish that comes later in turn gets nothing
  there of what the first one lacks; so it drains: its leases are asked back (`placing.crowded`). After each
  `PATIENCE_SECONDS` one more node is held, and then for everybody: a large wish gets in once the calls on one have ended.
- A placed wish counts for its user until it is over. It takes room until the node's figures hold it, and no longer.
- A wish that no node can ever hold has a `refusal`, and is not to be asked. Nodes that are away for less than
  `AWAY_SECONDS`, or are expected, count as if they were there.

Where another scheduler owns the machines, its shares are asked for each choice. A node whose share is full is not asked
again for this kind before the shares change, or a placed wish on it is over. Nothing is kept free for a wish that lacks
a share: the other scheduler decides who has it next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from operator import itemgetter
from typing import Any, NamedTuple

from atoll.server.cluster.contract import NodeFacts, NodeLoad, Place, Shares, Wish
from atoll.server.cluster.placing.crowded import crowded
from atoll.server.cluster.placing.kinds import Kind, Kinds
from atoll.server.cluster.placing.node_room import NodeRoom
from atoll.server.cluster.placing.queue import Turn, User, Waiting
from atoll.server.cluster.placing.refusals import Away, reason_of, refusal_of
from atoll.server.cluster.placing.warmth import Warmth

PATIENCE_SECONDS = 30.0
"""Waiting time after which a wish's held node is held for everybody, and after which one more is held each time."""
MOST_HELD = 16
"""Nodes that are held for one kind."""
MOST_TOLD = 1000
"""Waiting wishes that shares are told of."""
TELL_SECONDS = 1.0
"""Seconds between two times that they are."""


class _Placed(NamedTuple):
    wish: Wish
    node: NodeRoom
    number: int


class _Wait(NamedTuple):
    user: User
    kind: Kind


class Placement:
    """The state of one cluster; see the module's theory of operation.

    Args:
        shares: of another scheduler, if one owns the machines.
    """

    def __init__(self, shares: Shares | None = None) -> None:
        self._shares = shares
        self._nodes: dict[str, NodeRoom] = {}
        self._away = Away()
        self._kinds = Kinds(self._nodes)
        self._lines: dict[Kind, None] = {}  # kinds of which something waits
        self._holders: dict[NodeRoom, list[Kind]] = {}
        self._users: dict[str, User] = {}
        self._waits: dict[str, _Wait] = {}
        self._placed: dict[str, _Placed] = {}
        self._warmth = Warmth()
        self._count = 0
        self._turns = 0
        self._now = 0.0
        self._told = float("-inf")
        self._telling = False
        self._serving = self._again = False

    # --- queries --------------------------------------------------------------------------------------------------

    def position(self, wish_id: str) -> int:
        """Return how many of its user's wishes wait before this one, or -1 when it does not wait."""
        found = self._waits.get(wish_id)
        return -1 if found is None else found.user.position(found.kind.line, wish_id)

    def reason(self, wish_id: str) -> str:
        """Return why a wish waits, in one line that names no other user; empty when it does not wait."""
        found = self._waits.get(wish_id)
        if found is None:
            return ""
        return reason_of(found.kind, self.position(wish_id), (one.facts for one in self._nodes.values()))

    def waiting(self) -> Sequence[Wish]:
        """Return the wishes that wait, in the order in which they came."""
        return [wait.user.lines[wait.kind.line][name].wish for name, wait in self._waits.items()]

    def refusal(self, wish: Wish) -> str:
        """Return why no node can ever hold a wish, in one line; empty where one can."""
        if self._shares is not None:
            return self._shares.refusal(wish)
        return refusal_of(wish, [one.facts for one in self._nodes.values()], self._away.known(self._now))

    def refused(self) -> list[tuple[Wish, str]]:
        """Return wishes that wait although no node can hold them any more, with the reason: to be withdrawn."""
        found = []
        for kind in self._lines:
            if not kind.capable and (text := self.refusal(kind.line.first()[2].wish)):
                found += [(one.wish, text) for user in kind.line.users for one in user.lines[kind.line].values()]
        return found

    def preferred(self, wish: Wish) -> str:
        """Return the node that is best for a waiting wish once it has room: where it is warm; empty for none."""
        kind = self._kinds.of(wish)
        return next((one.facts.name for one in self._warmth.known(wish) if kind.is_capable(one)), "")

    def crowded(self, now: float) -> list[str]:
        """Return the nodes whose leases are to be asked back."""
        return list(crowded(self._lines, now)) if self._waits else []

    def nodes(self) -> list[Mapping[str, Any]]:
        """Return a row for each node, for people."""
        return [node.row() for node in self._nodes.values()]

    # --- events of nodes ------------------------------------------------------------------------------------------

    def expect(self, facts: NodeFacts, now: float) -> None:
        """A node was there when the server last ran: it counts as one that is away."""
        self._pass(now)
        self._away.add(facts, now)

    def join(self, facts: NodeFacts, now: float) -> list[Place]:
        """A node is there, or is there anew; it has room from its first figures on."""
        places = self.leave(facts.name, now)
        self._away.discard(facts.name)
        node = self._nodes[facts.name] = NodeRoom(facts, now)
        for kind in self._kinds:
            kind.join(node)
        return places + self._serve()

    def leave(self, node: str, now: float) -> list[Place]:
        """A node's link is gone. Its placed wishes count for their users until they are over."""
        self._pass(now)
        found = self._nodes.pop(node, None)
        if found is None:
            return []
        self._away.add(found.facts, now)
        self._shut_off(found)
        return self._serve()

    def accept(self, node: str, accepting: bool, now: float) -> list[Place]:
        """A node takes new wishes, or none (it is cordoned, or drained)."""
        self._pass(now)
        found = self._nodes.get(node)
        if found is None or found.accepting == accepting:
            return []
        found.accepting = accepting
        if accepting:
            for kind in self._kinds:
                kind.join(found)
        else:
            self._shut_off(found)
        return self._serve()

    def load(self, node: str, load: NodeLoad, now: float) -> list[Place]:
        """A node has said its figures."""
        self._pass(now)
        found = self._nodes.get(node)
        if found is None or not found.hear(load, now):
            return []
        self._kinds.touch(found)
        return self._serve()

    def look(self, now: float) -> list[Place]:
        """Shares have changed, or time has passed; to be called every second or so while something waits."""
        self._pass(now)
        for kind in self._kinds:
            kind.open_up()
        for kind in self._lines:
            kind.stuck = False
            if kind.line.users:
                self._hold(kind)
        return self._serve()

    # --- events of wishes -----------------------------------------------------------------------------------------

    def ask(self, wish: Wish, now: float) -> list[Place]:
        """A line needs a node. One that no node can hold now waits; ask for its `refusal` first.

        Raises:
            ValueError: a wish with this id waits or is placed.
        """
        self._pass(now)
        if wish.id in self._waits or wish.id in self._placed:
            raise ValueError(f"wish `{wish.id}` was asked twice")
        kind = self._kinds.of(wish)
        user = self._users.get(wish.user)
        if user is None:
            user = self._users[wish.user] = User()
        user.weight = wish.weight if wish.weight > 0 else 1.0
        self._count += 1
        if not user.waiting:
            self._turns += 1
            user.turn = self._turns
        if kind not in self._lines:
            node = self._choose(kind, wish, (True, *user.rank(self._count)))
            if node is not None:
                return [self._place(wish, user, kind, node)]
        user.add(kind.line, wish, self._count, now)
        self._waits[wish.id] = _Wait(user, kind)
        kind.line.enter(user)
        if kind in self._lines and kind.line.users[user][2] != self._count:
            return []  # an earlier wish of its user is before it, so nothing differs
        self._lines[kind] = None
        kind.stuck = False
        return self._serve()

    def withdraw(self, wish_id: str, now: float) -> list[Place]:
        """A line needs no node any more; one that is placed is over."""
        if wish_id not in self._waits:
            return self.over(wish_id, now)
        self._pass(now)
        wait = self._waits.pop(wish_id)
        wish = wait.user.remove(wait.kind.line, wish_id).wish
        wait.kind.line.enter(wait.user)
        if wait.user.idle:
            del self._users[wish.user]
        return self._serve()

    def over(self, wish_id: str, now: float) -> list[Place]:
        """The line of a placed wish is over."""
        self._pass(now)
        placed = self._placed.pop(wish_id, None)
        if placed is None:
            return []
        wish, node, number = placed
        user = self._users[wish.user]
        user.uncount(wish)
        if user.idle:
            del self._users[wish.user]
        if self._shares is not None:
            self._shares.given_back(Place(wish, node.facts.name))
            for kind in self._kinds:
                kind.open_up(node)
        if self._nodes.get(node.facts.name) is node:
            self._warmth.given_back(wish, node)
            if node.take_back(number, wish):
                self._kinds.touch(node)
        return self._serve()

    # --- kinds and users ------------------------------------------------------------------------------------------

    def _pass(self, now: float) -> None:
        self._now = max(self._now, now)

    def _shut_off(self, node: NodeRoom) -> None:
        """Place nothing more on a node, and hold it for nobody."""
        for kind in self._kinds:
            kind.leave(node)
        self._holders.pop(node, None)
        for kind in [one for one in self._lines if one.is_rounded and not one.capable]:
            self._regroup(kind)

    def _regroup(self, kind: Kind) -> None:
        """Let wishes wait as they are that are too large for every node only because they were rounded up."""
        for name, wait in [(name, wait) for name, wait in self._waits.items() if wait.kind is kind]:
            user = wait.user
            found = user.remove(kind.line, name)
            exact = self._kinds.exact(found.wish)
            user.add(exact.line, found.wish, found.number, found.since)
            self._waits[name] = _Wait(user, exact)
            self._lines[exact] = None
            kind.line.enter(user)
            exact.line.enter(user)

    # --- placing --------------------------------------------------------------------------------------------------

    def _serve(self) -> list[Place]:
        """Place what has room, in turn."""
        if self._serving:  # shares that have changed while they were told: the one that serves looks again
            self._again = True
            return []
        places: list[Place] = []
        self._serving = self._again = True
        while self._again and self._lines:
            self._again = False
            self._serve_round(places)
        self._serving = False
        if self._shares is not None:
            self._tell(self._shares)
        return places

    def _serve_round(self, places: list[Place]) -> None:
        for kind in [one for one in self._lines if not one.line.users]:
            self._close(kind)
        turns = []
        for kind in self._lines:
            if kind.has_room and not kind.stuck:
                turns.append(self._first(kind))
            elif not kind.held:
                self._hold(kind)
        while turns:
            if len(turns) > 1:
                turns.sort(key=itemgetter(0), reverse=True)
            turn, kind, user, waiting = turns.pop()
            if waiting.wish.id not in self._waits:  # it was withdrawn when shares were told of another one
                turns.append(self._first(kind))
                continue
            node = self._choose(kind, waiting.wish, turn)
            if node is None:
                kind.stuck = kind.has_room
                if not kind.held:
                    self._hold(kind)
                continue
            places.append(self._serve_one(waiting.wish, user, kind, node))
            turns = [self._first(one[1]) if one[2] is user else one for one in turns if one[1].line.users]
            if not kind.line.users:
                self._again = True  # it waits no more, and gives up the nodes that were held for it
            elif kind.has_room:
                turns.append(self._first(kind))

    def _serve_one(self, wish: Wish, user: User, kind: Kind, node: NodeRoom) -> Place:
        del self._waits[wish.id]
        user.remove(kind.line, wish.id)
        self._turns += 1
        user.turn = self._turns
        kind.line.enter(user)
        return self._place(wish, user, kind, node)

    def _first(self, kind: Kind) -> tuple[Turn, Kind, User, Waiting]:
        """Return a kind's first wish and its turn: patience that has ended goes before all shares."""
        rank, user, waiting = kind.line.first()
        if self._now - waiting.since >= PATIENCE_SECONDS:
            kind.turn = False, waiting.since, 0.0, waiting.number
        else:
            kind.turn = True, *rank
        return kind.turn, kind, user, waiting

    def _close(self, kind: Kind) -> None:
        del self._lines[kind]
        for node in kind.hold_none():
            self._holders[node].remove(kind)
            self._kinds.touch(node)

    def _hold(self, kind: Kind) -> None:
        """Hold as many nodes for a kind as its first wish has waited for."""
        waited = self._now - self._first(kind)[3].since
        node = kind.hold_more(min(1 + int(waited // PATIENCE_SECONDS), MOST_HELD))
        if node is not None:
            self._holders.setdefault(node, []).append(kind)
            self._kinds.touch(node)

    def _choose(self, kind: Kind, wish: Wish, turn: Turn) -> NodeRoom | None:
        """Return the best node that has room for a wish, and may give it."""
        if not kind.has_room:
            return None
        if kind.has_own_room:
            for node in self._warmth.nodes(kind, wish):
                if self._may(node, kind, wish, turn):
                    return node
            best = kind.best
            if best is None or self._may(best, kind, wish, turn):
                return best
        for node in kind.in_order():
            if self._may(node, kind, wish, turn):
                return node
        return None

    def _may(self, node: NodeRoom, kind: Kind, wish: Wish, turn: Turn) -> bool:
        """Return whether a node with room may give it to a wish: others before it in turn, and its share, allow it."""
        for other in self._holders.get(node, ()):
            if other is not kind and other.turn < turn and other.line.users and other.waits_for(node, kind):
                return False
        if self._shares is not None and not self._shares.room(node.facts.name, wish):
            kind.shut_out(node)
            return False
        return True

    def _place(self, wish: Wish, user: User, kind: Kind, node: NodeRoom) -> Place:
        self._placed[wish.id] = _Placed(wish, node, node.place(wish, self._now))
        user.count(wish)
        kind.chosen(node)
        self._kinds.touch(node)
        self._warmth.placed(wish, node)
        place = Place(wish, node.facts.name)
        if self._shares is not None:
            self._shares.taken(place)
        return place

    def _tell(self, shares: Shares) -> None:
        """Tell the shares what waits, at most once a second; that nothing does, at once."""
        if (self._waits and self._now - self._told >= TELL_SECONDS) or (self._telling and not self._waits):
            self._told, self._telling = self._now, bool(self._waits)
            shares.wanted(
                [wait.user.lines[wait.kind.line][name].wish for name, wait in islice(self._waits.items(), MOST_TOLD)]
            )
