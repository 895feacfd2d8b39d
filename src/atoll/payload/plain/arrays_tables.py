"""NumPy arrays and scalars, and Arrow tables, as plain data; `encode` and `decode` hand them over.

    a DTYPE ORDER NDIM DIMENSION ... PLACE    an array; DTYPE is text such as `<f8`, ORDER `C` or `F`, PLACE
                                              `B` for the next buffer or `b` LENGTH and the bytes
    n the same                                a scalar: the only item of an array without dimensions
    A                                         a table: the next buffer, in Arrow's stream format

Neither library is imported for values that do not need it.

NumPy trusts the memory of some types: a boolean that is neither 0 nor 1, or a character beyond Unicode, leads its
loops out of bounds. The decoder checks these items.

Arrow's reader is written for untrusted data, with exceptions that are checked here, message by message. Extension
types run the code that is registered for their name. Compressed buffers can claim any size. Dictionaries that grow
from batch to batch are copied for each. None of them is accepted, and extension types are not sent either. A table
is validated in full before it is used, as Arrow's documentation asks.
"""

from __future__ import annotations

import math
import re
import struct
import sys
from typing import Any

from atoll.payload.plain.format import PlainDataError, Reader, Writer, leb
from atoll.wire.frames import Rope

MAX_DIMENSIONS = 32
"""NumPy 1's limit, which every version can read."""
_INLINE_BYTES = 2048
_DTYPE = re.compile(
    r"[<>|](?:b1|[iu][1248]|f(?:2|4|8|12|16)|c(?:8|16|24|32)|[SU][1-9][0-9]{0,8}|[mM]8(?:\[[0-9]{0,9}"
    r"(?:Y|M|W|D|h|m|s|ms|us|ns|ps|fs|as)\])?)"
)

OLDEST = (15, 0)
"""Earlier releases unpickle parts of a schema (CVE-2023-47248)."""
_EXTENSION = b"ARROW:extension"
# <format/Message.fbs>, <format/Schema.fbs> of Arrow: fields by their place in the table
_MESSAGE_HEADER_TYPE, _MESSAGE_HEADER = 1, 2
_SCHEMA, _DICTIONARY, _BATCH = 1, 2, 3
_DICTIONARY_DATA, _DICTIONARY_IS_DELTA, _BATCH_COMPRESSION = 1, 2, 3


# --- NumPy -----------------------------------------------------------------------------------------------------------


def is_array(value: Any) -> bool:
    """Return whether `value` is a NumPy array or scalar, of NumPy's own types."""
    numpy = sys.modules.get("numpy")
    if numpy is None or not hasattr(numpy, "generic"):  # while it is being imported
        return False
    return type(value) is numpy.ndarray or (isinstance(value, numpy.generic) and type(value).__module__ == "numpy")


def encode_array(writer: Writer, value: Any) -> None:
    """Add an array or a scalar.

    Raises:
        NotPlainError: its type is not plain.
    """
    import numpy as np

    scalar = type(value) is not np.ndarray
    data = np.asarray(value)
    if data.dtype.hasobject or not _DTYPE.fullmatch(data.dtype.str):
        what = "scalar" if scalar else "array"
        raise writer.refuse(f"a NumPy {what} of type `{data.dtype!s:.200}`")
    if data.ndim > MAX_DIMENSIONS:
        raise writer.refuse(f"a NumPy array of {data.ndim} dimensions")
    order = b"F" if data.flags.f_contiguous and not data.flags.c_contiguous else b"C"
    # A view of its bytes, without a copy where they lie in order; `memoryview` itself does not know `datetime64`.
    flat = np.ascontiguousarray(data.T if order == b"F" else data).reshape(-1).view(np.uint8)
    name = data.dtype.str.encode()
    head = (b"n" if scalar else b"a") + leb(len(name)) + name + order + leb(data.ndim)
    writer.pieces.append(head + b"".join(map(leb, data.shape)))
    if flat.nbytes < _INLINE_BYTES:
        writer.pieces += (b"b" + leb(flat.nbytes), flat.tobytes())
    else:
        writer.pieces.append(b"B")
        writer.buffers.append(flat.data)


