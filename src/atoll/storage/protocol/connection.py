"""Requests to a storage peer, and what it answers: the part of a client that knows messages, and paths of volumes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any, Self

from atoll.errors import AtollError, HostUnreachable
from atoll.storage.files.tree import printable
from atoll.storage.sync.client import error_of
from atoll.wire.channel import Channel, ChannelClosed
from atoll.wire.frames import Message

ROOT = "/data"
ADDRESS = "atoll://"
"""In front of a path of the volume, as fsspec wants it: `atoll://a/b` and `atoll:///data/a/b` are `/data/a/b`."""


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


def volume_path(path: str | os.PathLike[str]) -> str:
    """Return a path of the volume, or an `atoll://` address, relative to its root; the root itself is the empty text.

    Raises:
        ValueError: it is not below `/data`, or has `..` or NUL.
    """
    text = os.fspath(path)
    if not isinstance(text, str):
        raise TypeError("a path on a volume is text")
    text = text.removeprefix(ADDRESS)
    parts = _parts(text)
    if text.startswith("/"):
        if parts[:1] != ["data"]:
            raise ValueError(f"`{printable(text)}` is not below `{ROOT}`")
        parts = parts[1:]
    return "/".join(parts)


def absolute(path: str) -> str:
    """Return the path that functions use for one relative to the volume's root."""
    return f"{ROOT}/{path}" if path else ROOT


class Requests:
    """Ask the storage peer at the other end of a channel.

    Args:
        channel: to the peer; the client's own.
        keep: takes the channel when the client is closed and nothing is under way on it, for another client.
    """

    def __init__(self, channel: Channel, keep: Callable[[Channel], None] | None = None) -> None:
        self._channel = channel
        self._keep = keep
        self._at_rest = True
        self._closed = False
        self.handles = 0
        """How many files the peer holds open for this client."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Have the channel kept for others where nothing is under way on it; else close it, and the peer ends."""
        if self._closed:
            return
        kept = self._keep is not None and self.usable and not self.handles
        self._closed = True
        if kept and self._keep is not None:
            self._keep(self._channel)
        else:
            self._channel.close()

    def abandon(self) -> None:
        """Close the channel, whatever is under way."""
        self._closed = True
        self._channel.close()

    @property
    def usable(self) -> bool:
        """Whether the peer waits for a request: nothing is under way, and it has not gone."""
        if self._closed or not self._at_rest or not self._channel.between_messages:
            return False
        return not self._channel.readable()

    def _ask(self, kind: str, path: str, arguments: dict[str, Any], buffers: list[Any] | None = None) -> Message:
        where = volume_path(path)
        self._request({"type": kind, "path": where, **arguments}, buffers or [])
        return self._answer(where)

    def _messages(
        self, kind: str, path: str, arguments: dict[str, Any], buffers: list[Any] | None = None
    ) -> Iterator[Message]:
        """Yield what comes before `done`, and that; who stops early closes the client."""
        where = volume_path(path)
        self._request({"type": kind, "path": where, **arguments}, buffers or [])
        try:
            while True:
                message = self._answer(where)
                yield message
                if message.type == "done":
                    return
        finally:
            if not self._at_rest:
                self.abandon()

    def _request(self, header: dict[str, Any], buffers: list[Any]) -> None:
        self._at_rest = False
        self._send(header, buffers)

    def _answer(self, where: str) -> Message:
        """Return the next message of an answer; the client is at rest again after `done` and errors."""
        try:
            message = self._receive(where)
        except HostUnreachable:
            raise
        except (AtollError, OSError):
            self._at_rest = True
            raise
        self._at_rest = message.type == "done"
        return message

    def _send(self, header: dict[str, Any], buffers: list[Any]) -> None:
        try:
            self._channel.send(header, buffers)
        except (ChannelClosed, OSError) as error:
            raise HostUnreachable("the storage peer has gone", hint="try again; see `atoll logs`") from error

    def _receive(self, where: str) -> Message:
        try:
            message = self._channel.receive()
        except (ChannelClosed, OSError) as error:
            raise HostUnreachable("the storage peer ended before it answered", hint="see `atoll logs`") from error
        if message.type == "error":
            below = message.header.get("below")
            raise _named(error_of(message), f"{where}/{below}".lstrip("/") if isinstance(below, str) else where)
        return message


def _named(error: Exception, where: str) -> Exception:
    if isinstance(error, OSError) and not isinstance(error, AtollError):
        return OSError(error.errno, error.strerror, absolute(where))
    return error
