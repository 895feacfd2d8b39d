"""Arrow tables as plain data: one buffer with Arrow's own stream format (`A`, then the next buffer).

Arrow's reader is written for data that is not trusted, with exceptions that are ours to mend by looking at each message
before it is read. Extension types run the code that is registered for their name. Compressed buffers can claim any
size. Dictionaries that grow from batch to batch are copied for each. None of them is accepted, and the first is not
sent either. What has been read is validated in full before anybody uses it, as Arrow's documentation asks.
"""

from __future__ import annotations

import struct
import sys
from typing import TYPE_CHECKING, Any

from atoll.payload.plain.encode import PlainDataError

if TYPE_CHECKING:
    from atoll.payload.plain.decode import Decoder
    from atoll.payload.plain.encode import Encoder

OLDEST = (15, 0)
"""Earlier releases unpickle what a schema holds (CVE-2023-47248)."""
_EXTENSION = b"ARROW:extension"
# <format/Message.fbs>, <format/Schema.fbs> of Arrow: fields by their place in the table
_MESSAGE_HEADER_TYPE, _MESSAGE_HEADER = 1, 2
_SCHEMA, _DICTIONARY, _BATCH = 1, 2, 3
_DICTIONARY_DATA, _DICTIONARY_IS_DELTA, _BATCH_COMPRESSION = 1, 2, 3


def is_table(value: Any) -> bool:
    """Whether `value` is an Arrow table."""
    arrow = sys.modules.get("pyarrow")
    return arrow is not None and type(value) is getattr(arrow, "Table", None)


def encode(encoder: Encoder, table: Any) -> None:
    """Add a table; its memory is not copied.

    Raises:
        NotPlainError: it has columns of types that run code when they are read.
    """
    import pyarrow as pa

    from atoll.wire.frames import Rope

    if _EXTENSION in table.schema.serialize().to_pybytes():
        raise encoder.refuse("an Arrow table with an extension type")
    parts: list[Any] = []
    with pa.PythonFile(_Sink(parts), mode="w") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    encoder.pieces.append(b"A")
    encoder.buffers.append(Rope(parts))


class _Sink:
    """A file that keeps what is written to it."""

    closed = False

    def __init__(self, parts: list[Any]) -> None:
        self._parts = parts
        self._place = 0

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        self._parts.append(data)
        self._place += size
        return size

    def tell(self) -> int:
        return self._place

    def writable(self) -> bool:
        return True

    def flush(self) -> None: ...

    def close(self) -> None: ...


def decode(decoder: Decoder) -> Any:
    """Return the table that comes next, which uses its buffer's memory."""
    data = decoder.buffer()
    import pyarrow as pa

    if tuple(int(part) for part in pa.__version__.split(".")[:2] if part.isdigit()) < OLDEST:
        raise ModuleNotFoundError(f"`pyarrow` {pa.__version__} is too old to read a table safely", name="pyarrow>=15")
    source = pa.py_buffer(data)
    try:
        for message in pa.ipc.MessageReader.open_stream(source):
            decoder.charge(32 * message.metadata.size)
            _check_message(message)
        with pa.ipc.open_stream(source) as reader:
            table = reader.read_all()
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError, struct.error, IndexError, StopIteration) as error:
        raise PlainDataError(f"an Arrow table cannot be read: {error!s:.200}") from error
    return table


def _check_message(message: Any) -> None:
    """Refuse a message that names an extension type or is compressed."""
    data = message.metadata.to_pybytes()
    if _EXTENSION in data:
        raise PlainDataError("an Arrow table has an extension type")
    (root,) = struct.unpack_from("<I", data, 0)
    kind_at, header_at = _field(data, root, _MESSAGE_HEADER_TYPE), _field(data, root, _MESSAGE_HEADER)
    if not kind_at or not header_at:
        raise PlainDataError("an Arrow message has no header")
    kind, header = data[kind_at], _follow(data, header_at)
    if kind == _DICTIONARY:
        inner = _field(data, header, _DICTIONARY_DATA)
        if not inner or _field(data, header, _DICTIONARY_IS_DELTA):
            raise PlainDataError("an Arrow dictionary has no data, or is a part of one")
        header = _follow(data, inner)
    elif kind == _SCHEMA:
        return
    elif kind != _BATCH:
        raise PlainDataError("an Arrow message is neither schema nor batch")
    if _field(data, header, _BATCH_COMPRESSION):
        raise PlainDataError("an Arrow table is compressed")


def _field(data: bytes, table: int, number: int) -> int:
    """Return where a field of a flat buffer's table is; 0 when it is absent."""
    (back,) = struct.unpack_from("<i", data, table)
    vtable = table - back
    if vtable < 0:
        raise PlainDataError("an Arrow message is damaged")
    (size,) = struct.unpack_from("<H", data, vtable)
    place = 4 + 2 * number
    if place + 2 > size:
        return 0
    (offset,) = struct.unpack_from("<H", data, vtable + place)
    return table + offset if offset else 0


def _follow(data: bytes, place: int) -> int:
    (offset,) = struct.unpack_from("<I", data, place)
    return int(place + offset)
