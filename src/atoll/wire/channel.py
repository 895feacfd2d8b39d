"""Frames over a Unix socket, file descriptors included; blocking.

A socket's name has at most 107 bytes while `ATOLL_HOME` may be longer: `connect` and `listen` go through the
directory's descriptor (`/proc/self/fd`), so that only the last component counts.
"""

from __future__ import annotations

import _socket  # not `socket`: its enumerations would cost every cold start 3 ms
import array
import contextlib
import errno
import os
import sys
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from atoll.wire.frames import MAX_BUFFER_BYTES, Decoder, FrameError, Header, Message, encode

if TYPE_CHECKING:
    from atoll.errors import AtollError

Socket = _socket.socket
"""The type of the channels' sockets; `socket.socket` is a subclass of it."""

MAX_DESCRIPTORS = 16
MAX_PENDING_DESCRIPTORS = 256
"""Descriptors that may arrive before their messages have been read."""

_IOV_MAX = 512
_SPACE = (
    _socket.CMSG_SPACE(MAX_DESCRIPTORS * 4) + _socket.CMSG_SPACE(12) + _socket.CMSG_SPACE(4)
    if hasattr(_socket, "CMSG_SPACE")
    else 0
)
_limit_raised = threading.Lock()
"""Is held while this process's limit of descriptors is a higher one."""
_SCM_CREDENTIALS, _SCM_PIDFD = 2, 4  # <linux/socket.h>
_SO_PASSCRED, _SO_PASSPIDFD = 16, 76  # <asm-generic/socket.h>; the second from Linux 6.5 on


class ChannelClosed(ConnectionError):
    """The peer has closed the channel, or it broke in the middle of a frame.

    Args:
        reason: the caller's error, where the other end has given one.
    """

    def __init__(self, message: str = "", reason: AtollError | None = None) -> None:
        super().__init__(message)
        self.reason = reason


def write_pieces(sock: Socket, pieces: list[Any]) -> None:
    """Write all pieces of a frame to a blocking socket."""
    if len(pieces) == 1:
        sock.sendall(pieces[0])
        return
    views = [memoryview(piece).cast("B") for piece in pieces]
    first = 0
    while first < len(views):
        sent = sock.sendmsg(views[first : first + _IOV_MAX])
        while first < len(views) and sent >= views[first].nbytes:
            sent -= views[first].nbytes
            first += 1
        if sent:
            views[first] = views[first][sent:]


def _send_descriptors(sock: Socket, data: memoryview, descriptors: Sequence[int]) -> int:
    """Send data with copies of descriptors; return how many bytes were sent.

    Where too many of this user's descriptors wait in sockets, all that this process may have open are allowed to.
    """
    rights = (_socket.SOL_SOCKET, _socket.SCM_RIGHTS, array.array("i", descriptors))
    try:
        return sock.sendmsg([data], [rights])
    except OSError as error:
        if error.errno != errno.ETOOMANYREFS:
            raise
    import resource

    with _limit_raised:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        try:
            return sock.sendmsg([data], [rights])
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def take_first(messages: list[Message], kind: str) -> Message | None:
    """Remove and return the first message of this type, ahead of others; None for none."""
    for position, message in enumerate(messages):
        if message.type == kind:
            return messages.pop(position)
    return None


