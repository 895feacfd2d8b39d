"""A disk that remembers every write and every flush, in their order, so that a power cut can be tried at each of them.

One file is served through the kernel's FUSE protocol on /dev/fuse (<linux/fuse.h>, version 7.31; no library is needed
for a file system of one file), a loop device is attached to it, and a real file system made on that. What the block
layer writes comes here one request at a time, and a flush of the device (what a journal's commit waits for) as FSYNC.
Linux promises that what was written before a flush that has succeeded is there after a power cut; of what was written
later, anything may be. So `crashed` gives, for a moment of the log, the disk with all writes up to it, with those up
to the last flush only, or with any of those in between, in pieces of a sector.

The server is a process of its own. Needs root.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import random
import secrets
import select
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

MAX_WRITE = 1 << 20
SECTOR = 4096
"""What a disk writes whole or not at all: ext4 cannot mount a superblock (1 KiB) that was torn."""
_HEADER = struct.Struct("<IIQQIIII")
_ANSWER = struct.Struct("<IiQ")
_LOOKUP, _FORGET, _GETATTR, _SETATTR, _OPEN, _READ, _WRITE, _RELEASE = 1, 2, 3, 4, 14, 15, 16, 18
_FSYNC, _FLUSH, _INIT, _INTERRUPT, _BATCH_FORGET = 20, 25, 26, 36, 42
_SILENT = (_FORGET, _BATCH_FORGET, _INTERRUPT)


class Event(NamedTuple):
    """Something that happened to the disk.

    Args:
        kind: `write`, `flush` or `mark`.
        offset: where was written.
        content: what; or the mark's text.
    """

    kind: str
    offset: int = 0
    content: bytes = b""


def _serve(device: int, control: socket.socket, image: bytearray, log: str) -> None:
    """Answer the kernel until it unmounts; append marks when the other end of `control` sends them."""
    buffer = bytearray(MAX_WRITE + (1 << 16))
    view = memoryview(buffer)
    waiting: list[Any] = [device, control]
    with open(log, "wb", buffering=1 << 20) as file:
        while True:
            for ready in select.select(waiting, [], [])[0]:
                if ready is control:
                    text = control.recv(1000)
                    if not text:
                        return
                    file.write(struct.pack("<cQI", b"m", 0, len(text)) + text)
                    file.flush()
                    control.send(b".")
                    continue
                try:
                    length = os.readv(device, [buffer])
                except OSError as error:
                    if error.errno == errno.ENODEV:
                        return
                    continue
                _, code, unique, *_ = _HEADER.unpack_from(buffer)
                if code in _SILENT:
                    continue
                body = view[_HEADER.size : length]
                number, answer = 0, b""
                if code == _INIT:
                    flags = 1 | 1 << 5 | 1 << 22  # asynchronous reads, big writes, max_pages
                    answer = struct.pack(
                        "<IIIIHHIIHHI7I", 7, 31, 1 << 17, flags, 12, 9, MAX_WRITE, 1, 256, 0, 0, *([0] * 7)
                    )
                elif code in (_GETATTR, _SETATTR):
                    size = len(image)
                    answer = struct.pack(
                        "<QII6Q10I", 0, 0, 0, 1, size, size // 512, 0, 0, 0, 0, 0, 0, 0o100600, 1, 0, 0, 0, 4096, 0
                    )
                elif code == _OPEN:
                    answer = struct.pack("<QII", 0, 1, 0)  # without the page cache
                elif code == _READ:
                    offset, size = struct.unpack_from("<QI", body, 8)
                    answer = bytes(image[offset : offset + size])
                elif code == _WRITE:
                    offset, size = struct.unpack_from("<QI", body, 8)
                    content = body[40 : 40 + size]
                    image[offset : offset + size] = content
                    file.write(struct.pack("<cQI", b"w", offset, size))
                    file.write(content)
                    answer = struct.pack("<II", size, 0)
                elif code == _FSYNC:
                    file.write(struct.pack("<cQI", b"f", 0, 0))
                elif code not in (_FLUSH, _RELEASE):
                    number = -errno.ENOSYS
                with contextlib.suppress(FileNotFoundError):  # the request was given up
                    os.writev(device, [_ANSWER.pack(_ANSWER.size + len(answer), number, unique), answer])


class RecordedDisk:
    """A file system on a disk that is recorded.

    Args:
        place: an empty directory for what is needed; not on the recorded disk.
        size: bytes of the disk.

    Attributes:
        mounted: where the file system is.
        blank: the disk as it was when recording began.
    """

    def __init__(self, place: Path, size: int, make: tuple[str, ...]) -> None:
        self._stack = contextlib.ExitStack()
        self._log = str(place / "log")
        self.mounted = place / "mounted"
        self.mounted.mkdir()
        served, source = place / "served", place / "blank"
        served.touch()
        with source.open("wb") as file:
            file.truncate(size)
        subprocess.run([*make, str(source)], check=True, capture_output=True)
        self.blank = source.read_bytes()
        try:
            self._start(served)
        except BaseException:
            self.close()
            raise

    def _start(self, served: Path) -> None:
        device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._stack.callback(self._control.close)
        options = f"fd={device},rootmode=100600,user_id=0,group_id=0,allow_other".encode()
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mount(b"recorded", os.fsencode(served), b"fuse.recorded", 0, options) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), "/dev/fuse")
        self._stack.callback(_run, "umount", "-l", str(served))
        pid = os.fork()
        if not pid:
            try:
                self._control.close()
                _serve(device, theirs, bytearray(self.blank), self._log)
            finally:
                os._exit(0)
        self._stack.callback(os.waitpid, pid, 0)
        self._stack.callback(self._control.close)
        os.close(device)
        theirs.close()
        loop = _run("losetup", "--find", "--show", str(served)).strip()
        self._stack.callback(_run, "losetup", "--detach", loop)
        _run("mount", loop, str(self.mounted))
        self._stack.callback(_run, "umount", str(self.mounted))

    def mark(self, text: str) -> None:
        """Put a mark into the log: what was written before is before it."""
        self._control.send(text.encode())
        self._control.recv(1)

    def close(self) -> list[Event]:
        """Unmount, detach and end all; return the log."""
        self._stack.close()
        return list(_read(Path(self._log)))


def _read(log: Path) -> Iterator[Event]:
    kinds = {b"w": "write", b"f": "flush", b"m": "mark"}
    with log.open("rb") as file:
        while header := file.read(13):
            kind, offset, length = struct.unpack("<cQI", header)
            yield Event(kinds[kind], offset, file.read(length))


def _run(*command: str) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise OSError(f"`{command[0]}` failed: {done.stderr.strip()}")
    return done.stdout


def crashed(
    blank: bytes, log: list[Event], moments: list[int], dice: random.Random
) -> Iterator[tuple[int, str, bytearray]]:
    """Give what the disk may hold after a power cut, for each of these numbers of events, in their order.

    Yields:
        the number of events before the cut, which way of losing writes it is, and the disk; valid until the next.
    """
    flushed, seen, flushes = bytearray(blank), 0, 0
    for moment in sorted(moments):
        # `flushed` holds what is certain: all up to the last flush before the moment.
        last = max((number for number in range(seen, moment) if log[number].kind == "flush"), default=-1)
        if last >= 0:
            _write(flushed, log[flushes:last])
            flushes = last + 1
        seen = max(seen, flushes)
        late = [event for event in log[flushes:moment] if event.kind == "write"]
        disk = bytearray(flushed)
        _write(disk, late)
        yield moment, "all", disk
        if not late:
            continue
        yield moment, "none", bytearray(flushed)
        for _ in range(2):
            disk = bytearray(flushed)
            _write(disk, [event for event in late if dice.random() < 0.5])
            yield moment, "some", disk
        disk = bytearray(flushed)
        for event in late:
            for start in range(0, len(event.content), SECTOR):
                if dice.random() < 0.5:
                    piece = event.content[start : start + SECTOR]
                    disk[event.offset + start : event.offset + start + len(piece)] = piece
        yield moment, "torn", disk


def _write(disk: bytearray, events: list[Event]) -> None:
    for event in events:
        if event.kind == "write":
            disk[event.offset : event.offset + len(event.content)] = event.content


@contextlib.contextmanager
def mounted(disk: bytearray, place: Path) -> Iterator[Path]:
    """Mount a disk, as it would be after a restart; what is written to it is lost afterwards."""
    # A file of its own each time: a loop device that is still attached to the last one would be used again, with what
    # it remembers of that.
    image, where = place / f"image-{secrets.token_hex(8)}", place / "after"
    where.mkdir(exist_ok=True)
    image.write_bytes(disk)
    try:
        _run("mount", "-o", "loop", str(image), str(where))
        try:
            yield where
        finally:
            _run("umount", str(where))
    finally:
        image.unlink()


def available() -> str:
    """Say why disks cannot be recorded here; empty where they can."""
    if os.geteuid() != 0:
        return "needs root"
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "there is no /dev/fuse"
    if not os.path.exists("/dev/loop-control"):
        return "there are no loop devices"
    return ""
