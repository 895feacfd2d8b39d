"""The decoder of plain data, which may come from anybody; `format` describes the bytes.

The decoder trusts nothing: counts are held against the bytes that are left; depth and the memory that the values take
are bounded; and so is the work of comparing keys that have the same hash, since numbers can be chosen to collide.
"""

from __future__ import annotations

import datetime as dt
import struct
import sys
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import repeat
from typing import Any

from atoll.payload.plain import arrays_tables
from atoll.payload.plain.format import COMPLEX, DATE, DELTA, FLOAT, MAX_DEPTH, SWAPPED, TIME, PlainDataError


def loads(buffers: Sequence[Any], most_bytes: int | None = None) -> Any:
    """Return the value in the buffers of `encode.dumps`; arrays and tables use the buffers' memory.

    Args:
        most_bytes: about how much memory the value may take beside the buffers.

    Raises:
        PlainDataError: the buffers are no result of `dumps`.
        MemoryError: the value would take more than `most_bytes`.
        ModuleNotFoundError: it holds an array or a table, and the library for it is not installed here.
        RecursionError: the stack has no room for it.
    """
    if not buffers:
        raise PlainDataError("there is no buffer")
    decoder = Decoder(buffers, most_bytes)
    try:
        value = decoder.value(0)
    except PlainDataError:
        raise
    except (struct.error, OverflowError, ValueError, TypeError) as error:
        raise PlainDataError(str(error)) from error
    decoder.end()
    return value


