"""The format of plain data, shared by its encoder, its decoder and the modules for arrays and tables.

The first buffer holds the structure: one tag byte for each value, then its contents, integers little-endian. Large
bytes, arrays and tables are buffers of their own, in order:

    N T F                    None, True, False
    i LENGTH bytes           int, two's complement
    d f64   c f64 f64        float, complex
    s LENGTH utf-8           str
    b LENGTH bytes, B        bytes; B: the next buffer
    l t e f  COUNT items     list, tuple, set, frozenset
    m COUNT key value ...    dict
    q COUNT i64 ...          list of ints that fit;  Q: tuple
    x COUNT f64 ...          list of floats;  X: tuple
    D H C I                  date, datetime, time, timedelta
    a, n                     NumPy array and scalar (`arrays_tables`)
    A                        Arrow table (`arrays_tables`)

LENGTH and COUNT are u64 in LEB128. Types are exact: a subclass would come back as something else, and is refused.
A value that is referred to twice comes twice.
"""

from __future__ import annotations

import struct
import sys
from typing import Any, Protocol

MAX_DEPTH = 200
"""Containers within containers."""
FLOAT = struct.Struct("<d")
COMPLEX = struct.Struct("<dd")
DATE = struct.Struct("<HBB")
TIME = struct.Struct("<BBBIBB")
DELTA = struct.Struct("<iiI")
SWAPPED = sys.byteorder != "little"
_PATH_CHARACTERS = 120
"""A longer path is shown without its middle."""


class PlainDataError(ValueError):
    """The bytes are not plain data."""


class NotPlainError(TypeError):
    """A value is not plain data.

    Args:
        path: the value's place, as an expression on the whole value, which is `it`.
        reason: its type, or another obstacle.
    """

    def __init__(self, path: str, reason: str) -> None:
        shown = path if len(path) <= _PATH_CHARACTERS else f"{path[:40]} ... {path[-40:]}"
        super().__init__(f"`{shown}` is {reason}")
        self.path = path
        self.reason = reason


class Writer(Protocol):
    """The encoder, as the modules for arrays and tables use it."""

    pieces: list[bytes]
    buffers: list[Any]

    def refuse(self, reason: str) -> NotPlainError:
        """Return the error for the current value."""
        ...


class Reader(Protocol):
    """The decoder, as the modules for arrays and tables use it."""

    def charge(self, size: int) -> None:
        """Count memory that is about to be used."""
        ...

    def take(self, size: int) -> memoryview:
        """Return the next `size` bytes of the structure."""
        ...

    def number(self) -> int:
        """Return a LEB128 integer below 2 ** 63."""
        ...

    def buffer(self) -> Any:
        """Return the next buffer."""
        ...


def leb(value: int) -> bytes:
    """Return an unsigned integer of any size in LEB128."""
    pieces = bytearray()
    while value >= 0x80:
        pieces.append(value & 0x7F | 0x80)
        value >>= 7
    pieces.append(value)
    return bytes(pieces)
