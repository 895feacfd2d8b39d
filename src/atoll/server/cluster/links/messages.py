"""Messages between a server and its nodes: JSON objects, one a line, on links and at the beginning of connections for lines.

A link carries, from the member to the server:

    hello       `facts`, `sessions` (rows of `id`, `user`, `key`), `versions`, `machine`: the same for all processes of one
                state directory until the machine starts anew
    load        `number`, `load`: a `NodeLoad`; the server answers with `beat`
    answer      `id`, and `value` or `error`, of an `ask`
    over        `session`: it has ended
    need        `id`, `name`, `arguments`: a request of the node's to the server, answered by `met`

and to the member:

    welcome     `server`: changes with each process of it; `name`; `notice`: a line for the node's operator, or empty
    beat        `number` of the `load` that it acknowledges
    dial        `count`: so many more connections are wanted
    ask         `id`, `principal` (None for the server itself), `name`, `arguments`
    unask       `id`: nobody waits for the answer
    end         `user`, `key`: of lines that end, since the key did
    met         `id`, and `value` or `error`

A connection for lines begins with `open` or `resume`, on which bytes of a client's WebSocket follow. See `preamble`.
"""

from __future__ import annotations

import json
from typing import Any, TypeVar

import msgspec

from atoll.server.cluster.contract import NodeFacts, NodeLoad
from atoll.server.principal import Principal

LINK_PATH, LINE_PATH = "/v1/nodes/link", "/v1/nodes/line"
PROTOCOL = "atoll-node.1"
MOST_BYTES = 64 << 20
"""The most of one message: answers about many calls, and the sessions of a node."""
MOST_NAMES = 1024
"""GPUs, labels and machine types of one node."""
T = TypeVar("T")
_encode = json.JSONEncoder(separators=(",", ":")).encode


class MessageError(Exception):
    """The other side sends something else than messages."""


class Messages:
    """The receiving half of a stream of messages."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        """Take bytes; return the messages that they complete.

        Raises:
            MessageError: they are none.
        """
        *lines, rest = data.split(b"\n")
        found = []
        for line in lines:
            whole = b"".join((*self._parts, line)) if self._parts else line
            self._parts, self._size = [], 0
            found.append(read(whole))
        if rest:
            self._parts.append(rest)
            self._size += len(rest)
            if self._size > MOST_BYTES:
                raise MessageError(f"a message has more than {MOST_BYTES} bytes")
        return found


def write(message: dict[str, Any]) -> bytes:
    """Return a message as bytes."""
    return _encode(message).encode() + b"\n"


def read(line: bytes) -> dict[str, Any]:
    """Return the message in a line.

    Raises:
        MessageError: there is none.
    """
    try:
        message = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise MessageError(f"no message: {error}") from error
    if not isinstance(message, dict) or not isinstance(message.get("type"), str):
        raise MessageError("a message is an object with a `type`")
    return message


def principal_data(principal: Principal) -> list[Any]:
    """Return a user as a message has one."""
    return [
        *(principal.user, principal.name, principal.key, principal.scope, principal.operator, principal.workers),
    ]


def read_principal(data: Any) -> Principal:
    """Return the user of a message.

    Raises:
        MessageError: it names none.
    """
    if not isinstance(data, list) or len(data) != 6:
        raise MessageError("a message names no user")
    return Principal(*data)


def read_facts(data: Any) -> NodeFacts:
    """Return the facts in a node's message.

    Raises:
        MessageError: they are none, or too large.
    """
    facts = _converted(data, NodeFacts)
    numbers = facts.millicores, facts.memory_bytes
    if max(len(facts.gpus), len(facts.labels)) > MOST_NAMES or not all(0 <= one < 1 << 60 for one in numbers):
        raise MessageError("the facts of a node are out of bounds")
    return facts


def read_load(data: Any) -> NodeLoad:
    """Return the load in a node's message.

    Raises:
        MessageError: it is none.
    """
    load = _converted(data, NodeLoad)
    if len(load.fits) > MOST_NAMES:
        raise MessageError("the load of a node is out of bounds")
    return load


def _converted(data: Any, kind: type[T]) -> T:
    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError as error:
        raise MessageError(str(error)) from error
