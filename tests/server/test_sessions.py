"""Lines: WebSockets that are relayed to the node, with a real node, sandbox and worker behind them."""

from __future__ import annotations

import contextlib

from .functions import Leased
from .process import Server
from .raw_line import RawLine


def _add(a: int, b: int) -> int:
    print("adding", a, b)
    return a + b


def test_a_line_relays_a_lease(server: Server) -> None:
    """A call over a line gives its value, and its output comes before it."""
    leased = Leased(server, _add, 1, 2)
    with contextlib.closing(leased.line):
        assert leased.call() == 3
        assert leased.line.printed[1] == b"adding 1 2\n"
        assert leased.line.order.index("printed") < len(leased.line.order) - 1


def test_a_line_relays_a_request(server: Server) -> None:
    """A request over a line is answered, and then nothing more comes."""
    line = RawLine(server, {"type": "request", "name": "status", "arguments": {}})
    with contextlib.closing(line):
        assert line.header("answer")["value"]["workers"] is not None
        line.header("over")