class Channel:
    """One end of a stream of frames.

    Sending is safe from several threads; receiving belongs to one thread at a time. The channel owns its socket
    and the descriptors that it has received and that nobody has taken yet.
    """

    max_pending_descriptors = MAX_PENDING_DESCRIPTORS

    def __init__(self, sock: Socket, max_buffer_bytes: int = MAX_BUFFER_BYTES) -> None:
        self.socket = sock
        self.descriptors: list[int] = []
        self.receive_flags: int = getattr(_socket, "MSG_CMSG_CLOEXEC", 0)
        self.sender_pid = 0
        """The pid, in this process's namespace, of who sent the last bytes; 0 unless `learn_sender` was called."""
        self.sender_pidfd = -1
        """A pidfd of that process where the kernel gives one (Linux 6.5); -1 else. The channel owns it."""
        self._decoder = Decoder(max_buffer_bytes)
        self._sending = threading.Lock()

    def fileno(self) -> int:
        return self.socket.fileno()

    def learn_sender(self) -> None:
        """Have the kernel name the sender: for peers that live in a pid namespace of their own."""
        self._ask_sender(1)

    def forget_sender(self) -> None:
        """Ask the kernel for senders no longer, and close the last one's pidfd."""
        self._ask_sender(0)
        self._drop_sender()

    def _ask_sender(self, wanted: int) -> None:
        self.socket.setsockopt(_socket.SOL_SOCKET, _SO_PASSCRED, wanted)
        with contextlib.suppress(OSError):  # an older kernel
            self.socket.setsockopt(_socket.SOL_SOCKET, _SO_PASSPIDFD, wanted)

    def _drop_sender(self) -> None:
        pidfd, self.sender_pidfd = self.sender_pidfd, -1
        if pidfd >= 0:
            os.close(pidfd)

    def send(self, header: Header, buffers: Sequence[Any] = (), descriptors: Sequence[int] = ()) -> None:
        """Send one message; `descriptors` are duplicated to the peer and stay open here.

        Raises:
            ChannelClosed: the peer is gone.
            FrameError: the message is too large for a frame.
        """
        self._write(encode(header, buffers), descriptors)

    def _write(self, pieces: list[Any], descriptors: Sequence[int] = ()) -> None:
        try:
            with self._sending:
                if descriptors:
                    first = memoryview(pieces[0])
                    pieces[0] = first[_send_descriptors(self.socket, first, descriptors) :]
                    if not pieces[0] and len(pieces) == 1:
                        return  # a peer that needs nothing more may have closed its end by now
                write_pieces(self.socket, pieces)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise ChannelClosed("the peer has closed the channel") from error

    def send_many(self, messages: Sequence[tuple[Header, Sequence[Any]]]) -> None:
        """Send small messages with one write.

        Raises:
            ChannelClosed: the peer is gone.
            FrameError: a message is too large for a frame.
        """
        data = b"".join(piece for header, buffers in messages for piece in encode(header, buffers))
        try:
            with self._sending:
                self.socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise ChannelClosed("the peer has closed the channel") from error

    def receive(self) -> Message:
        """Wait for the next message; descriptors that came with it are in `descriptors`, in order.

        Raises:
            ChannelClosed: the stream has ended.
            FrameError: the peer sent something else than frames.
        """
        decoder = self._decoder
        while not decoder.messages:
            self._fill()
        return decoder.messages.pop(0)

    @property
    def messages(self) -> list[Message]:
        """The messages that have come and that `receive` has not returned; always the same list."""
        return self._decoder.messages

    @property
    def local(self) -> bool:
        """True between processes of one machine, where no compression pays."""
        return bool(self.socket.family == getattr(_socket, "AF_UNIX", -1))

    @property
    def pending(self) -> bool:
        """True if `receive` would return at once, without reading."""
        return bool(self._decoder.messages)

    def take(self, kind: str) -> Message | None:
        """Return the first message of this type that has come, ahead of others; None for none."""
        return take_first(self._decoder.messages, kind)

    def readable(self) -> bool:
        """Return whether the peer has sent something that `receive` has not returned, or has gone."""
        return self.wait(0.0)

    def wait(self, seconds: float) -> bool:
        """Wait until `readable` is true; return whether it is."""
        return self.pending or wait_readable(self.socket.fileno(), seconds)

    @property
    def between_messages(self) -> bool:
        """True if no message, whole or in part, waits for `receive`."""
        return not self._decoder.messages and self._decoder.between_messages

    def _fill(self) -> int:
        decoder = self._decoder
        try:
            count, ancillary, _, _ = self.socket.recvmsg_into([decoder.space()], _SPACE, self.receive_flags)
        except ConnectionResetError as error:
            raise ChannelClosed("the peer has closed the channel") from error
        if ancillary:
            self._take_ancillary(ancillary)
        if count == 0:
            raise ChannelClosed("the peer has closed the channel")
        decoder.wrote(count)
        if decoder.beside or decoder.new_rings:
            self._received()
        return count

    def _take_ancillary(self, ancillary: list[tuple[int, int, bytes]]) -> None:
        for level, kind, data in ancillary:
            if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS:
                received = array.array("i")
                received.frombytes(data[: len(data) - len(data) % received.itemsize])
                self.descriptors.extend(received)
                if len(self.descriptors) > self.max_pending_descriptors:
                    self.drop_descriptors()
                    raise FrameError("more descriptors came than messages use")
            elif level == _socket.SOL_SOCKET and kind == _SCM_CREDENTIALS:
                self.sender_pid = int.from_bytes(data[:4], sys.byteorder)
            elif level == _socket.SOL_SOCKET and kind == _SCM_PIDFD:
                self._drop_sender()
                self.sender_pidfd = int.from_bytes(data[:4], sys.byteorder, signed=True)  # an error where it has ended

    def _received(self) -> None:
        """Fetch buffers beside the stream; plain channels have none."""

    def fill(self) -> bool:
        """Read once from the readable socket; return whether a message is complete."""
        self._fill()
        return bool(self._decoder.messages)

    def read(self) -> int:
        """Read once from the readable socket; return how many bytes came."""
        return self._fill()

    def take_descriptors(self, count: int) -> list[int]:
        """Return the oldest `count` received descriptors; the caller owns them.

        Raises:
            ChannelClosed: fewer have come.
        """
        if len(self.descriptors) < count:
            raise ChannelClosed(f"{count} descriptors were announced and {len(self.descriptors)} came")
        taken, self.descriptors = self.descriptors[:count], self.descriptors[count:]
        return taken

    def drop_descriptors(self) -> None:
        """Close the descriptors that came and that nobody has taken."""
        for descriptor in self.descriptors:
            with contextlib.suppress(OSError):
                os.close(descriptor)
        self.descriptors = []

    def close(self) -> None:
        self.socket.close()
        self.drop_descriptors()
        self._drop_sender()


