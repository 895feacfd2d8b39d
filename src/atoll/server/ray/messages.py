"""Messages between the server and its driver process: JSON objects, one a line.

From the server:

- `{"do": "hold", "holders": {NAME: {"millicores", "memory_bytes", "gpus", "pinned", "preferred", "labels", "besides"}}}`:
  all holders that there shall be; the driver asks for those that are missing and gives the others back
- `{"do": "start", "ask", "node", "name", "home", "env", "given", "join", "argv"}`: have a machine's actor run these programs
- `{"do": "stop", "ask", "node"}`: end it

From the driver:

- `{"event": "ready", "local", "holders": {NAME: FACTS or null}, "machines": {NODE: REPORT}}`: it is connected; `local` is
  the Ray node of its own machine, `null` stands for a holder that waits
- `{"event": "cluster", "nodes", "types", "autoscaled", "others_wait"}`: facts that have changed
- `{"event": "held", "holder", "facts"}`, `{"event": "over", "holder", "why"}`
- `{"event": "machine", "node", "report"}`: `report` is of `machine.Machine`, null when its actor has ended
- `{"event": "answer", "ask", "error"}`: the end of what was asked; `error` is data of an `AtollError`, or null
- `{"event": "failed", "error"}`: it cannot connect, and ends
"""

from __future__ import annotations

import json
from typing import Any

MOST_BYTES = 64 << 20
"""The longest line; 10,000 holders take 3 MB."""


def line(message: dict[str, Any]) -> bytes:
    """Return a message as a line."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def parse(data: bytes) -> dict[str, Any]:
    """Return the message of a line.

    Raises:
        ValueError: it is none.
    """
    found = json.loads(data)
    if not isinstance(found, dict):
        raise ValueError("a message is an object")
    return found
