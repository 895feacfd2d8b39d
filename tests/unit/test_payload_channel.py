"""Large payloads cross beside the stream, and a hostile peer's ring harms nobody."""

from __future__ import annotations

import array
import errno
import mmap
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.wire import frames
from atoll.wire.channel import ChannelClosed
from atoll.wire.frames import FrameError, FrameTooLarge, Rope
from atoll.wire.payload_channel import BESIDE_BYTES, PayloadChannel
from atoll.wire.shared_ring import SLOT_BYTES, SLOTS, Outlet

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="shared memory by descriptor is Linux's")

Pair = tuple[PayloadChannel, PayloadChannel]


@pytest.fixture
def channels() -> Iterator[Pair]:
    one, other = socket.socketpair()
    pair = PayloadChannel(one), PayloadChannel(other)
    yield pair
    for channel in pair:
        channel.close()


def send(channel: PayloadChannel, *messages: tuple[dict[str, Any], list[Any]]) -> threading.Thread:
    def work() -> None:
        for header, buffers in messages:
            channel.send(header, buffers)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def receive_all(channel: PayloadChannel) -> None:
    while True:
        channel.receive()


def pattern(size: int) -> bytes:
    return bytes(range(251)) * (size // 251) + bytes(size % 251)


SIZES = (0, 1, 4096, BESIDE_BYTES - 1, BESIDE_BYTES, SLOT_BYTES + 1, SLOTS * SLOT_BYTES, SLOTS * SLOT_BYTES + 77)


@given(st.lists(st.lists(st.sampled_from(SIZES), max_size=5), min_size=1, max_size=3))
@settings(max_examples=12, deadline=None)
def test_buffers_of_all_sizes_arrive_in_order(messages: list[list[int]]) -> None:
    """What one side sends the other receives, whichever way each buffer goes."""
    one, other = map(PayloadChannel, socket.socketpair())
    sent = [({"type": "x", "n": n}, [pattern(size) for size in sizes]) for n, sizes in enumerate(messages)]
    thread = send(one, *sent)
    for header, buffers in sent:
        got = other.receive()
        assert got.header == header
        assert [bytes(buffer) for buffer in got.buffers] == buffers
    thread.join()
    one.close()
    other.close()


def test_what_arrives_is_private_writable_memory(channels: Pair) -> None:
    """The receiver writes to its buffers without changing the sender's."""
    source = bytearray(b"x" * (5 * SLOT_BYTES))
    thread = send(channels[0], ({}, [source, b"small"]))
    large, small = channels[1].receive().buffers
    thread.join()
    assert type(large) is mmap.mmap
    large[0:1] = small[0:1] = b"!"
    assert source[0:1] == b"x"


def test_a_rope_arrives_as_one_buffer(channels: Pair) -> None:
    """A buffer in several parts is one where it arrives, on both ways."""
    for part in (b"abc", pattern(SLOT_BYTES)):
        thread = send(channels[0], ({}, [Rope([part, b"", b"x", part]), b"next"]))
        assert [bytes(buffer) for buffer in channels[1].receive().buffers] == [part + b"x" + part, b"next"]
        thread.join()


def test_a_ring_is_used_again_and_both_ways(channels: Pair) -> None:
    """Many large messages need one ring for each direction, and small ones in between none."""
    before = len(os.listdir("/proc/self/fd"))
    for number in range(6):
        for one, other in (channels, channels[::-1]):
            data = pattern(2 * SLOT_BYTES + number)
            thread = send(one, ({"n": number}, [data]), ({"small": number}, []))
            assert bytes(other.receive().buffers[0]) == data
            assert other.receive().header == {"small": number}
            thread.join()
    assert len(os.listdir("/proc/self/fd")) - before == 2 * 4


def test_without_memory_files_the_stream_carries_all(channels: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no ring can be made payloads travel in the stream."""

    def refuse(*args: Any) -> int:
        raise OSError("none")

    monkeypatch.setattr(os, "memfd_create", refuse)
    data = pattern(3 * SLOT_BYTES)
    thread = send(channels[0], ({}, [data]), ({}, [data]))
    for _ in range(2):
        assert bytes(channels[1].receive().buffers[0]) == data
    thread.join()


CROWDED = """
import array, mmap, os, resource, socket, threading  # all before another user may not read the modules
from atoll.wire import shared_ring
from atoll.wire.payload_channel import PayloadChannel
if os.getuid() == 0:
    os.setresgid(54321, 54321, 54321)
    os.setresuid(54321, 54321, 54321)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
waiting, _unread = socket.socketpair()
rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [waiting.fileno()] * 4))]
try:
    while True:
        waiting.sendmsg([b"x"], rights)
