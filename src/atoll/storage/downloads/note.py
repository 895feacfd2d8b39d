"""The notes of downloads: what is known of each place, and the lock of who works on it. See `storage.downloads`."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Iterator
from typing import Any

from atoll.storage.downloads.http import Validators

SHELF = ".cache/atoll/downloads"
PIECE_BYTES = 256 << 10
_MAX_NOTE_BYTES = 1 << 16


class Note:
    """What is known of one place; its file is locked as long as this lives.

    Args:
        descriptor: the file, open and locked.
        part: where what arrives is written.
    """

    def __init__(self, descriptor: int, part: str) -> None:
        self._descriptor = descriptor
        self.part = part
        self.kept: dict[str, Any] = {}
        self.partial: dict[str, Any] = {}
        self.failed: dict[str, Any] = {}
        try:
            data = json.loads(os.pread(descriptor, _MAX_NOTE_BYTES, 0))
            kept, partial, failed = data["kept"], data["partial"], data["failed"]
            if kept and not (isinstance(kept["source"], str) and kept["digests"]["sha256"] and len(kept["stamp"]) == 4):
                raise ValueError
            if partial and not (isinstance(partial["durable"], int) and isinstance(partial["boot"], str)):
                raise ValueError
            Validators(**partial.get("validators", {}))
            if failed and not (isinstance(failed["at"], float) and isinstance(failed["error"], dict)):
                raise ValueError
            float(kept.get("began", 0.0))
            self.kept, self.partial, self.failed = kept, partial, failed
        except (ValueError, KeyError, TypeError, AttributeError):
            pass  # new, or torn by a loss of power: nothing is known

    def save(self) -> None:
        """Write it; who reads it has the lock, so it need not be replaced."""
        content = json.dumps({"kept": self.kept, "partial": self.partial, "failed": self.failed}).encode()
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, content, 0)


@contextlib.contextmanager
def hold_note(root: str, path: str) -> Iterator[Note]:
    """Hold the note of a place, alone."""
    import fcntl

    directory = f"{root}/{SHELF}/.notes"
    make_directories(directory)
    base = f"{directory}/{hashlib.sha256(path.encode('utf-8', 'surrogateescape')).hexdigest()[:32]}"
    while True:
        descriptor = os.open(f"{base}.json", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.stat(f"{base}.json")):
                    break
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # somebody has cleared the cache meanwhile
        make_directories(directory)
    try:
        yield Note(descriptor, f"{base}.part")
    finally:
        os.close(descriptor)


class Hashes:
    """Digests of a file from its beginning up to where it has come."""

    def __init__(self, names: set[str]) -> None:
        self._names = sorted(names)
        self._start()

    def _start(self) -> None:
        self._hashes = {name: hashlib.new(name, usedforsecurity=False) for name in self._names}
        self._offset = 0

    def update(self, piece: bytes) -> None:
        """Take in what follows."""
        for one in self._hashes.values():
            one.update(piece)
        self._offset += len(piece)

    def reach(self, descriptor: int, offset: int) -> None:
        """Be at `offset` of a file, whatever has been taken in before."""
        if self._offset != offset:
            self._start()
        while self._offset < offset:
            piece = os.pread(descriptor, min(PIECE_BYTES, offset - self._offset), self._offset)
            if not piece:
                raise OSError(errno.EIO, "what has arrived cannot be read again")
            self.update(piece)

    def digests(self) -> dict[str, str]:
        """Return the digests in hexadecimal."""
        return {name: one.hexdigest() for name, one in self._hashes.items()}


def digests_of(path: str, names: set[str]) -> dict[str, str]:
    """Return digests of a file by algorithm, in hexadecimal."""
    hashes = Hashes(names)
    with open(path, "rb") as file:
        while piece := file.read(PIECE_BYTES):
            hashes.update(piece)
    return hashes.digests()


def boot() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip()
    except OSError:
        return ""


def make_directories(path: str) -> list[str]:
    """Make a directory and those above it; return the directories whose names must be made durable."""
    changed = [path]
    missing = []
    while not os.path.isdir(path):
        missing.append(path)
        path = os.path.dirname(path)
        changed.append(path)
    for one in reversed(missing):
        with contextlib.suppress(FileExistsError):
            os.mkdir(one, 0o755)
    return changed
