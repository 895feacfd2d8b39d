"""Pieces of messages that a process keeps for the later calls of the same user and key (`wire.repeats`).

Theory of operation. A piece is the parts that came, in memory, and its digest is computed from them on a thread when
somebody first asks for one like it. It is dropped a while after the last line that has sent or used it, when its key ends,
and the longest unused first where a bound is reached. One that a line is passing on, or was promised, is pinned and stays. A piece that finds no
room is passed on and not kept: a store can only save bytes, never a call.

A piece exists from the moment when its line begins to send it, or is told to: who asks for it meanwhile waits for it. One
that makes no progress is not waited for.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from atoll.wire import repeats

MACHINE_PART = 8
"""The part of the machine's memory for kept pieces."""
LEAST_BYTES = 512 << 20
USER_PART = 2
"""The part of it for one key."""
MOST_PIECES = 512
"""Pieces of one key."""
UNUSED_SECONDS = 60.0
"""Seconds after the end of the last line that has used a piece until it is dropped."""
STALLED_SECONDS = 5.0
"""Seconds without a byte after which a piece that is under way is not waited for."""


class Whose(NamedTuple):
    """The user and key that alone find a piece."""

    user: str
    key: str


class Piece:
    """One piece; `Kept` makes them, and is alone to change its counts."""

    def __init__(self, whose: Whose, size: int, hint: str, now: float) -> None:
        self.whose, self.size, self.hint = whose, size, hint
        self.parts: list[Any] = []
        self.filled = 0
        self.digest = ""
        self.pins = 0
        self.lines = 0
        """Open lines that have sent or used it."""
        self.used = now
        self.over = asyncio.Event()
        """It has come whole, or never will."""
        self.dropped = False

    @property
    def whole(self) -> bool:
        """True if all its bytes are here."""
        return self.filled == self.size

    @property
    def free(self) -> bool:
        """True if it may be dropped for another one."""
        return self.whole and not self.pins

    def add(self, part: Any) -> None:
        """Take the next bytes, which are not more than it lacks."""
        if type(part) is memoryview and 4 * len(part) < 3 * memoryview(part.obj).nbytes:
            part = bytes(part)  # all bytes of its object would stay in memory
        self.parts.append(part)
        self.filled += len(part)


class Kept:
    """The pieces of one process.

    Args:
        most: bytes of all users together; by default a part of the machine's memory.
        clock: seconds that only rise.
    """

    def __init__(self, most: int = 0, clock: Callable[[], float] = time.monotonic) -> None:
        machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        self.most = most or max(machine // MACHINE_PART, LEAST_BYTES)
        self.most_of_key = self.most // USER_PART
        self._clock = clock
        self._of: dict[Whose, list[Piece]] = {}
        self.bytes = 0
        self._closed = False

    def begin(self, whose: Whose, size: int, hint: str) -> Piece | None:
        """Return a piece that is about to come; None where there is no room for it."""
        if self._closed or not self._make_room(whose, size):
            return None
        piece = Piece(whose, size, hint, self._clock())
        self._of.setdefault(whose, []).append(piece)
        self.bytes += size
        return piece

    def _make_room(self, whose: Whose, size: int) -> bool:
        """Drop pieces until there is room for another one; return False, and drop none, if it cannot be had."""
        everything = [one for own in self._of.values() for one in own]
        fixed = [one for one in everything if not one.free]
        fixed_own = sum(one.size for one in fixed if one.whose == whose)
        if fixed_own + size > self.most_of_key or sum(one.size for one in fixed) + size > self.most:
            return False
        own = self._of.get(whose, [])
        while own and (sum(one.size for one in own) + size > self.most_of_key or len(own) >= MOST_PIECES):
            if not self._drop_oldest(own):
                return False
        while self.bytes + size > self.most:
            free = [own for own in self._of.values() if any(one.free for one in own)]
            self._drop_oldest(max(free, key=lambda own: sum(one.size for one in own)))
        return True

    def _drop_oldest(self, own: list[Piece]) -> bool:
        free = [one for one in own if one.free]
        if free:
            self.drop(min(free, key=lambda one: one.used))
        return bool(free)

    def drop(self, piece: Piece) -> None:
        """Forget a piece; who waits for it waits no longer."""
        if piece.dropped:
            return
        piece.dropped = True
        piece.over.set()
        self.bytes -= piece.size
        _forget(piece)
        own = self._of[piece.whose]
        own.remove(piece)
        if not own:
            del self._of[piece.whose]

    def finish(self, piece: Piece) -> None:
        """Note that a piece is whole; one that is not is dropped."""
        if not piece.whole:
            self.drop(piece)
        piece.used = self._clock()
        piece.over.set()

    async def ask(self, whose: Whose, size: int, hint: str, digest: str) -> tuple[Piece | None, Piece | None]:
        """Return the piece of this digest, pinned; or the one that is to be sent now, if there is room for it."""
        while not self._closed:
            likely = (one for one in self._of.get(whose, ()) if one.hint == hint and one.size == size)
            piece = next((one for one in likely if one.digest in ("", digest)), None)
            if piece is None:
                return None, self.begin(whose, size, hint)
            if piece.digest:
                piece.pins += 1
                return piece, None
            if piece.whole:
                await self._digest(piece)
            elif not await _come(piece):
                return None, None
        return None, None

    async def _digest(self, piece: Piece) -> None:
        piece.pins += 1
        try:
            piece.digest = await asyncio.to_thread(repeats.digest_of, piece.parts)
        finally:
            self.release(piece)

    def release(self, piece: Piece) -> None:
        """Take a pin away."""
        piece.pins -= 1
        piece.used = self._clock()
        _forget(piece)

    def leave(self, pieces: Iterable[Piece]) -> None:
        """Note the end of a line that has sent or used these."""
        for piece in pieces:
            piece.lines -= 1
            piece.used = self._clock()

    def expire(self) -> None:
        """Drop pieces that no line has used for a while."""
        before = self._clock() - UNUSED_SECONDS
        for piece in [one for own in self._of.values() for one in own]:
            if piece.used < before and not piece.lines and piece.free:
                self.drop(piece)

    def end_of(self, user: str, key: str = "") -> None:
        """Drop the pieces of a user, or of one of the user's keys."""
        for whose in [one for one in self._of if one.user == user and key in ("", one.key)]:
            for piece in list(self._of[whose]):
                self.drop(piece)

    def close(self) -> None:
        """Drop everything, and keep nothing any more."""
        self._closed = True
        for piece in [one for own in self._of.values() for one in own]:
            self.drop(piece)


def _forget(piece: Piece) -> None:
    """Free the bytes of a piece that is dropped and passed on nowhere: lines that have used it know it still."""
    if piece.dropped and not piece.pins:
        piece.parts = []


async def _come(piece: Piece) -> bool:
    """Wait until a piece has come or never will; return False where it makes no progress."""
    while True:
        filled = piece.filled
        try:
            await asyncio.wait_for(piece.over.wait(), STALLED_SECONDS)
        except TimeoutError:
            if piece.filled == filled:
                return False
        else:
            return True
