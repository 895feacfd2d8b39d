"""Names for the moments at which the state of a sync changes, so that a test can stop or kill it at exactly one.

`reached` costs one comparison unless this process was armed. An armed process says each step on a socket and goes on
when the other end has answered with a byte, or has gone. Nothing outside the tests arms one.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import socket

_report: Callable[[str, dict[str, Any]], None] | None = None


def reached(name: str, **fields: Any) -> None:
    """Say that something has just been done: `name` is what, in the past tense, `fields` tell which."""
    if _report is not None:
        _report(name, fields)


def arm(connection: socket.socket | Callable[[str, dict[str, Any]], None] | None) -> None:
    """Have `reached` report from now on.

    Args:
        connection: each step is a line of JSON, a list of name and fields, which is answered by one byte; or what is
            called instead, with both; None disarms.
    """
    global _report
    if connection is None or callable(connection):
        _report = connection
        return
    socket = connection

    def report(name: str, fields: dict[str, Any]) -> None:
        try:
            socket.sendall(json.dumps([name, fields]).encode("ascii") + b"\n")
            socket.recv(1)
        except OSError:
            arm(None)

    _report = report