def wait_readable(descriptor: int, seconds: float = 0.0) -> bool:
    """Wait until there is something to read, or the other end has gone; return whether that is so.

    Any descriptor will do: `select.select` takes none above 1,023.
    """
    import select

    if not hasattr(select, "poll"):  # Windows, where descriptors of sockets have no such bound
        return bool(select.select([descriptor], [], [], seconds)[0])
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(round(seconds * 1000)))


@contextlib.contextmanager
def short_name(path: str | os.PathLike[str]) -> Any:
    """Give a short enough name for the Unix socket `path`, for directories of any length."""
    directory, name = os.path.split(os.fspath(path))
    descriptor = os.open(directory or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{name}"
    finally:
        os.close(descriptor)


def connect(path: str | os.PathLike[str]) -> Socket:
    """Connect to the Unix socket at `path`, of any length.

    Raises:
        OSError: nobody listens there.
    """
    with short_name(path) as name:
        return _connect(name)


def connect_below(directory: int, name: str) -> Socket:
    """Connect to the Unix socket of this name in an open directory.

    Raises:
        OSError: nobody listens there.
    """
    return _connect(f"/proc/self/fd/{directory}/{name}")


def _connect(name: str) -> Socket:
    sock = Socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        sock.connect(name)
    except BaseException:
        sock.close()
        raise
    return sock


def pair() -> tuple[Socket, Socket]:
    """Return two connected stream sockets."""
    return _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM)
