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

MOST_BYTES = 16 << 20
"""Bytes of an answer that is kept."""
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


class Answers:
    """The answers that are kept."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._known: OrderedDict[str, Answer] = OrderedDict()
        self._now = now

    def put(self, user: str, kind: str, content: bytes) -> str:
        """Keep an answer; return its name. The oldest go where there are too many."""
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
