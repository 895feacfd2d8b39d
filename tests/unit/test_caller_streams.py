"""Output of a call on streams of a program that are not Python's own, broken, closed or slow."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from atoll.payload import tracebacks
from atoll.sdk.display.output import CallerStreams, ReaderGone
from atoll.sdk.futures import hide_frames

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


@pytest.mark.parametrize(
    ("encoding", "newline"),
    [("latin-1", None), ("utf-8", "\r\n"), ("utf-16", None), ("utf-16", "\r\n"), ("utf-8-sig", "")],
)
def test_a_file_gets_output_in_its_own_encoding(tmp_path: Path, encoding: str, newline: str | None) -> None:
    """As a `print` writes it there, in whatever pieces output comes."""
    found, plain = tmp_path / "found", tmp_path / "plain"
    with plain.open("w", encoding=encoding, newline=newline) as file:
        file.write("before\n" + TEXT + "after\n")
    with found.open("w", encoding=encoding, newline=newline) as file, stdout(file) as streams:
        file.write("before\n")
        for byte in TEXT.encode():
            streams.stdout(bytes([byte]))
        file.write("after\n")
    assert found.read_bytes() == plain.read_bytes()


def test_bytes_that_are_no_text_pass_as_they_are(tmp_path: Path) -> None:
    """They pass between text in the file's encoding; characters that it lacks are escaped."""
    path = tmp_path / "found"
    with path.open("w", encoding="latin-1") as file, stdout(file) as streams:
        streams.stdout("é\n".encode() + b"\xff\xfe" + "é\u20ac".encode())
    assert path.read_bytes() == b"\xe9\n\xff\xfe\xe9\\u20ac"


def test_a_stream_that_does_not_tell_whether_it_is_a_terminal_takes_output() -> None:
    """Neither wait nor notice fails with it."""

    class Odd(Tee):
        def isatty(self) -> bool:
            raise RuntimeError("no")

    stream = Odd()
    with stdout(stream) as streams, contextlib.redirect_stderr(stream):  # type: ignore[type-var]
        assert streams.waits("running", "f") is None
        streams.notice("line")
        streams.stdout(b"one\n")
    assert stream.text() == "atoll: line\none\n"


@contextlib.contextmanager
def closed_pipe() -> Iterator[Any]:
    reader, writer = os.pipe()
    os.close(reader)
    stream = open(writer, "w")
    yield stream
    with contextlib.suppress(BrokenPipeError):
        stream.close()


def test_a_reader_that_has_gone_shows_no_frame_of_atoll() -> None:
    """The error reads as that of a `print`, and travels between processes as one."""
    error = ReaderGone(32, "Broken pipe")
    with closed_pipe() as stream, stdout(stream) as streams:
        try:
            streams.stdout(b"one\n")
        except BrokenPipeError as caught:
            outermost = next(tracebacks.entries(caught.__traceback__))
            hide_frames(caught.with_traceback(outermost.tb_next))  # as below the frame of a call
            shown = traceback.format_exception(caught)
    assert [line for line in shown if "sdk" in line] == []
    assert shown[-1] == "BrokenPipeError: [Errno 32] Broken pipe\n"
    assert pickle.loads(pickle.dumps(error)).args == (32, "Broken pipe")


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
    assert [one.filename for one in caught] == [__file__]


def test_no_stream_takes_everything() -> None:
    """`sys.stdout` is None in programs without a console."""
    with stdout(None) as streams:
        streams.stdout(b"one\n")
    assert streams.tail() == "one\n"


def test_a_reader_that_has_gone_ends_the_program() -> None:
    """As a `print` to `| head` does."""
    with closed_pipe() as stream, stdout(stream) as streams, pytest.raises(BrokenPipeError):
        streams.stdout(b"one\n")


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
