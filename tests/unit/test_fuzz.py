"""No byte string that a peer can send runs code, hangs or exhausts who reads it: random and mutated messages."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atoll.daemon.control import Connection
from atoll.daemon.leasing import Caller
from atoll.wire.async_channel import AsyncChannel
from atoll.wire.frames import MAGIC, PREFIX, VERSION
from tests.fuzz import harness, seeds

EXAMPLES = 150
TARGETS = sorted(harness.TARGETS)
MUTATED = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("name", TARGETS)
def test_honest_messages_are_read(name: str) -> None:
    """Each target reads what fuzzing starts from, so that its mutations come far."""
    for data in seeds.seeds(name):
        assert harness.TARGETS[name](data) is not None


@pytest.mark.parametrize("name", TARGETS)
def test_random_bytes_are_refused(name: str) -> None:
    """Noise ends with the error that the reader handles."""

    @given(st.binary(max_size=200))
    @MUTATED
    def check(data: bytes) -> None:
        harness.TARGETS[name](data)

    check()


@pytest.mark.parametrize("name", TARGETS)
def test_mutated_messages_are_read_or_refused(name: str) -> None:
    """Honest messages with bytes changed, taken out, doubled and put in end the same way."""
    honest = seeds.seeds(name)

    @given(st.sampled_from(honest), st.integers(0, 2**32))
    @MUTATED
    def check(data: bytes, seed: int) -> None:
        harness.TARGETS[name](mutated(data, random.Random(seed)))

    check()


def mutated(data: bytes, dice: random.Random) -> bytes:
    """Return `data` with a few changes."""
    found = bytearray(data)
    for _ in range(dice.randint(1, 6)):
        place, size = dice.randrange(len(found) + 1), dice.choice((1, 1, 2, 4, 8, 40))
        match dice.randrange(5):
            case 0:
                found[place : place + size] = dice.randbytes(size)
            case 1:
                del found[place : place + size]
            case 2:
                found[place:place] = found[place : place + size]
            case 3:
                found[place : place + 1] = dice.choice(
                    (b"\xff" * 8, b"\0" * 8, b"\x7f", b"\x80", b"l", b"a", b"B", b"e")
                )
            case 4:
                found[place:place] = dice.randbytes(size)
    return bytes(found)


class _Refusing:
    """Stands for the daemon where nothing that was asked may get through to it."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"a malformed message got as far as `{name}`")


def _frame(header: bytes) -> bytes:
    return PREFIX.pack(MAGIC, VERSION, 0, len(header), 0) + header


HELLO = _frame(b'{"type":"hello","version":"no version of ours"}')


@given(st.binary(max_size=300), st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_the_daemons_socket_takes_anything_and_lets_go(noise: bytes, seed: int) -> None:
    """A connection that carries noise, or a mutated greeting, ends at once, whatever came; its descriptors are closed."""
    dice = random.Random(seed)
    data = noise if dice.random() < 0.3 else mutated(HELLO + _frame(b'{"type":"lease","spec":{}}'), dice) + noise
    pipe = os.pipe()
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0

    async def serve() -> None:
        ours, theirs = socket.socketpair()
        with ours:
            socket.send_fds(ours, [data or b"x"], [pipe[0]] * dice.randrange(3))
            ours.shutdown(socket.SHUT_WR)
            connection = Connection(_Refusing(), AsyncChannel(theirs), Caller("me"), lambda _: None)  # type: ignore[arg-type]
            await asyncio.wait_for(connection.serve(), 30)
            ours.setblocking(False)
            with contextlib.suppress(BlockingIOError, ConnectionError):
                while ours.recv(1 << 16):
                    pass

    asyncio.run(serve())
    assert not before or len(os.listdir("/proc/self/fd")) == before
    for descriptor in pipe:
        os.close(descriptor)
