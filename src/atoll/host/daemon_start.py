"""A connection to the local daemon, which is started when there is none.

A client without a daemon takes `run/daemon.lock`, looks again, and starts one: of ten scripts that begin together one
does. A daemon of another version of the package is told to take no new clients, and a new one takes its place.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from atoll import __version__, errors, ownership, settings
from atoll.host import daemon_socket
from atoll.settings import Settings
from atoll.wire import nested
from atoll.wire.bounds import CLIENT, NESTED
from atoll.wire.channel import Channel, ChannelClosed, wait_readable
from atoll.wire.frames import FrameError

ATTEMPTS = 5
LOG_BYTES = 8 << 20
"""A daemon's log that is longer is put aside when the next daemon starts."""
START_SECONDS = 30.0
GREETING_SECONDS = 20.0
"""Seconds that a daemon may take to greet; it greets at once unless it is stopped or stuck."""


def open_connection(
    options: Settings, message: dict[str, Any] | None = None, descriptors: Sequence[int] = ()
) -> Channel:
    """Return a channel to the daemon, past the greeting; starts a daemon if there is none.

    Args:
        message, descriptors: sent right behind the greeting, which saves waiting for its answer first.

    Raises:
        HostUnreachable: the daemon does not answer.
        StateUnusable, DiskFull: the state directory cannot be used.
        StateUntrusted: another user can change it, or is the one who listens; nothing was sent.
    """
    if nested.inside():
        return _nested(message, descriptors)
    if sys.platform != "linux":
        raise errors.HostUnreachable(
            "functions run on this machine only where it is Linux", hint='give a server: `host=Host("https://…")`'
        )
    other = ""
    for _ in range(ATTEMPTS):
        try:
            channel = Channel(daemon_socket.connect(options))
        except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
            start(options)
            continue
        except errors.StateUntrusted:
            raise
        except OSError as error:
            raise errors.HostUnreachable(
                f"cannot connect to `{options.socket_path}`: {error}", hint="run `atoll doctor`"
            ) from error
        reply = _greet(channel, message, descriptors)
        if reply is None:
            continue
        if reply.get("type") == "welcome":
            return channel
        if reply.get("type") == "mismatch":
            other = str(reply.get("version", ""))
            replace(options)
            continue
        raise errors.from_data(reply.get("error") or {})
    if other:
        raise other_version(other)
    raise errors.HostUnreachable(
        "the daemon does not answer", hint=f"run `atoll stop`, then see `{options.logs_directory / 'daemon.log'}`"
    )


def other_version(version: str) -> errors.ProtocolMismatch:
    """Return the error for a daemon that is of another version whenever it is started: the package was changed."""
    return errors.ProtocolMismatch(
        f"the installed package is atoll {version[:40]}, and this process is still {__version__}",
        hint="start it again: the package was changed while it ran",
        version=version[:40],
    )


def _nested(message: dict[str, Any] | None, descriptors: Sequence[int]) -> Channel:
    try:
        channel = Channel(nested.connect())
        reply = _greet(channel, message, descriptors)
    except ChannelClosed:
        reply = None
    if reply is None:
        raise errors.HostUnreachable("the daemon has ended", hint="call again from the program")
    if reply.get("type") != "welcome":
        raise errors.from_data(reply.get("error") or {})
    return channel


