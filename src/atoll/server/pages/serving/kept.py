"""Answers that are no text, kept in memory for as long as a page needs to show them: images, sound, video, and other files.

Nobody but who has called gets one. Media have a type of a short list, and all else is a file to save, so that no browser runs any.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from secrets import token_urlsafe

from atoll.server.pages import guard

MOST_BYTES, MOST_OF_ALL_BYTES = 16 << 20, 96 << 20
"""Bytes of an answer that is kept, and of all together, those that are on their way included."""
MOST_OF_USER, MOST_OF_ALL = 4, 32
KEPT_SECONDS = 300.0
MEDIA = {
    **dict.fromkeys(("image/png", "image/jpeg", "image/gif", "image/webp", "image/avif"), "img"),
    **dict.fromkeys(("audio/mpeg", "audio/ogg", "audio/wav", "audio/x-wav", "audio/flac", "audio/webm"), "audio"),
    **dict.fromkeys(("video/mp4", "video/webm", "video/ogg"), "video"),
}
"""Elements that show a type."""


@dataclass(frozen=True)
class Answer:
    """An answer that is kept.

    Args:
        user: who has called.
        kind: its type; empty for a file to save.
    """

    user: str
    kind: str
    content: bytes
    until: float

    @property
    def headers(self) -> dict[str, str]:
        """The headers with which nothing in it can act on the page."""
        own = {"Content-Security-Policy": "default-src 'none'; sandbox", "Content-Type": self.kind}
        if not self.kind:
            own |= {"Content-Type": "application/octet-stream", "Content-Disposition": 'attachment; filename="answer"'}
        return {**guard.HEADERS, **own}


def element_of(kind: str) -> str:
    """Return the element that shows answers of a type; empty for none."""
    return MEDIA.get(kind.partition(";")[0].strip().lower(), "")


class Collected:
    """An answer on its way, as far as there is room for it."""

    def __init__(self, answers: Answers) -> None:
        self._answers, self._full = answers, False
        self.content = bytearray()

    @property
    def size(self) -> int:
        """Bytes that are there; 0 where there was no room for all."""
        return len(self.content)

    def add(self, piece: bytes) -> None:
        """Add a piece, or forget the answer where it is too large."""
        if self._full:
            return
        if len(self.content) + len(piece) > MOST_BYTES or not self._answers.has_room(len(piece)):
            self.drop()
            self._full = True
            return
        self.content += piece
        self._answers.collected += len(piece)

    def drop(self) -> None:
        """Forget it."""
        self._answers.collected -= len(self.content)
        self.content = bytearray()


class Answers:
    """The answers that are kept."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._known: OrderedDict[str, Answer] = OrderedDict()
        self._now = now
        self.collected = 0
        """Bytes of answers that are on their way."""

    def has_room(self, size: int) -> bool:
        """Return whether there is room for so many more bytes; the oldest answers go for it."""
        while self._known and self._bytes() + size > MOST_OF_ALL_BYTES:
            self._known.popitem(last=False)
        return self._bytes() + size <= MOST_OF_ALL_BYTES

    def _bytes(self) -> int:
        return self.collected + sum(len(one.content) for one in self._known.values())

    def put(self, user: str, kind: str, collected: Collected) -> str:
        """Keep an answer; return its name. The oldest go where there are too many."""
        content = bytes(collected.content)
        collected.drop()
        shown = kind.partition(";")[0].strip().lower()
        name = token_urlsafe(18)
        self._known[name] = Answer(user, shown if shown in MEDIA else "", content, self._now() + KEPT_SECONDS)
        mine = [key for key, one in self._known.items() if one.user == user]
        for key in mine[:-MOST_OF_USER]:
            del self._known[key]
        self.look()
        while len(self._known) > MOST_OF_ALL:
            self._known.popitem(last=False)
        return name

    def get(self, user: str, name: str) -> Answer | None:
        """Return an answer of a user; None for none."""
        self.look()
        found = self._known.get(name)
        return found if found is not None and found.user == user else None

    def look(self) -> None:
        """Forget those that are old."""
        now = self._now()
        for name in [name for name, one in self._known.items() if one.until <= now]:
            del self._known[name]
