"""The beginning of a connection for a line, from the server to the node: whose line it is, and how far it has come.

`open` has the session's `id`, its `principal`, the state of the line (`counts`, sizes of `kept` pieces), the client's
first `header`, and the sizes of `early` pieces of data; the bytes of both follow. `resume` has the `session`, and the
`count` of the client; the node answers `taken` with its `count`, `gone`, or `ending` (later `gone`). Bytes of the WebSocket come next, both ways.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from atoll.server.cluster.links.messages import MessageError, principal_data, read_principal, write
from atoll.server.principal import Principal
from atoll.wire.line import WINDOW
from atoll.wire.websocket import PIECE

MOST_BLOB = 4 * WINDOW
"""The most bytes behind the message."""


@dataclass(frozen=True)
class Opening:
    """A line as far as the server has read it.

    Args:
        id: of the session, a secret.
        counts, kept: as `Line.state` gives them.
        header: the client's first one.
        early: data that came behind it.
        attached: the client's connection goes on here; otherwise it comes back.
    """

    id: str
    principal: Principal
    counts: list[int]
    kept: list[tuple[int, Any]]
    header: dict[str, Any]
    early: list[Any] = field(default_factory=list)
    attached: bool = True


def write_opening(opening: Opening) -> list[Any]:
    """Return what to write for a line that begins."""
    message = {
        "type": "open",
        "id": opening.id,
        "principal": principal_data(opening.principal),
        "counts": opening.counts,
        "kept": [[channel, len(piece)] for channel, piece in opening.kept],
        "header": opening.header,
        "early": [len(piece) for piece in opening.early],
        "attached": opening.attached,
    }
    return [write(message), *(piece for _, piece in opening.kept), *opening.early]


def blob_size(message: dict[str, Any]) -> int:
    """Return how many bytes belong to an `open`, behind it.

    Raises:
        MessageError: it is malformed.
    """
    try:
        sizes = [*(size for _, size in message["kept"]), *message["early"]]
    except (KeyError, TypeError, ValueError) as error:
        raise MessageError("an opening without sizes") from error
    if not all(type(size) is int and 0 < size <= MOST_BLOB for size in sizes) or sum(sizes) > MOST_BLOB:
        raise MessageError("an opening with sizes out of bounds")
    return sum(sizes)


def read_opening(message: dict[str, Any], blob: bytes) -> Opening:
    """Return the line of an `open`.

    Raises:
        MessageError: it is malformed.
    """
    at = 0
    pieces = []
    view = memoryview(blob)
    sizes = [*(size for _, size in message["kept"]), *message["early"]]
    for size in sizes:
        pieces.append(bytes(view[at : at + size]))
        at += size
    count = len(message["kept"])
    kept = [(channel, piece) for (channel, _), piece in zip(message["kept"], pieces[:count], strict=True)]
    early = [part[at : at + PIECE] for part in pieces[count:] for at in range(0, len(part), PIECE)]
    try:
        principal, counts, header = read_principal(message["principal"]), message["counts"], message["header"]
        return Opening(message["id"], principal, counts, kept, header, early, message["attached"])
    except (KeyError, TypeError) as error:
        raise MessageError("an opening is not whole") from error