class Decoder:
    """Reads values from the structure, and takes buffers in order."""

    def __init__(self, buffers: Sequence[Any], most_bytes: int | None) -> None:
        self._view = memoryview(buffers[0]).toreadonly()
        self._position = 0
        self._buffers = buffers
        self._next = 1
        self._room = sys.maxsize if most_bytes is None else most_bytes
        self._work = (1 << 20) + 64 * len(self._view)  # honest data needs far less: keys rarely collide

    def value(self, depth: int) -> Any:
        tag = self._view[self._position] if self._position < len(self._view) else -1
        self._position += 1
        decode = _DECODERS.get(tag)
        if decode is None:
            raise PlainDataError("the data ends too early" if tag < 0 else f"unknown tag {tag}")
        return decode(self, depth)

    def end(self) -> None:
        """Refuse data after the end."""
        if self._position != len(self._view) or self._next != len(self._buffers):
            raise PlainDataError("the data goes on after its end")

    def charge(self, size: int) -> None:
        """Count memory that is about to be used."""
        self._room -= size
        if self._room < 0:
            raise MemoryError("the value takes more memory than there is for it")

    def take(self, size: int) -> memoryview:
        """Return the next `size` bytes of the structure."""
        begin, self._position = self._position, self._position + size
        if self._position > len(self._view):
            raise PlainDataError("the data ends too early")
        return self._view[begin : self._position]

    def number(self) -> int:
        """Return a LEB128 integer below 2 ** 63."""
        value = shift = 0
        while True:
            if self._position >= len(self._view) or shift > 56:
                raise PlainDataError("a number ends too late")
            byte = self._view[self._position]
            self._position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:  # the last byte of a number has no high bit
                return value
            shift += 7

    def buffer(self) -> Any:
        """Return the next buffer; each is given once, so that nothing shares its memory."""
        if self._next >= len(self._buffers):
            raise PlainDataError("a buffer is missing")
        self._next += 1
        return self._buffers[self._next - 1]

    def text(self) -> str:
        size = self.number()
        data = self.take(size)
        self.charge(60 + 4 * size)
        return str(data, "utf-8", "surrogatepass")

    def _int(self, _depth: int) -> int:
        size = self.number()
        data = self.take(size)
        self.charge(40 + 2 * size)
        return int.from_bytes(data, "little", signed=True)

    def _bytes(self, _depth: int) -> bytes:
        size = self.number()
        data = self.take(size)
        self.charge(40 + size)
        return bytes(data)

    def _large_bytes(self, _depth: int) -> bytes:
        data = self.buffer()
        self.charge(40 + memoryview(data).nbytes)
        return bytes(data)

    def _items(self, depth: int, per_item: int) -> list[Any]:
        count = self._count(depth, 1)
        self.charge(220 + per_item * count)
        # A comprehension would take one place more of the stack for each container around.
        return list(map(self.value, repeat(depth + 1, count)))

    def _count(self, depth: int, least_bytes: int) -> int:
        """Return how many items come, which take at least so many bytes each."""
        if depth >= MAX_DEPTH:
            raise PlainDataError(f"deeper than {MAX_DEPTH} containers")
        count = self.number()
        if count * least_bytes > len(self._view) - self._position:
            raise PlainDataError("the data ends too early")
        return count

    def _set(self, depth: int) -> Any:
        items = self._items(depth, 72)
        self._check_keys(items)
        found = set(items)
        if len(found) != len(items):
            raise PlainDataError("a set has an item twice")
        return found

    def _frozenset(self, depth: int) -> Any:
        return frozenset(self._set(depth))

    def _dict(self, depth: int) -> dict[Any, Any]:
        count = self._count(depth, 2)
        self.charge(240 + 120 * count)
        keys, values = [], []
        for _ in range(count):
            keys.append(self.value(depth + 1))
            values.append(self.value(depth + 1))
        self._check_keys(keys)
        found = dict(zip(keys, values, strict=True))
        if len(found) != count:
            raise PlainDataError("a dict has a key twice")
        return found

    def _check_keys(self, keys: list[Any]) -> None:
        """Refuse keys whose comparing, when a set or dict is built of them, would take much more time than reading."""
        hashes = list(map(hash, keys))
        if len(set(hashes)) == len(hashes):  # no two keys are ever compared
            return
        groups: dict[int, list[Any]] = {}
        for number, key in zip(hashes, keys, strict=True):
            groups.setdefault(number, []).append(key)
        for group in groups.values():
            if len(group) > 1:
                self._spend(len(group) * (len(group) - 1) // 2 * max(map(self._weigh, group)))

    def _weigh(self, key: Any) -> int:
        """Return about how much work it is to compare a key with one that has the same hash."""
        self._spend(1)
        if type(key) is tuple:
            return 1 + sum(map(self._weigh, key))
        if type(key) is frozenset:
            hashes = Counter(map(hash, key))
            return (1 + sum(map(self._weigh, key))) * max(hashes.values(), default=1)
        return 1 + sys.getsizeof(key) // 64

    def _spend(self, work: int) -> None:
        self._work -= work
        if self._work < 0:
            raise PlainDataError("too many keys have the same hash")

    def _numbers(self, code: str) -> list[Any]:
        count = self._count(0, 8)  # numbers hold nothing, so depth does not matter
        self.charge(60 + 48 * count)
        numbers = array(code)
        numbers.frombytes(self.take(8 * count))
        if SWAPPED:
            numbers.byteswap()
        return numbers.tolist()

    def _date(self, _depth: int) -> dt.date:
        self.charge(60)
        return dt.date(*DATE.unpack(self.take(DATE.size)))

    def _datetime(self, _depth: int) -> dt.datetime:
        year, month, day = DATE.unpack(self.take(DATE.size))
        hour, minute, second, microsecond, fold, zone = self._clock()
        return dt.datetime(year, month, day, hour, minute, second, microsecond, zone, fold=fold)

    def _time(self, _depth: int) -> dt.time:
        hour, minute, second, microsecond, fold, zone = self._clock()
        return dt.time(hour, minute, second, microsecond, zone, fold=fold)

    def _clock(self) -> tuple[int, int, int, int, int, dt.timezone | None]:
        self.charge(300)
        hour, minute, second, microsecond, fold, zoned = TIME.unpack(self.take(TIME.size))
        return hour, minute, second, microsecond, fold, self._zone() if zoned else None

    def _zone(self) -> dt.timezone:
        if bytes(self.take(1)) != b"I":
            raise PlainDataError("a time zone has no offset")
        offset = self._timedelta(0)
        name = self.value(MAX_DEPTH)  # at this depth a container is refused
        if name is None:
            return dt.timezone(offset)
        if type(name) is not str:
            raise PlainDataError("a time zone's name is not text")
        return dt.timezone(offset, name)

    def _timedelta(self, _depth: int) -> dt.timedelta:
        self.charge(60)
        days, seconds, microseconds = DELTA.unpack(self.take(DELTA.size))
        return dt.timedelta(days, seconds, microseconds)

    def _float(self, _depth: int) -> float:
        self.charge(24)
        return float(FLOAT.unpack(self.take(8))[0])

    def _complex(self, _depth: int) -> complex:
        self.charge(32)
        return complex(*COMPLEX.unpack(self.take(16)))


_DECODERS: dict[int, Callable[[Decoder, int], Any]] = {
    ord("N"): lambda _decoder, _depth: None,
    ord("T"): lambda _decoder, _depth: True,
    ord("F"): lambda _decoder, _depth: False,
    ord("i"): Decoder._int,
    ord("d"): Decoder._float,
    ord("c"): Decoder._complex,
    ord("s"): lambda decoder, _depth: decoder.text(),
    ord("b"): Decoder._bytes,
    ord("B"): Decoder._large_bytes,
    ord("l"): lambda decoder, depth: decoder._items(depth, 8),
    ord("t"): lambda decoder, depth: tuple(decoder._items(depth, 16)),
    ord("e"): Decoder._set,
    ord("f"): Decoder._frozenset,
    ord("m"): Decoder._dict,
    ord("q"): lambda decoder, _depth: decoder._numbers("q"),
    ord("Q"): lambda decoder, _depth: tuple(decoder._numbers("q")),
    ord("x"): lambda decoder, _depth: decoder._numbers("d"),
    ord("X"): lambda decoder, _depth: tuple(decoder._numbers("d")),
    ord("D"): Decoder._date,
    ord("H"): Decoder._datetime,
    ord("C"): Decoder._time,
    ord("I"): Decoder._timedelta,
    ord("a"): lambda decoder, _depth: arrays_tables.decode_array(decoder),
    ord("n"): lambda decoder, _depth: arrays_tables.decode_scalar(decoder),
    ord("A"): lambda decoder, _depth: arrays_tables.decode_table(decoder),
}
