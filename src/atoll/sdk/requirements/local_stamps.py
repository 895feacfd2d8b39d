"""Stamps of local paths in requirements, by which a call notices an edit and asks for the environment again.

A stamp stands as a comment behind its entry: the daemon drops it, and keys the environment by contents. A tree is looked
at once a second at most.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator

from atoll import file_stamp
from atoll.blake2 import blake2b

LOOK_SECONDS = 1.0
MOST_FILES = 20_000
"""Of a larger tree, edits beyond these are noticed by the next process."""
_PATH = re.compile(r"(?:-e )?(/[^\s\[;]*)|(?:[^/]*@ )?(git\+)?file://(/[^\s@#;]*).*")
_known: dict[str, tuple[float, str]] = {}
_MOST_KNOWN = 256


def stamped(entry: str) -> str:
    """Return an entry with the stamp of its local path; other entries as they are."""
    match = _PATH.match(entry)
    if match is None:
        return entry
    path = match[1] or match[3]
    known = _known.get(entry)
    now = time.monotonic()
    if known is None or now - known[0] >= LOOK_SECONDS:
        if len(_known) >= _MOST_KNOWN:
            _known.clear()
        known = _known[entry] = now, _stamp(path, repository=bool(match[2]))
    return f"{entry} #{known[1]}"


def holds_path(entry: str) -> bool:
    """Return whether an entry, with absolute paths, names a local path."""
    return entry.startswith(("/", "-e /")) or "file:///" in entry


def _stamp(path: str, *, repository: bool) -> str:
    digest = blake2b(digest_size=8)
    for number, file in enumerate(_references(path) if repository else _files(path)):
        if number >= MOST_FILES:
            break
        digest.update(f"{file}\0{file_stamp.take(file)}\0".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _references(path: str) -> Iterator[str]:
    git = os.path.join(path, ".git")
    git = git if os.path.isdir(git) else path
    yield from (os.path.join(git, name) for name in ("HEAD", "packed-refs"))
    yield from _files(os.path.join(git, "refs"))


def _files(path: str) -> Iterator[str]:
    if not os.path.isdir(path):
        yield path
        return
    from atoll.environments.asked.local_sources import skipped  # only for trees

    for directory, inner, names in os.walk(path):
        inner[:] = sorted(name for name in inner if not skipped(name))
        yield from (os.path.join(directory, name) for name in sorted(names) if not skipped(name))
