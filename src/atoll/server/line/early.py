"""Bytes of a client that nobody can take yet: those beside the opening message, and data before the worker is there."""

from __future__ import annotations

import asyncio
from typing import Any

from atoll import errors
from atoll.server.line import sender
from atoll.server.line.beside import Spool
from atoll.server.line.shares import Bytes
from atoll.server.line.terms import LEAST_RATE, OPENING_SECONDS
from atoll.wire.websocket import LineError


class Early:
    """The early bytes of one session, which its user's share of the server's memory bounds.

    Args:
        shares: count the bytes.
        user: has sent them.
    """

    def __init__(self, shares: Bytes, user: str) -> None:
        self.pieces: list[Any] = []
        """Data for the worker."""
        self.size = 0
        self.spool: Spool | None = None
        self._shares, self._user = shares, user
        self._counted = 0
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self._gathered = 0
        self.until = self._began + OPENING_SECONDS
        """When the opening message, or the next of the bytes beside it, must be here."""

    def take(self, piece: Any) -> Spool | None:
        """Keep bytes; return the spool that is complete with them, if there is one.

        Raises:
            ResourcesUnavailable: they are too many for this user, or for all together.
            LineError: more came than were announced.
        """
        self._count(len(piece))
        if self.spool is None:
            self.keep(piece)
            return None
        now = self._loop.time()
        slowest = self._began + OPENING_SECONDS + self._counted / LEAST_RATE
        self.until = min(now + OPENING_SECONDS, slowest)
        if not self.spool.take(piece):
            return None
        spool, self.spool = self.spool, None
        return spool

    def gather(self, size: int) -> None:
        """Count the bytes of a text that has not come whole: as many as it has now.

        Raises:
            LineError: they are too many for this user, or for all together.
        """
        if size > self._gathered:
            try:
                self._count(size - self._gathered)
            except errors.ResourcesUnavailable as error:
                raise LineError("there is no room for the text") from error
        elif size < self._gathered:
            self._shares.give(self._user, self._gathered - size)
            self._counted -= self._gathered - size
        self._gathered = size

    def _count(self, size: int) -> None:
        if not self._shares.take(self._user, size):
            self.drop()
            raise errors.ResourcesUnavailable(
                "requests under way fill the memory that the server has for this user, or for all",
                hint="send less at a time, or put large values below `/data`",
            )
        self._counted += size

    def keep(self, piece: Any) -> None:
        """Keep data that is counted already, or was by another process."""
        sender.keep(self.pieces, piece)
        self.size += len(piece)

    def release(self) -> list[Any]:
        """Return the data, and keep it no longer."""
        pieces, self.pieces, self.size = self.pieces, [], 0
        if self._counted:
            self._shares.give(self._user, self._counted)
            self._counted = self._gathered = 0
        return pieces

    def drop(self) -> None:
        """Forget everything."""
        if self.spool is not None:
            self.spool.close()
            self.spool = None
        self.release()
