"""What calls print, on memory that two processes share."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.wire import output_tape
from atoll.wire.output_tape import KEPT_BYTES, SIZE, Printed, TapeReader, TapeWriter


@pytest.fixture
def ends() -> Iterator[tuple[TapeWriter, TapeReader]]:
    with contextlib.closing(TapeWriter()) as writer:
        with contextlib.closing(TapeReader(os.dup(writer.descriptor))) as reader:
            yield writer, reader
        writer._memory.close()  # it has a descriptor of its own


def test_calls_follow_one_another(ends: tuple[TapeWriter, TapeReader]) -> None:
    """Each call's output is read once, in order, as soon as it has ended; the open one as far as it has come."""
    writer, reader = ends
    assert reader.read() == []
    writer.write("a", b"one\n")
    writer.write("a", b"two\n")
    assert reader.read() == [Printed("a", 8, b"one\ntwo\n", ended=False)]
    assert reader.read() == []
    writer.end()
    writer.write("b", b"x")
    assert reader.read() == [Printed("a", 8, b"one\ntwo\n", ended=True), Printed("b", 1, b"x", ended=False)]
    writer.end()
    assert reader.read() == [Printed("b", 1, b"x", ended=True)]
    assert reader.read() == []


def test_only_the_last_bytes_of_a_call_are_kept(ends: tuple[TapeWriter, TapeReader]) -> None:
    """Of a call that prints more than `KEPT_BYTES` the end is there, and how much it was in all."""
    writer, reader = ends
    printed = b"".join(b"%06d\n" % number for number in range(40_000))
    for start in range(0, len(printed), 9_999):
        writer.write("a", printed[start : start + 9_999])
    writer.end()
    writer.write("b", b"y" * (3 * KEPT_BYTES) + b"end")
    (first, second) = reader.read()
    assert (first.printed_bytes, first.tail) == (len(printed), printed[-KEPT_BYTES:])
    assert second.tail == (b"y" * KEPT_BYTES + b"end")[-KEPT_BYTES:]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 90_000), st.booleans()), max_size=40))
def test_nothing_is_lost_when_it_is_read_in_time(steps: list[tuple[int, bool]]) -> None:
    """A reader that looks after each call gets every call, also when the tape has come round."""
    writer = TapeWriter()
    reader = TapeReader(os.dup(writer.descriptor))
    found = []
    for number, (size, look) in enumerate(steps):
        writer.write(f"c{number}", b"%d" % number * size)
        if look:
            reader.read()
        writer.end()
        found += [one for one in reader.read() if one.ended]
    assert [one.call for one in found] == [f"c{number}" for number in range(len(steps))]
    for number, ((size, _), one) in enumerate(zip(steps, found, strict=True)):
        assert one.tail == (b"%d" % number * size)[-KEPT_BYTES:]
    reader.close()
    writer.close()


def test_a_reader_that_is_late_goes_on_with_the_newest(ends: tuple[TapeWriter, TapeReader]) -> None:
    """What has been overwritten is missed; what comes then is read."""
    writer, reader = ends
    for number in range(5000):
        writer.write(f"c{number}", b"x" * 200)
        writer.end()
    assert [one.call for one in reader.read()] == ["c4999"]
    writer.write("next", b"y")
    writer.end()
    assert [one.call for one in reader.read()] == ["next"]


@settings(max_examples=200, deadline=None)
@given(
    st.integers(0, 1 << 64 - 1),
    st.integers(0, SIZE + 1000),
    st.integers(0, (1 << 64) - 1),
    st.integers(0, (1 << 64) - 1),
    st.binary(max_size=100),
    st.integers(0, SIZE),
)
def test_hostile_memory_is_read_in_bounds(
    serial: int, offset: int, own: int, printed: int, noise: bytes, size: int
) -> None:
    """Whatever the memory holds and however short it is, reading it ends and gives at most what it may."""
    descriptor = os.memfd_create("hostile")
    os.ftruncate(descriptor, size)
    memory = output_tape._PLACE.pack(serial, offset) + output_tape._ENTRY.pack(own, printed, own, b"call") + noise
    os.pwrite(descriptor, memory[:size], 0)
    if offset + 24 < size:
        os.pwrite(descriptor, output_tape._COUNTS.pack(serial, printed, own), offset)
    reader = TapeReader(descriptor)
    for _ in range(3):
        found = reader.read()
        assert all(len(one.tail) <= KEPT_BYTES for one in found)
        assert len(found) <= SIZE // output_tape._ENTRY.size + 1
    reader.close()


def test_only_shared_memory_is_a_tape() -> None:
    """A pipe or a file, whose reading could block the daemon, is refused and closed."""
    read, write = os.pipe()
    with pytest.raises(ValueError, match="tape"):
        TapeReader(read)
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(read)
    os.close(write)
