"""The beginning of a session whose first header was read elsewhere, before it had a node."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from atoll.server.line.session import Session


def begin(session: Session, header: dict[str, Any], pieces: Iterable[Any], *, closed: bool) -> None:
    """Have a session take what a client has sent so far.

    Args:
        header: the first one.
        pieces: data behind it.
        closed: the client sends no more data.
    """
    session.take_header(header)
    for piece in pieces:
        session.take_data(piece)
    if closed:
        session.take_header({"type": "closed"})