def _text(message: dict[str, Any]) -> bytes:
    """Return a message as JSON.

    Raises:
        ResourcesUnavailable: it is larger than the daemon takes.
    """
    text = json.dumps(message, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass")
    most = (NESTED if nested.inside() else CLIENT).header_bytes
    if len(text) > most:
        raise errors.ResourcesUnavailable(
            f"the request has {len(text)} bytes, and the daemon takes {most}",
            hint="name fewer requirements, and put large values of `env` into a file below `/data`",
        )
    return text


def _greet(
    channel: Channel,
    message: dict[str, Any] | None = None,
    descriptors: Sequence[int] = (),
    purpose: str = "",
    seconds: float = GREETING_SECONDS,
) -> dict[str, Any] | None:
    """Exchange versions; None when the daemon was just leaving. The channel is closed unless it is welcome."""
    reply: dict[str, Any] | None = None
    try:
        text = None if message is None else _text(message)
        with contextlib.suppress(ChannelClosed):  # it may have answered the greeting and gone before the rest is sent
            channel.send({"type": "hello", "version": __version__, "purpose": purpose})
            if text is not None:
                channel.send(text, descriptors=descriptors)
        channel.socket.settimeout(seconds)
        reply = channel.receive().header
        channel.socket.settimeout(None)
    except TimeoutError:
        raise errors.HostUnreachable(
            f"the daemon has not answered for {seconds:.0f} s", hint="end it with `atoll stop`"
        ) from None
    except (ChannelClosed, OSError):
        pass
    except FrameError as error:
        raise errors.ProtocolMismatch(
            f"the daemon does not speak Atoll's protocol: {error}", hint="end it with `atoll stop`"
        ) from error
    finally:
        if reply is None or reply.get("type") != "welcome":
            channel.close()
    return reply


def control_connection(options: Settings, message: dict[str, Any], seconds: float = GREETING_SECONDS) -> Channel | None:
    """Return a channel to a running daemon of any version, past this message, or None; starts nothing.

    Raises:
        StateUntrusted: as `open_connection`.
    """
    try:
        channel = Channel(daemon_socket.connect(options))
    except errors.StateUntrusted:
        raise
    except OSError:
        return None
    reply = _greet(channel, message, purpose="control", seconds=seconds)
    return channel if reply is not None and reply.get("type") == "welcome" else None


def replace(options: Settings) -> None:
    """Have a daemon of another version take no new clients; it ends with its last one.

    One of this version stays: it has taken the place of the other, for somebody who was faster.
    """
    try:
        channel = Channel(daemon_socket.connect(options))
    except errors.StateUntrusted:
        raise
    except OSError:
        return
    reply = _greet(channel, purpose="control")
    if reply is None or reply.get("type") != "welcome":
        return
    if reply.get("version") != __version__:
        with contextlib.suppress(ChannelClosed, FrameError):
            channel.send({"type": "request", "name": "drain", "arguments": {}})
            channel.receive()
            channel.receive()  # its end: by then the socket is free
    channel.close()


def prepare_home(options: Settings) -> None:
    """Make the state directories, private to their owner.

    Raises:
        StateUntrusted: another user can change them.
        StateUnusable, DiskFull: they cannot be made.
    """
    try:
        with ownership.directory(options.home, make=True) as home:
            if os.fstat(home.descriptor).st_uid != os.geteuid():
                raise errors.StateUnusable(
                    f"`{options.home}` belongs to root", hint="set ATOLL_HOME to a directory of your own"
                )
            with home.enter("logs", make=True), home.enter("run", make=True) as run:
                name = f"probe-{os.getpid()}-{threading.get_ident()}"  # `tempfile` takes 8 ms to import
                probe = run.open(name, os.O_WRONLY | os.O_CREAT)
                try:
                    os.write(probe, b"x")
                finally:
                    os.close(probe)
                    os.unlink(name, dir_fd=run.descriptor)
    except errors.AtollError:
        raise
    except OSError as error:
        raise unusable(options.home, error) from error


def unusable(home: Path, error: OSError) -> errors.OperatorError:
    """Say why the state directory cannot be used."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return errors.DiskFull(f"no space left for `{home}`", hint="free some space, or set ATOLL_HOME elsewhere")
    reason = os.strerror(error.errno) if error.errno else str(error)
    return errors.StateUnusable(
        f"cannot write to `{home}`: {reason.lower()}", hint="set ATOLL_HOME to a directory that you can write"
    )


@contextlib.contextmanager
def _start_lock(options: Settings) -> Iterator[int]:
    """Hold the starters' lock; gives its descriptor, for the daemon to hold it on if its starter is killed."""
    import fcntl

    try:
        with ownership.directory(options.run_directory) as run:
            descriptor = _above_standard(run.open("daemon.lock", os.O_RDWR | os.O_CREAT))
    except errors.StateUntrusted:
        raise
    except OSError as error:
        raise unusable(options.home, error) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def _above_standard(descriptor: int) -> int:
    """Return the descriptor under a number that is not a standard stream's, as where the caller has closed these."""
    import fcntl

    if descriptor > 2:
        return descriptor
    try:
        return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 3)
    finally:
        os.close(descriptor)


def start(options: Settings) -> None:
    """Start a daemon unless one is listening by now.

    Raises:
        StateUnusable, DiskFull: the state directory cannot be used.
        HostUnreachable: the daemon did not come up; the hint names its log.
    """
    from atoll import process

    prepare_home(options)
    log_path = options.logs_directory / "daemon.log"
    with _start_lock(options) as lock:
        try:
            daemon_socket.connect(options).close()
            return
        except errors.StateUntrusted:
            raise
        except OSError:
            pass
        try:
            log = _above_standard(_open_log(options))
        except errors.StateUntrusted:
            raise
        except OSError as error:
            raise unusable(options.home, error) from error
        read, write = map(_above_standard, os.pipe())
        try:
            try:
                command = _command(options, write, lock)
                environment = settings.daemon_environment()
                process.start_detached(command, env=environment, descriptors=[write, lock], log=log)
            finally:
                os.close(log)
                os.close(write)
            answer = _read_ready(read)
        except OSError as error:
            raise errors.HostUnreachable(f"cannot start the daemon: {error}", hint="run `atoll doctor`") from error
        finally:
            os.close(read)
    if answer == "ready":
        return
    if answer.startswith("{"):
        raise errors.from_data(json.loads(answer))
    raise errors.HostUnreachable("the daemon did not start", hint=f"see `{log_path}`")


def _open_log(options: Settings) -> int:
    """Open the daemon's log for writing; one that has become long is put aside, in place of the one before it."""
    with ownership.directory(options.logs_directory) as logs:
        descriptor = logs.open("daemon.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        if os.fstat(descriptor).st_size <= LOG_BYTES:
            return descriptor
        os.close(descriptor)
        with contextlib.suppress(OSError):
            os.replace("daemon.log", "daemon.log.1", src_dir_fd=logs.descriptor, dst_dir_fd=logs.descriptor)
        return logs.open("daemon.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)


def _command(options: Settings, ready: int, lock: int) -> list[str]:
    package = str(Path(__file__).parents[2])
    # without collections while it imports: they take a tenth of the time, and find nothing
    # asyncio does without `ssl`, whose import takes 7 ms; the daemon speaks to Unix sockets
    code = f"import gc, sys; gc.disable(); sys.modules['ssl'] = None; import asyncio; del sys.modules['ssl']; sys.path.insert(0, {package!r}); from atoll.daemon.main import main; sys.exit(main())"
    if not sys.executable:
        raise errors.HostUnreachable("this Python does not know its own program", hint="run it as `python`")
    return [sys.executable, "-P", "-c", code, str(options.home), str(ready), str(lock)]


def _read_ready(descriptor: int) -> str:
    pieces = []
    while wait_readable(descriptor, START_SECONDS):
        data = os.read(descriptor, 65536)
        if not data:
            break
        pieces.append(data)
    return b"".join(pieces).decode()
