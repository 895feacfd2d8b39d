"""The output tape: the end of each call's output, in memory that a client and the daemon share.

The client reads a call's output itself, so it is who can keep it; a message to the daemon for each call would cost
more than a short call. So the client writes to a piece of memory, which the daemon reads when it likes, also after
the client has been killed. Calls follow one another on the tape and run over its end to its beginning; the daemon
misses the oldest when more is printed between two of its looks than the tape holds.

    serial u64 | offset u64                                     of the entry that was begun last
    serial u64 | printed u64 | ended u64 | call 64 bytes | data      an entry; serials count from 1

An entry has room for `KEPT_BYTES`, used as a ring, while its call runs, and shrinks to its contents afterwards.
The reader trusts no content: it reads a bounded number of bytes and entries.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import Any

KEPT_BYTES = 64 << 10
"""The most that is kept of one call: the last."""

SIZE = 512 << 10
_NAME = "atoll-tape"
_PLACE = struct.Struct("=QQ")
_ENTRY = struct.Struct("=QQQ64s")
_COUNTS = struct.Struct("=QQQ")


@dataclass(frozen=True)
class Printed:
    """The output of a call so far: its id, the number of bytes, the last of them, and whether it is over."""

    call: str
    printed_bytes: int
    tail: bytes
    ended: bool


class TapeWriter:
    """The client's end, which owns the memory; used by one thread at a time.

    Raises:
        OSError: from the constructor, where there is no memory to share.
    """

    def __init__(self) -> None:
        import mmap

        self.descriptor = os.memfd_create(_NAME, os.MFD_CLOEXEC)
        try:
            os.ftruncate(self.descriptor, SIZE)
            self._memory: Any = mmap.mmap(self.descriptor, SIZE)
        except BaseException:
            self.close()
            raise
        self._serial = 0
        self._next = _PLACE.size
        self._offset = 0
        self._call = ""
        self._printed = 0

    def state(self) -> list[Any]:
        """Return the place on the tape, by which `restore` goes on in another process."""
        return [self._serial, self._next, self._offset, self._call, self._printed]

    @classmethod
    def restore(cls, descriptor: int, state: list[Any]) -> TapeWriter:
        """Return the writer of a tape that another process has begun; the caller keeps the descriptor.

        Raises:
            OSError, ValueError: it is no tape.
        """
        import mmap

        made = cls.__new__(cls)
        made.descriptor = -1
        made._memory = mmap.mmap(descriptor, SIZE)
        made._serial, made._next, made._offset, made._call, made._printed = state
        return made

    def write(self, call: str, data: bytes) -> None:
        """Add output of a call; output of another call ends the last entry."""
        if call != self._call:
            self.end()
            self._begin(call)
        total = self._printed + len(data)
        kept = data[-KEPT_BYTES:]
        ring = self._offset + _ENTRY.size
        first = (total - len(kept)) % KEPT_BYTES
        head = kept[: KEPT_BYTES - first]
        self._memory[ring + first : ring + first + len(head)] = head
        rest = kept[len(head) :]
        self._memory[ring : ring + len(rest)] = rest
        self._printed = total
        _COUNTS.pack_into(self._memory, self._offset, self._serial, total, 0)

    def _begin(self, call: str) -> None:
        self._serial += 1
        self._offset, self._call, self._printed = self._next, call, 0
        _ENTRY.pack_into(self._memory, self._offset, self._serial, 0, 0, call.encode("utf-8", "replace"))
        _PLACE.pack_into(self._memory, 0, self._serial, self._offset)

    def end(self) -> None:
        """Say that the call whose output came last is over."""
        if self._call:
            _COUNTS.pack_into(self._memory, self._offset, self._serial, self._printed, 1)
            self._next = _behind(self._offset, self._printed)
            self._call = ""

    def close(self) -> None:
        """Close the descriptor; the memory goes with the last of its users."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


class TapeReader:
    """The daemon's end, which owns the descriptor.

    Raises:
        ValueError: from the constructor: the descriptor is not of shared memory; it is closed then.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._serial = 1
        self._offset = _PLACE.size
        self._seen = (0, 0)
        try:
            if not os.readlink(f"/proc/self/fd/{descriptor}").startswith("/memfd:"):
                raise ValueError("a tape must be shared memory")
        except (OSError, ValueError) as error:
            self.close()
            raise ValueError(f"the tape cannot be read: {error}") from error

    def read(self) -> list[Printed]:
        """Return the entries that have ended since the last time, and the one that has not, if it has grown."""
        place = os.pread(self._descriptor, _PLACE.size, 0)
        if len(place) < _PLACE.size:
            return []
        serial, offset = _PLACE.unpack(place)
        if not _PLACE.size <= offset <= SIZE - _ENTRY.size:
            return []
        if self._serial > serial:
            return []
        if self._serial == serial:  # nothing but the last one is new: the usual case, without copying the tape
            return self._last(offset)
        memory = os.pread(self._descriptor, SIZE, 0)
        found = []
        for _ in range(SIZE // _ENTRY.size):
            entry = _parse(memory, self._offset)
            if entry is None or entry[0] != self._serial or not entry[1].ended:
                break
            found.append(entry[1])
            self._serial, self._offset = self._serial + 1, _behind(self._offset, entry[1].printed_bytes)
        if self._serial < serial:  # the part between has been overwritten
            self._serial, self._offset = serial, offset
        return found + self._last(offset)

    def _last(self, offset: int) -> list[Printed]:
        counts = os.pread(self._descriptor, _COUNTS.size, offset)
        if len(counts) < _COUNTS.size:
            return []
        serial, printed, ended = _COUNTS.unpack(counts)
        if serial != self._serial or (self._seen == (serial, printed) and not ended):
            return []
        entry = _parse(os.pread(self._descriptor, _ENTRY.size + KEPT_BYTES, offset), 0)
        if entry is None or entry[0] != self._serial:
            return []
        self._seen = entry[0], entry[1].printed_bytes
        if entry[1].ended:
            self._serial, self._offset = self._serial + 1, _behind(offset, entry[1].printed_bytes)
        return [entry[1]]

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def _behind(offset: int, printed: int) -> int:
    """Return where the entry behind one begins: at the tape's beginning where it would not have its room."""
    after = offset + _ENTRY.size + min(printed, KEPT_BYTES)
    return after if after + _ENTRY.size + KEPT_BYTES <= SIZE else _PLACE.size


def _parse(memory: bytes, offset: int) -> tuple[int, Printed] | None:
    if len(memory) < offset + _ENTRY.size:
        return None
    serial, printed, ended, call = _ENTRY.unpack_from(memory, offset)
    start = offset + _ENTRY.size
    ring = memory[start : start + min(printed, KEPT_BYTES)]
    first = printed % KEPT_BYTES if printed > KEPT_BYTES else 0
    name = call.rstrip(b"\0").decode("utf-8", "replace")
    return serial, Printed(name, min(printed, 1 << 62), ring[first:] + ring[:first], ended != 0)
