"""Paths of a volume, and a client's end of the channel to a storage peer: requests, answers and errors."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from atoll.errors import AtollError, HostUnreachable, from_data
from atoll.terminal_text import printable
from atoll.wire.channel import Channel, ChannelClosed
from atoll.wire.frames import Message

AnyPath = str | os.PathLike[str]

MOST_ERRNO = 4096
"""The kernel's error numbers are below."""

ROOT = "/data"
ADDRESS = "atoll://"
"""The prefix of a path for fsspec: `atoll://a/b` and `atoll:///data/a/b` are `/data/a/b`."""
_SERVER = re.compile(r"atoll://([^/@]+)@([^/@]+)(?=/|$)")


def volume_path(path: AnyPath) -> str:
    """Return a path of the volume, or an `atoll://` address, relative to the root, which itself is the empty text.

    Raises:
        ValueError: the path is not below `/data`, or has `..` or NUL; or the address names a server.
    """
    text = os.fspath(path)
    if not isinstance(text, str):
        raise TypeError("a path on a volume is text")
    if split_server(text)[0]:
        raise ValueError(f"`{printable(text)}` names a server, and a volume has its own: leave out user and host")
    text = text.removeprefix(ADDRESS)
    parts = _parts(text)
    if text.startswith("/"):
        if parts[:1] != ["data"]:
            raise ValueError(f"`{printable(text)}` is not below `{ROOT}`")
        parts = parts[1:]
    return "/".join(parts)


def split_server(address: str) -> tuple[str, str, str]:
    """Return user and server of an address `atoll://USER@HOST/…`, and the address without them; empty for none."""
    found = _SERVER.match(address)
    if found is None:
        return "", "", address
    return found[1], found[2], f"{ADDRESS}{address[found.end() :].lstrip('/')}"


def _parts(path: str) -> list[str]:
    if "\0" in path:
        raise ValueError("a path holds no NUL")
    try:
        path.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise ValueError(f"`{printable(path)}` is not a name that a file system can hold") from error
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise ValueError(f"`{printable(path)}` has `..`, which a path on a volume cannot have")
    return parts


def absolute(path: str) -> str:
    """Return the path that functions use for one relative to the volume's root."""
    return f"{ROOT}/{path}" if path else ROOT


class Connection:
    """One channel to a storage peer; one thread uses it at a time.

    Args:
        channel: to the peer; the connection's own.
        keep: takes the channel when an idle connection is closed, for the next client.
    """

    def __init__(self, channel: Channel, keep: Callable[[Channel], None] | None = None) -> None:
        self.channel = channel
        self._keep = keep
        self._closed = False
        self.idle = True
        """True when the last request has been answered."""
        self.handles = 0
        """The number of files that the peer holds open for this connection."""

    def close(self) -> None:
        """Hand an idle channel to `keep`; close any other one, upon which its peer ends."""
        if self._closed:
            return
        kept = self.usable and not self.handles
        self._closed = True
        if kept and self._keep is not None:
            self._keep(self.channel)
        else:
            self.channel.close()

    def abandon(self) -> None:
        """Close the channel, even in the middle of a request."""
        self._closed = True
        self.channel.close()

    @property
    def usable(self) -> bool:
        """True while the peer lives and waits for a request."""
        if self._closed or not self.idle or not self.channel.between_messages:
            return False
        return not self.channel.readable()  # an idle peer sends nothing: readable means that it has gone

    @contextlib.contextmanager
    def conversation(self) -> Iterator[Channel]:
        """Give the channel to a longer exchange; the connection is idle again unless that fails."""
        self.idle = False
        yield self.channel
        self.idle = True

    def ask(self, kind: str, path: AnyPath, arguments: dict[str, Any], buffers: list[Any] | None = None) -> Message:
        """Send a request, and return its one answer."""
        where = volume_path(path)
        self.request({"type": kind, "path": where, **arguments}, buffers or [])
        return self.answer(where)

    def messages(
        self, kind: str, path: AnyPath, arguments: dict[str, Any], buffers: list[Any] | None = None
    ) -> Iterator[Message]:
        """Send a request, and yield its answers up to `done`; a consumer that stops early closes the connection."""
        where = volume_path(path)
        self.request({"type": kind, "path": where, **arguments}, buffers or [])
        try:
            while True:
                message = self.answer(where)
                yield message
                if message.type == "done":
                    return
        finally:
            if not self.idle:
                self.abandon()

    def request(self, header: dict[str, Any], buffers: list[Any]) -> None:
        """Send the first message of a request."""
        self.idle = False
        self.send(header, buffers)

    def answer(self, where: str) -> Message:
        """Return the next message of an answer; `where` is the path that errors name."""
        try:
            message = self.receive(where)
        except HostUnreachable:
            raise
        except (AtollError, OSError):
            self.idle = True  # an error is the last message of an answer
            raise
        self.idle = message.type == "done"
        return message

    def send(self, header: dict[str, Any], buffers: list[Any]) -> None:
        """Send one more message of a request."""
        try:
            self.channel.send(header, buffers)
        except (ChannelClosed, OSError) as error:
            raise _reason(error) or HostUnreachable(
                "the storage peer has gone", hint="try again; see `atoll logs`"
            ) from error

    def receive(self, where: str) -> Message:
        """Return the next message, and raise the error that it reports."""
        try:
            message = self.channel.receive()
        except (ChannelClosed, OSError) as error:
            raise _reason(error) or HostUnreachable(
                "the storage peer ended before it answered", hint="see `atoll logs`"
            ) from error
        if message.type == "error":
            below = message.header.get("below")
            raise _named(error_of(message), f"{where}/{below}".lstrip("/") if isinstance(below, str) else where)
        return message


def _reason(error: OSError) -> AtollError | None:
    return error.reason if isinstance(error, ChannelClosed) else None


class Requests(ABC):
    """The base of every class whose methods are requests; a subclass supplies the connection."""

    @abstractmethod
    def _connected(self) -> AbstractContextManager[Connection]:
        """Give this thread a connection for one request."""

    def _ask(self, kind: str, path: AnyPath, arguments: dict[str, Any]) -> Message:
        with self._connected() as connection:
            return connection.ask(kind, path, arguments)

    def _messages(
        self, kind: str, path: AnyPath, arguments: dict[str, Any], buffers: list[Any] | None = None
    ) -> Iterator[Message]:
        with self._connected() as connection:
            yield from connection.messages(kind, path, arguments, buffers)


def error_of(message: Message) -> Exception:
    """Return the exception that an `error` message carries."""
    data = message.header.get("error")
    if isinstance(data, dict):
        error: AtollError = from_data(data)
        return error
    number = message.header.get("errno", 0)
    if type(number) is not int or not 0 <= number < MOST_ERRNO:
        number = errno.EIO
    return OSError(number, str(message.header.get("text", "")))


def _named(error: Exception, where: str) -> Exception:
    if isinstance(error, OSError) and not isinstance(error, AtollError):
        return OSError(error.errno, error.strerror, absolute(where))
    return error
