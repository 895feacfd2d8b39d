"""The kept pieces of one line: those that its client sends, asks for, and has passed on by name (`wire.repeats`)."""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Callable
from typing import Any

from atoll.server.line.ends import Ends
from atoll.server.line.kept import Kept, Piece, Whose
from atoll.server.principal import Principal
from atoll.wire.repeats import MOST_NAMED
from atoll.wire.websocket import LineError

HEADERS = {"keep", "have", "kept"}
AT_A_TIME = 16
"""Parts of a piece that are passed on before others have their turn."""
_DIGEST, _HINT = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{1,64}")


class Keeping:
    """One line's use of the kept pieces.

    Args:
        kept: of the process.
        principal: the line is theirs.
        ends: what comes is passed on to.
        say: sends the client a header.
        passed: is told when bytes of a piece have been passed on.
    """

    def __init__(
        self,
        kept: Kept,
        principal: Principal,
        ends: Ends,
        say: Callable[[dict[str, Any]], None],
        passed: Callable[[], None],
    ) -> None:
        self._kept, self._whose = kept, Whose(principal.user, principal.key)
        self._ends, self._say, self._passed = ends, say, passed
        self._comes: Piece | None = None
        self._lacks = 0
        """Bytes that the piece under way lacks."""
        self._queue: deque[Any] = deque()
        """A piece with its next part, and the bytes of the client behind it."""
        self._promised: dict[str, Piece] = {}
        self._expected: dict[str, Piece] = {}
        self._used: set[Piece] = set()
        self._task: asyncio.Task[None] | None = None
        self.behind_bytes = 0
        """Bytes of the client that wait for a piece to be passed on."""

    @property
    def settled(self) -> bool:
        """True if another process can go on with the line, without a piece of this one."""
        return not (self._queue or self._promised or self._task)

    def offer(self, granted: dict[str, Any]) -> dict[str, Any]:
        """Return the message of a lease with the word that pieces are kept."""
        return {**granted, "keeps": self._kept.most_of_key}

    # --- what comes --------------------------------------------------------------------------------------------------

    def take(self, header: dict[str, Any]) -> None:
        """Take one of `HEADERS`.

        Raises:
            LineError: it makes no sense here.
        """
        if self._lacks:
            raise LineError("a header came within a piece")
        if header["type"] == "keep":
            size, hint = _read_piece(header.get("size"), header.get("hint"))
            self._lacks = size
            expected = self._expected.pop(hint, None)
            if expected is not None and (expected.size != size or expected.dropped or expected.filled):
                self._kept.drop(expected)
                expected = None
            self._comes = expected or self._kept.begin(self._whose, size, hint)
        elif header["type"] == "have":
            if self._task is not None:
                raise LineError("a question came before the answer to the last one")
            asked = _read_question(header.get("pieces"))
            self._forget()
            self._task = asyncio.get_running_loop().create_task(self._answer(asked))
        else:
            piece = self._promised.pop(str(header.get("digest")), None)
            if piece is None:
                raise LineError("the client names a piece that it was not promised")
            self._use(piece)
            self._queue.append([piece, 0])
            self.go_on()

    async def _answer(self, asked: list[tuple[str, int, str]]) -> None:
        for digest, size, hint in sorted(asked):  # in one order, or two lines could wait for each other
            if digest in self._promised or hint in self._expected:
                continue
            piece, expected = await self._kept.ask(self._whose, size, hint, digest)
            if piece is not None:
                self._promised[digest] = piece
            elif expected is not None:
                self._expected[hint] = expected
        self._task = None
        self._say({"type": "has", "kept": list(self._promised)})

    def pass_on(self, data: Any) -> None:
        """Pass bytes of the client on, or let them wait behind a piece.

        Raises:
            LineError: they are of a piece, and more than it lacks.
        """
        if self._lacks:
            self._add(data)
        if self._queue:
            self._queue.append(data)
            self.behind_bytes += len(data)
        else:
            self._ends.write(data)

    def _add(self, data: Any) -> None:
        if len(data) > self._lacks:
            raise LineError("more bytes came than the piece has")
        self._lacks -= len(data)
        piece = self._comes
        if piece is None:
            return
        if piece.dropped:
            self._comes = None
            return
        piece.add(data)
        if not self._lacks:
            self._kept.finish(piece)
            self._use(piece)
            self._comes = None

    def _use(self, piece: Piece) -> None:
        if piece not in self._used:
            self._used = {one for one in self._used if not one.dropped} | {piece}
            piece.lines += 1

    # --- what is passed on -------------------------------------------------------------------------------------------

    def go_on(self) -> None:
        """Pass on what waits, as far as it is taken at once."""
        queue, left = self._queue, AT_A_TIME
        if not queue:
            return
        while queue and not self._ends.waiting_bytes:
            if not left:
                asyncio.get_running_loop().call_soon(self.go_on)
                return
            left -= 1
            first = queue[0]
            if type(first) is not list:
                queue.popleft()
                self.behind_bytes -= len(first)
                self._ends.write(first)
                continue
            piece, place = first
            if place == len(piece.parts):
                queue.popleft()
                self._kept.release(piece)
                continue
            first[1] = place + 1
            self._ends.write(piece.parts[place])
        if not queue:
            self._passed()

    # --- the end -----------------------------------------------------------------------------------------------------

    def _forget(self) -> None:
        """Let go of what was promised and not used, and of what was to come and did not."""
        while self._promised:
            self._kept.release(self._promised.popitem()[1])
        while self._expected:
            self._kept.drop(self._expected.popitem()[1])

    def close(self) -> None:
        """Let go of everything."""
        if self._task is not None:
            self._task.cancel()
            self._task = None
        self._forget()
        self._kept.leave(self._used)
        self._used.clear()
        if self._comes is not None:
            self._kept.drop(self._comes)
            self._comes = None
        while self._queue:
            first = self._queue.popleft()
            if type(first) is list:
                self._kept.release(first[0])
        self._lacks = self.behind_bytes = 0


def _read_piece(size: object, hint: object) -> tuple[int, str]:
    if type(size) is not int or size < 1 or not isinstance(hint, str) or not _HINT.fullmatch(hint):
        raise LineError("a piece has a size and a hint")
    return size, hint


def _read_question(pieces: object) -> list[tuple[str, int, str]]:
    if not isinstance(pieces, list) or not 0 < len(pieces) <= MOST_NAMED:
        raise LineError(f"a question is about 1 to {MOST_NAMED} pieces")
    found = []
    for one in pieces:
        if not isinstance(one, list) or len(one) != 3 or not isinstance(one[0], str) or not _DIGEST.fullmatch(one[0]):
            raise LineError("a question names digest, size and hint of each piece")
        found.append((one[0], *_read_piece(one[1], one[2])))
    return found