def decode_array(reader: Reader) -> Any:
    """Return the array that comes next; it owns or alone uses its memory, and is writable."""
    reader.charge(200)
    name = str(reader.take(reader.number()), "ascii")
    order = bytes(reader.take(1))
    dimensions = reader.number()
    if not _DTYPE.fullmatch(name) or order not in (b"C", b"F") or dimensions > MAX_DIMENSIONS:
        raise PlainDataError("an array has an unknown type or order")
    shape = [reader.number() for _ in range(dimensions)]
    place = bytes(reader.take(1))
    if place == b"B":
        data: Any = memoryview(reader.buffer()).cast("B")
        if data.readonly:
            data = bytearray(data)
    elif place == b"b":
        data = bytearray(reader.take(reader.number()))
        reader.charge(len(data))
    else:
        raise PlainDataError("an array has no data")
    import numpy as np

    try:
        dtype = np.dtype(name)
        if math.prod(shape) * dtype.itemsize != memoryview(data).nbytes:
            raise PlainDataError("an array's data does not fit its shape")
        found = np.ndarray(shape, dtype, data, order="F" if order == b"F" else "C")
    except (ValueError, TypeError, MemoryError) as error:
        raise PlainDataError(f"an array cannot be made: {error}") from error
    _check_items(found.dtype, data, np)
    return found


def decode_scalar(reader: Reader) -> Any:
    """Return the scalar that comes next."""
    found = decode_array(reader)
    if found.ndim:
        raise PlainDataError("a scalar has dimensions")
    return found[()]


def _check_items(dtype: Any, data: Any, np: Any) -> None:
    if dtype.kind == "b" and np.frombuffer(data, np.uint8).max(initial=0) > 1:
        raise PlainDataError("an array has booleans that are neither true nor false")
    if dtype.kind == "U" and np.frombuffer(data, f"{dtype.str[0]}u4").max(initial=0) > sys.maxunicode:
        raise PlainDataError("an array has characters that are not Unicode")


# --- Arrow -----------------------------------------------------------------------------------------------------------


def is_table(value: Any) -> bool:
    """Return whether `value` is an Arrow table."""
    arrow = sys.modules.get("pyarrow")
    return arrow is not None and type(value) is getattr(arrow, "Table", None)


def encode_table(writer: Writer, table: Any) -> None:
    """Add a table; its memory is not copied.

    Raises:
        NotPlainError: it has columns of types that run code when they are read.
    """
    import pyarrow as pa

    if _EXTENSION in table.schema.serialize().to_pybytes():
        raise writer.refuse("an Arrow table with an extension type")
    parts: list[Any] = []
    with pa.PythonFile(_Sink(parts), mode="w") as sink, pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    writer.pieces.append(b"A")
    writer.buffers.append(Rope(parts))


class _Sink:
    """A file that keeps the written pieces, without copies."""

    closed = False

    def __init__(self, parts: list[Any]) -> None:
        self._parts = parts
        self._position = 0

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        self._parts.append(data)
        self._position += size
        return size

    def tell(self) -> int:
        return self._position

    def writable(self) -> bool:
        return True

    def flush(self) -> None: ...

    def close(self) -> None: ...


def decode_table(reader: Reader) -> Any:
    """Return the table that comes next, which uses its buffer's memory."""
    data = reader.buffer()
    import pyarrow as pa

    if tuple(int(part) for part in pa.__version__.split(".")[:2] if part.isdigit()) < OLDEST:
        raise ModuleNotFoundError(f"`pyarrow` {pa.__version__} is too old to read a table safely", name="pyarrow>=15")
    source = pa.py_buffer(data)
    try:
        for message in pa.ipc.MessageReader.open_stream(source):
            reader.charge(32 * message.metadata.size)
            _check_message(message)
        with pa.ipc.open_stream(source) as stream:
            table = stream.read_all()
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
