"""Output of a call on streams of a program that are not Python's own, broken, closed or slow."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from atoll.sdk.output import CallerStreams

TEXT = "zwölf\n"


class Tee:
    """The least that `print` needs."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def write(self, text: str) -> object:
        self.seen.append(text)
        return None

    def text(self) -> str:
        return "".join(self.seen)


class Log(Tee):
    """A tee as many programs have it: everything but `write` is the original's."""

    def __init__(self) -> None:
        super().__init__()
        self._original = io.TextIOWrapper(io.BytesIO(), "utf-8")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)


class Upper(io.TextIOWrapper):
    """A stream of Python's own kind with another `write`."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), "utf-8")

    def write(self, text: str) -> int:
        return super().write(text.upper())

    def text(self) -> str:
        return str(self.buffer.getvalue().decode())  # type: ignore[attr-defined]


class Ascii(io.TextIOWrapper):
    """A stream of a terminal that knows no umlauts: the bytes pass as they are."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), "ascii")
        super().write("before ")

    def text(self) -> str:
        return str(self.buffer.getvalue().decode())  # type: ignore[attr-defined]


class AsciiTee(Tee):
    def write(self, text: str) -> object:
        text.encode("ascii")
        return super().write(text)


class StringTee(io.StringIO):
    def text(self) -> str:
        return self.getvalue()


@contextlib.contextmanager
def stdout(stream: Any) -> Iterator[CallerStreams]:
    original, sys.stdout = sys.stdout, stream
    try:
        yield CallerStreams()
    finally:
        sys.stdout = original


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (Tee, TEXT),
        (Log, TEXT),
        (Upper, TEXT.upper()),
        (Ascii, f"before {TEXT}"),
        (AsciiTee, "zw\\xf6lf\n"),
        (StringTee, TEXT),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_output_arrives_as_a_print_would(make: Callable[[], Any], expected: str) -> None:
    """What has `write` takes output by it, in whatever pieces; a stream of Python's own takes the bytes."""
    stream = make()
    with stdout(stream) as streams:
        for byte in TEXT.encode():
            streams.stdout(bytes([byte]))
    assert stream.text() == expected


class Broken(Tee):
    def __init__(self, part: str) -> None:
        super().__init__()
        self._part = part

    def write(self, text: str) -> object:
        if self._part == "write":
            raise RuntimeError("no room")
        return super().write(text)

    def flush(self) -> None:
        if self._part == "flush":
            raise RuntimeError("no room")


def closed() -> Any:
    stream = io.TextIOWrapper(io.BytesIO())
    stream.close()
    return stream


@pytest.mark.parametrize(
    "make",
    [
        lambda: Broken("write"),
        lambda: Broken("flush"),
        closed,
        lambda: io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False))),
        object,
    ],
    ids=["write", "flush", "closed", "reader", "object"],
)
def test_a_broken_stream_costs_the_output_and_not_the_call(make: Callable[[], Any]) -> None:
    """A warning says so, once for each stream."""
    with stdout(make()) as streams, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        streams.stdout(b"one\n")
        streams.stdout(b"two\n")
    assert [(one.category, "`sys.stdout` does not take" in str(one.message)) for one in caught] == [
        (RuntimeWarning, True)
    ]


def test_no_stream_takes_everything() -> None:
    """`sys.stdout` is None in programs without a console."""
    with stdout(None) as streams:
        streams.stdout(b"one\n")
    assert streams.tail() == "one\n"


def test_a_reader_that_has_gone_ends_the_program() -> None:
    """As a `print` to `| head` does."""
    reader, writer = os.pipe()
    os.close(reader)
    stream = open(writer, "w")
    with stdout(stream) as streams, pytest.raises(BrokenPipeError):
        streams.stdout(b"one\n")
    with contextlib.suppress(BrokenPipeError):
        stream.close()


def test_a_pipe_that_does_not_block_loses_nothing() -> None:
    """A slow reader gets all of it."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    data = b"0123456789abcdef" * 20_000
    found = bytearray()

    def read() -> None:
        while piece := os.read(reader, 5000):
            found.extend(piece)

    thread = threading.Thread(target=read)
    with open(writer, "w") as stream, stdout(stream) as streams:
        thread.start()
        streams.stdout(data)
    thread.join()
    os.close(reader)
    assert found == data
