"""The sessions of a server: found again by id, bounded by user, and acknowledged and kept alive by one timer."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import secrets
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable

from atoll import errors
from atoll.server.line import handover
from atoll.server.line.kept import Kept
from atoll.server.line.session import Session
from atoll.server.line.shares import Bounds, Bytes, may_open
from atoll.server.node import Node
from atoll.server.principal import Principal
from atoll.server.process.background import in_background
from atoll.wire.line import DRAINS, KEY_ENDED

MOST_OF_USER = 2048
"""Lines of one user at a time: leases, requests and storage channels."""
MOST_GONE = 65536
SETTLE_SECONDS = 1.0
"""Seconds after which what has come is acknowledged on a line where nothing more comes."""

LOOKS = 5
"""Of so many looks at what has come, one is at what is left in memory."""


class Sessions:
    """The sessions of this process.

    Args:
        node: that they are relayed to.
        most: of all users together.
        suffix: see `shares.Bounds`.
    """

    def __init__(self, node: Node, most: int = 1 << 16, suffix: str = "") -> None:
        self._node, self._suffix = node, suffix
        self.on_end: list[Callable[[Session], None]] = []
        """Told of each session that is over."""
        self._most = most
        self._sessions: dict[str, Session] = {}
        self._of_user: Counter[str] = Counter()
        self.paces = node.paces
        self._shares = Bytes()
        self.kept = Kept()
        self._opening: set[Session] = set()
        self.gone: OrderedDict[str, None] = OrderedDict()
        """Ids whose clients were told that there is no such session: an opening of theirs may still be on its way."""
        self.unsettled: set[Session] = set()
        """Those that got bytes since the last look."""
        self._looks = 0
        self.opened = self.resumed = self.refused = self.adopted = 0
        self.calls = self.bytes_up = self.bytes_down = 0
        """Of sessions that are over."""

    def __len__(self) -> int:
        return len(self._sessions)

    def all(self) -> list[Session]:
        """Return the sessions of now."""
        return list(self._sessions.values())

    def open(self, principal: Principal) -> Session:
        """Return a new session.

        Raises:
            NotAuthorized: the user has as many as may be, status 429.
            HostUnreachable: all users together have.
        """
        self.check_room(principal)
        self.opened += 1
        return self.take(secrets.token_urlsafe(24), principal)

    def check_room(self, principal: Principal, own: int = 0, all_lines: int = 0) -> None:
        """Refuse a line too many.

        Args:
            own, all_lines: lines elsewhere that count as well, of the user and of all.

        Raises:
            As `open`.
        """
        own += self._of_user[principal.user]
        all_lines += len(self._sessions)
        room = may_open(own, all_lines, self._most) or all_lines >= self._most
        if own >= MOST_OF_USER or not room:
            self.refused += 1
            raise errors.NotAuthorized(
                f"`{principal.name}` has {own} open lines, the most for one user"
                + ("" if room else f" while all together have {all_lines} of {self._most}"),
                hint="end programs that hold leases, or call less at a time",
                status=429,
            )
        if all_lines >= self._most:
            self.refused += 1
            raise errors.HostUnreachable(
                f"the server has {self._most} open lines, the most that it can", hint="try again in a while"
            )

    @property
    def bounds(self) -> Bounds:
        """The bounds of all sessions here."""
        return Bounds(self._shares, self.paces, self.kept, self._suffix)

    def take(self, name: str, principal: Principal) -> Session:
        """Return a new session of this id, past the checks of `open`."""
        session = Session(name, principal, self._node, self._forget, self.bounds)
        self._sessions[name] = session
        self._opening.add(session)
        self._of_user[principal.user] += 1
        return session

    def find(self, name: str, principal: Principal) -> Session | None:
        """Return the session of this id, if the same key has opened it.

        Raises:
            HostUnreachable: the client has been away for too long, and its call is just being ended.
        """
        found = self._sessions.get(name)
        if found is None or found.principal.user != principal.user:
            return None
        if not hmac.compare_digest(found.principal.key.encode(), principal.key.encode()):
            return None
        if found.expired:
            raise ending()
        self.resumed += 1
        return found

    def by_id(self, name: str) -> Session | None:
        """Return the session of this id, for a server that has checked whose it is; it must not begin once it was gone."""
        found = self._sessions.get(name)
        self.resumed += found is not None
        if found is None:
            self.gone[name] = None
            if len(self.gone) > MOST_GONE:
                self.gone.popitem(last=False)
        return found

    def _forget(self, session: Session) -> None:
        if self._sessions.pop(session.id, None) is None:
            return
        self.unsettled.discard(session)
        self._opening.discard(session)
        user = session.principal.user
        self._of_user[user] -= 1
        if not self._of_user[user]:
            del self._of_user[user]
        self.calls += session.ends.calls
        self.bytes_up += session.bytes_up
        self.bytes_down += session.bytes_down
        for tell in self.on_end:
            tell(session)

    def end_of(self, user: str, key: str = "") -> None:
        """End the sessions of a user, or of one of the user's keys: it was revoked."""
        self.kept.end_of(user, key)
        for session in self.all():
            if session.principal.user == user and key in ("", session.principal.key):
                session.end(KEY_ENDED)

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Serve while the context is open, with the sessions of the server before; then hand them to the next one."""
        self.adopted = await handover.adopt(self._node.options, self.take)
        try:
            async with in_background(self._settle):
                yield
        finally:
            self.kept.close()  # lines that wait for a piece of another line are told to send it
            await handover.give(self._node.options, self.all())
            for session in self.all():
                session.end(DRAINS)  # nobody hears of an end before the node has ended the call

    async def _settle(self) -> None:
        while True:
            await asyncio.sleep(SETTLE_SECONDS)
            waiting, self.unsettled = self.unsettled, set()
            for session in waiting:
                session.acknowledge()
            self._end_unopened(asyncio.get_running_loop().time())
            self.kept.expire()
            self._looks += 1
            if self._looks % LOOKS == 0:
                self._end_hoards()

    def _end_unopened(self, now: float) -> None:
        """End lines whose opening message does not come."""
        for session in tuple(self._opening):
            if session.kind and session.early.spool is None:
                self._opening.discard(session)
            elif session.early.until < now:
                session.end()

    def _end_hoards(self) -> None:
        """End lines of users who leave too much in the server's memory, the fullest first."""
        held: Counter[str] = Counter()
        for session in self._sessions.values():
            held[session.principal.user] += _held_bytes(session)
        for user, count in held.items():
            left = count
            if left <= self._shares.most_of_user:
                continue
            own = [session for session in self._sessions.values() if session.principal.user == user]
            for session in sorted(own, key=lambda one: -_held_bytes(one)):
                if left <= self._shares.most_of_user:
                    break
                left -= _held_bytes(session)
                session.end()


def _held_bytes(session: Session) -> int:
    """Return the bytes in memory that client or worker have not taken, beside the early ones."""
    return session.unread + session.line.kept_bytes + session.ends.waiting_bytes + session.keeping.behind_bytes


def ending() -> errors.HostUnreachable:
    """Return the error for a client that comes back while its call is being ended: it hears more when that is over."""
    return errors.HostUnreachable("the call ends, since its client was away for too long", hint="try again in a while")
