"""The caller's end of a stream to a port behind a server: its ends, by messages that come together or apart."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from atoll.host.remote import dialled


class Line:
    """A line that brings two bytes, and then both ends, in so many steps."""

    steps = 1

    def __init__(self, _server: object, _opening: object, take: Callable[[Any], None]) -> None:
        self._take = take
        self._step = 0
        self.over = self.whole = False
        self.closed = threading.Event()

    def header(self, _timeout: float | None) -> dict[str, Any]:
        return {"type": "dialled"}

    def pump(self, _timeout: float | None) -> bool:
        self._step += 1
        if self._step == 1:
            self._take(b"ab")
        if self._step >= self.steps:
            self.whole = True
        if self._step >= max(self.steps, 2) or self.steps == 1:
            self.over = True
        return True

    def offer(self, _data: bytes) -> None:
        pass

    def tell(self, _message: object) -> None:
        pass

    def withdraw(self, _timeout: float | None) -> None:
        pass

    def close(self) -> None:
        self.closed.set()


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_an_end_that_comes_with_the_lines_end_is_one(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """All bytes are read, and the end behind them: no reset."""
    monkeypatch.setattr(dialled, "LineClient", Line)
    monkeypatch.setattr(Line, "steps", steps)
    before = set(threading.enumerate())
    with dialled.dial(object(), "w1", 80) as stream:  # type: ignore[arg-type]  # the line above needs no server
        stream.settimeout(60)
        found = b""
        while piece := stream.recv(10):
            found += piece
    assert found == b"ab"
    for thread in set(threading.enumerate()) - before:
        thread.join(60)
