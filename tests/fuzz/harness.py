"""What a hostile peer can send, run through whatever reads it: for atheris, and for the suite's own random bytes.

Each target takes bytes and returns when they were read or refused with the error that its caller handles. Anything else
that gets out, a hang, and memory without bounds are findings.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from atoll.daemon import claims
from atoll.errors import AtollError, SerializationError
from atoll.model.specs import LeaseSpec
from atoll.payload import untrusted as sdk_plain
from atoll.payload.plain.decode import loads
from atoll.payload.plain.format import PlainDataError
from atoll.wire.frames import CHUNK, Decoder, FrameError

MEMORY_BYTES = 64 << 20


def frames(data: bytes) -> list[Any]:
    """Give the bytes to a decoder in pieces; as the daemon reads them, and as a caller does with chunks beside."""
    found: list[Any] = []
    for payloads in (False, True):
        decoder = Decoder(1 << 20, payloads=payloads)
        place, step = 0, 1 + (data[0] if data else 0)
        try:
            while place < len(data):
                space = decoder.space()
                assert len(space), "there is always room"
                count = min(len(space), step, len(data) - place)
                space[:count] = data[place : place + count]
                place += count
                decoder.wrote(count)
                while decoder.beside:
                    decoder.wrote(min(len(decoder.space()), decoder.beside))
        except FrameError:
            pass
        assert sum(len(buffer) for message in decoder.messages for buffer in message.buffers) <= 50 * len(data) + (
            (len(data) // CHUNK.size + 1) << 20
        )
        found.extend(decoder.messages)
    return found


def plain(data: bytes) -> Any:
    """Read the bytes as plain data; a NUL-free mark splits off further buffers."""
    try:
        return loads([bytearray(part) for part in data.split(b"\xf5\xf6")], MEMORY_BYTES)
    except (
        PlainDataError,
        MemoryError,
        RecursionError,
    ):  # the last two are its limits, and `payload.untrusted` reports them
        return None


def result(data: bytes) -> Any:
    """Read the bytes as a caller reads a result that is plain data."""
    try:
        return sdk_plain.loads([bytearray(part) for part in data.split(b"\xf5\xf6")])
    except (ValueError, SerializationError):  # the first becomes a `ProtocolMismatch` there
        return None


def exception(data: bytes) -> BaseException | None:
    """Read the bytes as the description of an exception, with buffers behind it."""
    head, *buffers = data.split(b"\xf5\xf6")
    try:
        described = json.loads(head)
    except (ValueError, RecursionError):
        return None
    try:
        found = sdk_plain.loads_exception(described, [bytearray(buffer) for buffer in buffers])
    except (IndexError, KeyError, TypeError, AttributeError, ValueError):
        return None
    assert isinstance(found, (Exception, AtollError)), "no caller is ended by a worker"
    return found


def lease(data: bytes) -> Any:
    """Read the bytes as what a client asks of the daemon."""
    try:
        asked = json.loads(data)
    except (ValueError, RecursionError):
        return None
    try:
        return LeaseSpec.from_data(asked)
    except ValueError:
        pass
    try:
        return claims.read_spec(asked)
    except AtollError:
        return None


TARGETS: dict[str, Callable[[bytes], Any]] = {
    "frames": frames,
    "plain": plain,
    "result": result,
    "exception": exception,
    "lease": lease,
}
