"""Notes of downloads: the record and the lock of each target path; used by `downloads.download`."""

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
    """Record of one target path; its file stays locked while this exists.

    Args:
        descriptor: the file, open and locked.
        part: path of the received content.
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
            pass  # new, or torn by a power loss: start afresh

    def save(self) -> None:
        """Write the note in place: every reader holds the lock."""
        content = json.dumps({"kept": self.kept, "partial": self.partial, "failed": self.failed}).encode()
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, content, 0)


@contextlib.contextmanager
def hold_note(root: str, path: str) -> Iterator[Note]:
    """Hold the note of a target path exclusively."""
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
        os.close(descriptor)  # the cache was cleared meanwhile
        make_directories(directory)
    try:
        yield Note(descriptor, f"{base}.part")
    finally:
        os.close(descriptor)


class Hashes:
    """Running digests of a file's first bytes."""

    def __init__(self, names: set[str]) -> None:
        self._names = sorted(names)
        self._start()

    def _start(self) -> None:
        self._hashes = {name: hashlib.new(name, usedforsecurity=False) for name in self._names}
        self._offset = 0

    def update(self, piece: bytes) -> None:
        """Hash the next piece."""
        for one in self._hashes.values():
            one.update(piece)
        self._offset += len(piece)

    def reach(self, descriptor: int, offset: int) -> None:
        """Hash a file up to `offset`, from its start where needed."""
        if self._offset != offset:
            self._start()
        while self._offset < offset:
            piece = os.pread(descriptor, min(PIECE_BYTES, offset - self._offset), self._offset)
            if not piece:
                raise OSError(errno.EIO, "the received part cannot be read again")
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
