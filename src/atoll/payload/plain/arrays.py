"""NumPy arrays and scalars as plain data: a type from a fixed list, a shape, and bytes.

    a DTYPE ORDER NDIM DIMENSION ... PLACE    an array; DTYPE is text such as `<f8`, ORDER `C` or `F`, PLACE
                                              `B` for the next buffer or `b` LENGTH and the bytes
    n the same                                a scalar: the only item of an array without dimensions

NumPy is not imported by who has no array. It trusts the memory of some types: a boolean that is neither 0 nor 1, or a
character beyond Unicode, leads its loops out of bounds. So these are looked at.
"""

from __future__ import annotations

import math
import re
import sys
from typing import TYPE_CHECKING, Any

from atoll.payload.plain.encode import PlainDataError, leb

if TYPE_CHECKING:
    from atoll.payload.plain.decode import Decoder
    from atoll.payload.plain.encode import Encoder

MAX_DIMENSIONS = 32
"""NumPy 1's limit, which every version can read."""
_INLINE_BYTES = 2048
_DTYPE = re.compile(
    r"[<>|](?:b1|[iu][1248]|f(?:2|4|8|12|16)|c(?:8|16|24|32)|[SU][1-9][0-9]{0,8}|[mM]8(?:\[[0-9]{0,9}"
    r"(?:Y|M|W|D|h|m|s|ms|us|ns|ps|fs|as)\])?)"
)


def is_array(value: Any) -> bool:
    """Whether `value` is a NumPy array or scalar, of NumPy's own types."""
    numpy = sys.modules.get("numpy")
    if numpy is None or not hasattr(numpy, "generic"):  # while it is being imported
        return False
    return type(value) is numpy.ndarray or (isinstance(value, numpy.generic) and type(value).__module__ == "numpy")


def encode(encoder: Encoder, value: Any) -> None:
    """Add an array or a scalar.

    Raises:
        NotPlainError: its type is not plain.
    """
    import numpy as np

    scalar = type(value) is not np.ndarray
    data = np.asarray(value)
    if data.dtype.hasobject or not _DTYPE.fullmatch(data.dtype.str):
        what = "scalar" if scalar else "array"
        raise encoder.refuse(f"a NumPy {what} of type `{data.dtype!s:.200}`")
    if data.ndim > MAX_DIMENSIONS:
        raise encoder.refuse(f"a NumPy array of {data.ndim} dimensions")
    order = b"F" if data.flags.f_contiguous and not data.flags.c_contiguous else b"C"
    # A view of its bytes, without a copy where they lie in order; `memoryview` itself does not know `datetime64`.
    flat = np.ascontiguousarray(data.T if order == b"F" else data).reshape(-1).view(np.uint8)
    name = data.dtype.str.encode()
    head = (b"n" if scalar else b"a") + leb(len(name)) + name + order + leb(data.ndim)
    encoder.pieces.append(head + b"".join(map(leb, data.shape)))
    if flat.nbytes < _INLINE_BYTES:
        encoder.pieces += (b"b" + leb(flat.nbytes), flat.tobytes())
    else:
        encoder.pieces.append(b"B")
        encoder.buffers.append(flat.data)


def decode(decoder: Decoder) -> Any:
    """Return the array that comes next; it owns or alone uses its memory, and is writable."""
    decoder.charge(200)
    name = str(decoder.take(decoder.number()), "ascii")
    order = bytes(decoder.take(1))
    dimensions = decoder.number()
    if not _DTYPE.fullmatch(name) or order not in (b"C", b"F") or dimensions > MAX_DIMENSIONS:
        raise PlainDataError("an array has an unknown type or order")
    shape = [decoder.number() for _ in range(dimensions)]
    place = bytes(decoder.take(1))
    if place == b"B":
        data: Any = memoryview(decoder.buffer()).cast("B")
        if data.readonly:
            data = bytearray(data)
    elif place == b"b":
        data = bytearray(decoder.take(decoder.number()))
        decoder.charge(len(data))
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


def decode_scalar(decoder: Decoder) -> Any:
    """Return the scalar that comes next."""
    found = decode(decoder)
    if found.ndim:
        raise PlainDataError("a scalar has dimensions")
    return found[()]


def _check_items(dtype: Any, data: Any, np: Any) -> None:
    if dtype.kind == "b" and np.frombuffer(data, np.uint8).max(initial=0) > 1:
        raise PlainDataError("an array has booleans that are neither true nor false")
    if dtype.kind == "U" and np.frombuffer(data, f"{dtype.str[0]}u4").max(initial=0) > sys.maxunicode:
        raise PlainDataError("an array has characters that are not Unicode")