except OSError as error:
    print(error.errno)
one, other = map(PayloadChannel, socket.socketpair())
threading.Thread(target=one.send, args=({"type": "large"}, [bytes(3 << 20)]), daemon=True).start()
print(len(other.receive().buffers[0]))
"""


def test_a_user_with_too_many_descriptors_on_their_way_sends_in_the_stream() -> None:
    """The kernel refuses further descriptors of a user whose unread sockets hold many; large messages arrive."""
    done = subprocess.run([sys.executable, "-c", CROWDED], capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout.split() == [str(errno.ETOOMANYREFS), str(3 << 20)], done.stderr


def test_a_sender_whose_receiver_leaves_is_told(channels: Pair) -> None:
    """A sender that waits for a free slot learns that nobody will give one back."""
    caught: list[BaseException] = []

    def work() -> None:
        try:
            channels[0].send({}, [pattern((SLOTS + 3) * SLOT_BYTES)])
        except ChannelClosed as error:
            caught.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    channels[1].fill()
    channels[1].close()
    thread.join(120)
    assert caught


def test_a_message_over_the_free_memory_is_refused_before_it_is_read() -> None:
    """A large message is weighed against what the receiver has, and its size is in the error."""
    one, other = socket.socketpair()
    receiver = PayloadChannel(other, free_bytes=lambda: 100 << 20)
    with one:
        one.sendall(frames.PREFIX.pack(frames.MAGIC, frames.VERSION, 0, 2, 1) + (200 << 20).to_bytes(8, "big") + b"{}")
        with pytest.raises(FrameTooLarge) as caught:
            receiver.receive()
    assert (caught.value.size_bytes, caught.value.most_bytes) == (200 << 20, 100 << 20)
    receiver.close()


def test_a_claimed_size_costs_nothing() -> None:
    """A peer that says it sends much and sends little does not make the receiver hold much."""
    one, other = socket.socketpair()
    receiver = PayloadChannel(other)
    size = 8 << 30
    with one:
        one.sendall(frames.PREFIX.pack(frames.MAGIC, frames.VERSION, 0, 2, 1) + size.to_bytes(8, "big") + b"{}ab")
        while receiver._decoder.between_messages or not receiver._decoder._buffers:
            receiver.fill()
    with open("/proc/self/statm") as file:
        assert int(file.read().split()[1]) * mmap.PAGESIZE < 2 << 30
    receiver.close()


# --- hostile rings ------------------------------------------------------------------------------------------------


def head(flags: int, *lengths: int) -> bytes:
    prefix = frames.PREFIX.pack(frames.MAGIC, frames.VERSION, flags, 2, len(lengths))
    return prefix + b"".join(length.to_bytes(8, "big") for length in lengths) + b"{}"


def chunk(size: int) -> bytes:
    return frames.CHUNK.pack(size)


def memory_file(size: int) -> int:
    descriptor = os.memfd_create("hostile")
    os.ftruncate(descriptor, size)
    return descriptor


def _ends() -> tuple[int, int]:
    one, other = socket.socketpair()
    return one.detach(), other.detach()


def _directory() -> int:
    return os.open("/", os.O_RDONLY)


def _datagrams() -> int:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    one.close()
    return other.detach()


def _inet() -> int:
    return socket.socket(socket.AF_INET, socket.SOCK_STREAM).detach()


def _full() -> int:
    """A socket that takes nothing more."""
    one, other = socket.socketpair()
    one.setblocking(False)
    try:
        while True:
            one.send(b"x" * 65536)
    except BlockingIOError:
        pass
    one.setblocking(True)
    _kept.append(other)
    return one.detach()


_kept: list[Any] = []


def open_descriptors() -> set[int]:
    """Return the descriptors of this process."""
    return {number for number in map(int, os.listdir("/proc/self/fd")) if os.path.exists(f"/proc/self/fd/{number}")}


BIG = 4 * SLOT_BYTES
NEW = frames.BESIDE | frames.NEW_RING

HOSTILE: dict[str, tuple[Callable[[], list[int]], bytes]] = {
    "no descriptors": (list, head(NEW, BIG)),
    "one descriptor": (lambda: [memory_file(BIG)], head(NEW, BIG)),
    "a chunk without a ring": (list, head(frames.BESIDE, BIG) + chunk(5)),
    "an unknown flag": (list, head(4, BIG)),
    "a ring without chunks": (list, head(frames.NEW_RING, BIG)),
    "a pipe for the file": (lambda: [os.pipe()[0], _ends()[0]], head(NEW, BIG) + chunk(5)),
    "a directory for the file": (lambda: [_directory(), _ends()[0]], head(NEW, BIG) + chunk(5)),
    "a device for the file": (lambda: [os.open("/dev/zero", os.O_RDONLY), _ends()[0]], head(NEW, BIG) + chunk(5)),
    "a socket for the file": (lambda: list(_ends()), head(NEW, BIG) + chunk(5)),
    "a file for the socket": (lambda: [memory_file(BIG), memory_file(BIG)], head(NEW, BIG) + chunk(5)),
    "datagrams for the socket": (lambda: [memory_file(BIG), _datagrams()], head(NEW, BIG) + chunk(5)),
    "the internet for the socket": (lambda: [memory_file(BIG), _inet()], head(NEW, BIG) + chunk(5)),
    "a socket that is full": (lambda: [memory_file(BIG), _full()], head(NEW, BIG) + chunk(5)),
    "a file that is too short": (lambda: [memory_file(3), _ends()[0]], head(NEW, BIG) + chunk(5)),
    "an empty chunk": (lambda: [memory_file(BIG), _ends()[0]], head(NEW, BIG) + chunk(0)),
    "a chunk over the slot": (lambda: [memory_file(BIG), _ends()[0]], head(NEW, BIG) + chunk(SLOT_BYTES + 1)),
    "a chunk over the frame": (lambda: [memory_file(BIG), _ends()[0]], head(NEW, 10) + chunk(11)),
    "two rings": (lambda: [memory_file(BIG), *_ends(), memory_file(4)], head(NEW, 5) + chunk(5) + head(NEW, 5)),
    "many descriptors": (lambda: [memory_file(1) for _ in range(12)], head(0, 5)),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_ring_is_an_error_and_leaves_nothing_open(name: str) -> None:
    """What a peer sends in place of a ring neither blocks nor kills the receiver, and its descriptors are closed."""
    make, data = HOSTILE[name]
    begun = open_descriptors()
    one, other = socket.socketpair()
    other.settimeout(60)
    receiver = PayloadChannel(other)
    descriptors = make()
    before = open_descriptors()
    with one:
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))
        one.sendmsg([data], [rights] if descriptors else [])
        one.shutdown(socket.SHUT_WR)
        with pytest.raises((FrameError, ChannelClosed)):
            receive_all(receiver)
    receiver.close()
    assert open_descriptors() <= before
    while _kept:
        _kept.pop().close()
    for descriptor in open_descriptors() - begun:
        os.close(descriptor)


def test_a_file_that_shrinks_while_it_is_read_is_an_error(channels: Pair) -> None:
    """A sender that takes the memory away gives a short read, not a signal."""
    outlet = Outlet()
    os.truncate(f"/proc/self/fd/{outlet.descriptors[0]}", SLOT_BYTES // 2)
    raw = channels[0].socket
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", outlet.descriptors))
    raw.sendmsg([head(NEW, SLOT_BYTES) + chunk(SLOT_BYTES)], [rights])
    with pytest.raises(FrameError, match="not there"):
        channels[1].receive()
    outlet.close()


def test_a_receiver_that_gives_back_too_much_is_gone() -> None:
    """A sender never writes into a slot that is still in use: who claims more free slots than there are is cut off."""
    one, other = socket.socketpair()
    sender = PayloadChannel(one)
    caught: list[BaseException] = []

    def work() -> None:
        try:
            sender.send({}, [bytes(20 * SLOT_BYTES)])
        except ChannelClosed as error:
            caught.append(error)

    with other:
        thread = threading.Thread(target=work)
        thread.start()
        _, ancillary, _, _ = other.recvmsg(1, 100)
        received = array.array("i", ancillary[0][2])
        with socket.socket(fileno=received[1]) as returns:
            returns.send(b"x" * 100)
            thread.join(120)
        os.close(received[0])
    assert caught
    sender.close()
