"""Requests about detached calls, with a file on the way there or back."""

from __future__ import annotations

import itertools
import os
import select
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, NamedTuple

from atoll import errors
from atoll.host import daemon_start
from atoll.host.local import LocalHost
from atoll.terminal_text import printable
from atoll.wire import nested, sealed_file
from atoll.wire.channel import Channel, ChannelClosed

READING = ("detached.show", "detached.wait", "detached.result", "detached.output", "detached.counts", "detached.items")
"""Requests that are made again while the machine that has the call is away."""
ATTEMPTS = 5
"""Trials of a request while daemons end: each request may be made again."""
PAUSE_SECONDS = 0.1


class Answer(NamedTuple):
    """The answer to a request; the caller owns the descriptor, None where there is no file.

    The file of a server is a copy as of now; that of the daemon grows while the call prints.
    """

    value: dict[str, Any]
    descriptor: int | None
    grows: bool = True


def request(host: Any, name: str, arguments: dict[str, Any], *, timeout: float | None = None) -> Answer:
    """Ask the daemon about detached calls; it is started where there is none, and asked again where it ends.

    Args:
        timeout: seconds until the answer must be here.

    Raises:
        TimeoutError: it was not.
        AtollError: as the daemon answers.
    """
    return _request(host, name, arguments, None, timeout)


def accept(
    host: Any, spool: str, pieces: Callable[[], Iterable[Any]], needs: dict[str, Any] | None = None
) -> list[str]:
    """Have the daemon keep the calls of a spool; return their ids.

    When this returns, the calls are on the disk. The same spool may be sent again.

    Args:
        needs: of their function, by which a server chooses among its machines: `machine_type`, `numbers`, its bound.

    Raises:
        DetachedFull, DiskFull, StateUnusable: nothing was kept.
    """
    return [str(call) for call in _send(host, "detached.accept", {"spool": spool, "needs": needs or {}}, pieces)]


def renew(host: Any, spool: str, batch: str, pieces: Callable[[], Iterable[Any]]) -> int:
    """Have items of a batch that failed made again, by the function of this spool; return how many.

    Raises:
        CallUnknown: there is no such batch.
    """
    return int(_send(host, "detached.renew", {"spool": spool, "batch": batch}, pieces))


def _send(host: Any, name: str, arguments: dict[str, Any], pieces: Callable[[], Iterable[Any]]) -> Any:
    """Make a request with a spool; return the calls in the answer."""
    check(host)
    if not isinstance(host, LocalHost):
        return _request_server(host, {"type": "request", "name": name, "arguments": arguments}, pieces, None).value[
            "calls"
        ]
    try:
        descriptor = sealed_file.make_of(pieces())
    except OSError as error:
        raise errors.SerializationError(
            f"the arguments do not fit into memory a second time: {error}",
            hint="put large values below `/data` and pass the path",
        ) from error
    try:
        return _request(host, name, arguments, descriptor, None).value["calls"]
    finally:
        os.close(descriptor)


def check(host: Any) -> None:
    """Check that a host keeps detached calls for this process.

    Raises:
        ResourcesUnavailable: this is a function.
        TypeError: the host keeps none.
    """
    if nested.inside():
        raise errors.ResourcesUnavailable(
            "a function cannot make or look at detached calls",
            hint="use `submit` or `map` inside of functions, and `spawn` in the program itself",
        )
    if not isinstance(host, LocalHost) and not getattr(host, "server", None):
        raise TypeError(f"`{host!r}` keeps no detached calls")


def _request(host: Any, name: str, arguments: dict[str, Any], descriptor: int | None, timeout: float | None) -> Answer:
    check(host)
    message = {"type": "request", "name": name, "arguments": arguments}
    deadline = None if timeout is None else time.monotonic() + timeout
    if not isinstance(host, LocalHost):
        return _request_server(host, message, None, deadline)
    for attempt in range(ATTEMPTS):
        channel = daemon_start.open_connection(host.settings, message, () if descriptor is None else (descriptor,))
        try:
            return _answer(channel, deadline)
        except ChannelClosed:
            if attempt == ATTEMPTS - 1:
                break
            time.sleep(PAUSE_SECONDS)
        finally:
            channel.close()
    raise errors.HostUnreachable("the daemon ended before it answered", hint="try again")


def _request_server(
    host: Any, message: dict[str, Any], pieces: Callable[[], Iterable[Any]] | None, deadline: float | None
) -> Answer:
    from atoll.host.remote import detached_calls  # for servers alone

    patient: Any = None
    for attempt in itertools.count():
        if attempt and pieces is not None:  # the spool may have arrived: only one machine may have it
            message = {**message, "arguments": {**message["arguments"], "again": True}}
        try:
            return Answer(*detached_calls.ask(host.server, message, pieces, deadline), grows=False)
        except errors.HostUnreachable as error:  # its machine is away, and may come back
            machine = error.details.get("machine")
            if message["name"] not in READING or not machine:
                raise
            patient = patient or host.server.attempts()
            if not patient.wait(f"says that the machine `{printable(str(machine))}` is away"):
                raise
        except ChannelClosed as error:
            if error.reason is not None:
                raise error.reason from error
            if attempt >= ATTEMPTS:
                break
            time.sleep(PAUSE_SECONDS)
    raise errors.HostUnreachable(f"the connection to {host.server.shown} was lost again and again", hint="try again")


def _answer(channel: Channel, deadline: float | None) -> Answer:
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    while True:
        while not channel.pending:
            left = None if deadline is None else 1000 * (deadline - time.monotonic())
            if left is not None and left <= 0:
                raise TimeoutError
            if poll.poll(left):
                channel.fill()
        header = channel.receive().header
        match header.get("type"):
            case "answer":
                found = channel.take_descriptors(1) if header.get("descriptors") else [None]
                return Answer(header["value"], found[0])
            case "failed":
                raise errors.from_data(header.get("error") or {})


def close(answer: Answer) -> None:
    """Close the file of an answer that is not read."""
    if answer.descriptor is not None:
        with suppress(OSError):
            os.close(answer.descriptor)
