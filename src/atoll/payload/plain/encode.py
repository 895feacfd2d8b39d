"""The encoder of plain data, for `results="data"`: values that the caller decodes without running code.

`format` describes the bytes, and `decode` reads them.
"""

from __future__ import annotations

import datetime as dt
from array import array
from collections.abc import Callable
from typing import Any

from atoll.payload.plain import arrays_tables
from atoll.payload.plain.format import COMPLEX, DATE, DELTA, FLOAT, MAX_DEPTH, SWAPPED, TIME, NotPlainError, leb

BUFFER_BYTES = 64 << 10
"""Bytes of this size are a buffer of their own."""
_PACKED_ITEMS = 8
"""Lists and tuples of at least so many numbers are packed."""


def dumps(value: Any) -> list[Any]:
    """Return the buffers that `loads` takes; large ones are views of memory that `value` owns.

    Raises:
        NotPlainError: a part of it is not plain data, or contains itself; the error names the part.
        RecursionError: the stack has no room for it.
    """
    encoder = Encoder()
    encoder.add(value)
    return [b"".join(encoder.pieces), *encoder.buffers]


class Encoder:
    """Collects the pieces of the structure, and the buffers."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.buffers: list[Any] = []
        self._above: dict[int, Any] = {}  # the containers that the current value is in
        self._steps: list[Any] = []  # where in them it is: an index, a key in a tuple, or text

    def refuse(self, reason: str) -> NotPlainError:
        """Return the error for the current value."""
        return NotPlainError("it" + "".join(map(_shown, self._steps)), reason)

    def add(self, value: Any) -> None:
        kind = type(value)
        add = _ENCODERS.get(kind)
        if add is not None:
            add(self, value)
            return
        if arrays_tables.is_array(value):
            arrays_tables.encode_array(self, value)
        elif arrays_tables.is_table(value):
            arrays_tables.encode_table(self, value)
        else:
            raise self.refuse(f"a `{kind.__module__}.{kind.__qualname__}`".replace("`builtins.", "`"))

    def _number(self, tag: bytes, value: int) -> None:
        self.pieces.append(tag + leb(value))

    def _int(self, value: int) -> None:
        data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
        self.pieces += (b"i" + leb(len(data)), data)

    def _str(self, value: str) -> None:
        data = value.encode("utf-8", "surrogatepass")
        self.pieces += (b"s" + leb(len(data)), data)

    def _bytes(self, value: bytes) -> None:
        if len(value) >= BUFFER_BYTES:
            self.pieces.append(b"B")
            self.buffers.append(value)
        else:
            self.pieces += (b"b" + leb(len(value)), value)

    def _sequence(self, value: Any) -> None:
        kind = type(value)
        if len(value) >= _PACKED_ITEMS and kind in _PACKED and self._packed(value, kind):
            return
        self._number(_CONTAINERS[kind], len(value))
        with _Inside(self, value):
            ordered = kind is list or kind is tuple
            for number, item in enumerate(value):
                self._steps[-1] = number if ordered else "'s item"
                self.add(item)

    def _packed(self, value: Any, kind: type) -> bool:
        types = set(map(type, value))
        floats = types == {float}
        if not floats and types != {int}:
            return False
        try:
            numbers = array("d" if floats else "q", value)
        except OverflowError:
            return False
        if SWAPPED:
            numbers.byteswap()
        self._number(_PACKED[kind][floats], len(value))
        self.pieces.append(numbers.tobytes())
        return True

    def _dict(self, value: dict[Any, Any]) -> None:
        self._number(b"m", len(value))
        with _Inside(self, value):
            for key, item in value.items():
                self._steps[-1] = "'s key"
                self.add(key)
                self._steps[-1] = (key,)
                self.add(item)

    def _date(self, value: dt.date) -> None:
        self.pieces.append(b"D" + DATE.pack(value.year, value.month, value.day))

    def _datetime(self, value: dt.datetime) -> None:
        self.pieces.append(b"H" + DATE.pack(value.year, value.month, value.day))
        self._clock(value)

    def _time(self, value: dt.time) -> None:
        self.pieces.append(b"C")
        self._clock(value)

    def _clock(self, value: dt.time | dt.datetime) -> None:
        zone = value.tzinfo
        if zone is not None and type(zone) is not dt.timezone:
            raise self.refuse(f"in the time zone `{zone!r:.100}`; plain data has fixed offsets from UTC only")
        parts = (value.hour, value.minute, value.second, value.microsecond, value.fold)
        self.pieces.append(TIME.pack(*parts, zone is not None))
        if zone is not None:
            offset, *name = zone.__getinitargs__()  # type: ignore[attr-defined]  # the offset, and a name if it has one
            self._timedelta(offset)
            self.add(name[0] if name else None)

    def _timedelta(self, value: dt.timedelta) -> None:
        self.pieces.append(b"I" + DELTA.pack(value.days, value.seconds, value.microseconds))


class _Inside:
    """While the items of a container are encoded."""

    def __init__(self, encoder: Encoder, container: Any) -> None:
        self._encoder = encoder
        self._container = container

    def __enter__(self) -> None:
        encoder = self._encoder
        if id(self._container) in encoder._above:
            raise encoder.refuse("a container that holds itself")
        if len(encoder._above) >= MAX_DEPTH:
            raise encoder.refuse(f"deeper than {MAX_DEPTH} containers")
        encoder._above[id(self._container)] = self._container
        encoder._steps.append("")

    def __exit__(self, *_: object) -> None:
        self._encoder._above.popitem()
        self._encoder._steps.pop()


def _shown(step: Any) -> str:
    if type(step) is str:
        return step
    if type(step) is int:
        return f"[{step}]"
    (key,) = step
    return f"[{key!r:.60}]" if type(key) in (str, float, bool) else f"[a `{type(key).__name__}`]"


_CONTAINERS: dict[type, bytes] = {list: b"l", tuple: b"t", set: b"e", frozenset: b"f"}
_PACKED: dict[type, tuple[bytes, bytes]] = {list: (b"q", b"x"), tuple: (b"Q", b"X")}
_ENCODERS: dict[type, Callable[[Encoder, Any], None]] = {
    type(None): lambda encoder, _: encoder.pieces.append(b"N"),
    bool: lambda encoder, value: encoder.pieces.append(b"T" if value else b"F"),
    int: Encoder._int,
    float: lambda encoder, value: encoder.pieces.append(b"d" + FLOAT.pack(value)),
    complex: lambda encoder, value: encoder.pieces.append(b"c" + COMPLEX.pack(value.real, value.imag)),
    str: Encoder._str,
    bytes: Encoder._bytes,
    list: Encoder._sequence,
    tuple: Encoder._sequence,
    set: Encoder._sequence,
    frozenset: Encoder._sequence,
    dict: Encoder._dict,
    dt.date: Encoder._date,
    dt.datetime: Encoder._datetime,
    dt.time: Encoder._time,
    dt.timedelta: Encoder._timedelta,
}
