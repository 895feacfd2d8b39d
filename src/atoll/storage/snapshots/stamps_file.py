"""Stamps of live files at the moment of a snapshot, in a file with a line of text for each directory.

A line is the directory's path, a tab, and an object of name to stamp, both as JSON, in which no tab occurs. A reader
keeps where each line begins, so that a volume of a million files does not take the memory of a million stamps.
"""

from __future__ import annotations

import contextlib
import json
import os
from typing import Any

from atoll.file_stamp import Stamp

_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=True).encode


class StampWriter:
    """Write stamps to a new file.

    Args:
        directory, name: of the file; the directory is open and private to peers.
    """

    def __init__(self, directory: int, name: str) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._file = os.fdopen(os.open(name, flags, 0o600, dir_fd=directory), "w", encoding="ascii")

    def add(self, path: str, stamps: dict[str, Stamp]) -> None:
        """Add the stamps of the files in one directory, by name."""
        self._file.write(f"{_encode(path)}\t{_encode(stamps)}\n")

    def close(self, *, durable: bool = False) -> None:
        """Close the file; with `durable`, after its content is on disk."""
        if durable:
            self._file.flush()
            os.fsync(self._file.fileno())
        self._file.close()


class StampReader:
    """Read the file of a `StampWriter`; a damaged or missing file has no stamps.

    Args:
        directory, name: of the file.
        below: a directory of the tree; paths are relative to it.
    """

    def __init__(self, directory: int, name: str, below: str = "") -> None:
        self._lines: dict[str, int] = {}
        self._file = None
        try:
            self._file = os.fdopen(os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory), "rb")
        except FileNotFoundError:
            return
        at = 0
        for line in self._file:
            with contextlib.suppress(ValueError):
                path = json.loads(line.partition(b"\t")[0])
                if not below:
                    self._lines[path] = at
                elif path == below or path.startswith(f"{below}/"):
                    self._lines[path[len(below) + 1 :]] = at
            at += len(line)

    def of(self, path: str) -> dict[str, Stamp]:
        """Return the stamps of the files in one directory, by name."""
        at = self._lines.get(path)
        if at is None or self._file is None:
            return {}
        self._file.seek(at)
        try:
            found: Any = json.loads(self._file.readline().partition(b"\t")[2])
            return {name: (int(a), int(b), int(c), int(d)) for name, (a, b, c, d) in found.items()}
        except (ValueError, TypeError, AttributeError):
            return {}

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
