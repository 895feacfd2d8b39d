"""Calls over raw lines: the frames that the SDK sends, and the values that come back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from atoll import isolated
from atoll.sdk.call import Request
from atoll.wire.call_protocol import CallProtocol

from .process import Server
from .raw_line import RawLine

KEEP_ALIVE_SECONDS = 600.0
"""Seconds that a worker without a call stays: longer than restarts of a server take on a busy machine."""


def request_of(function: Callable[..., Any], *args: Any, **options: Any) -> Request:
    """Return the request of a call, as the SDK makes it."""
    made: Any = isolated(**{"keep_alive": KEEP_ALIVE_SECONDS, **options})(function)
    request: Request = made._prepare().request(args, {})
    return request


class Leased:
    """A lease over a raw line, and its calls one after the other."""

    def __init__(self, server: Server, function: Callable[..., Any], *args: Any, **options: Any) -> None:
        self.sent = args
        self.request = request_of(function, *args, **options)
        opening = {
            "type": "lease",
            "spec": self.request.spec.to_data(),
            "client": "test",
            "for": {"call": self.request.call.id, "at": self.request.call.at, "parent": ""},
        }
        self.line = RawLine(server, opening)
        granted = self.line.header("granted", "failed", "over")
        assert granted["type"] == "granted", granted
        self.worker = granted["worker"]
        self.protocol = CallProtocol(granted["epoch"], fresh=granted["fresh"])

    def start(self) -> None:
        """Send the call."""
        for header, buffers in self.protocol.start(self.request.call, KEEP_ALIVE_SECONDS, self.request.bundle, ""):
            self.line.send_frames(header, list(buffers))

    def answer(self) -> Any:
        """Wait for the answer, and return its value."""
        from atoll.payload.functions import loads_result

        while True:
            message = self.line.message()
            step, frames = self.protocol.receive(message)
            if step == "send":
                for header, buffers in frames:
                    self.line.send_frames(header, list(buffers))
            elif step in {"answer", "item"}:
                assert message.type != "error", message.header
                return loads_result(message.buffers[0], message.buffers[1:])
            else:
                assert step == "wait", step

    def call(self) -> Any:
        """Send the call and return the value."""
        self.start()
        return self.answer()
