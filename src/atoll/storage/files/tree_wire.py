"""The encoding of trees and lists of paths for messages of a sync and for indexes: columns, and one text of names.

A million entries are a few buffers that are checked as a whole instead of a million small objects. Integers are
little-endian.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Iterable, Iterator
from itertools import pairwise

from atoll.storage.files.tree import MODE_BITS, SYMLINK, Entry, Tree

_HEAD = struct.Struct("<III")
_BATCH = 100_000
_KINDS = b"fdls"
_REFUSED = ("\0/", "/\0", "//", "/./", "/../", "\0./", "\0../", "/.\0", "/..\0", "\0.\0", "\0..\0")
"""Parts that a list of valid paths never has: absolute paths, and components that are empty, `.` or `..`."""


def to_bytes(numbers: array[int]) -> bytes:
    """Return an array's bytes, little-endian."""
    if sys.byteorder == "big":
        numbers = numbers[:]
        numbers.byteswap()
    return numbers.tobytes()


def from_bytes(kind: str, data: bytes | bytearray | memoryview) -> array[int]:
    """Return the array from the bytes of `to_bytes`.

    Raises:
        ValueError: the length does not fit.
    """
    numbers = array(kind)
    numbers.frombytes(data)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers


def pack_names(names: Iterable[str]) -> bytes:
    """Join names, none of which holds NUL."""
    return "\0".join(names).encode("utf-8", "surrogateescape")


def unpack_names(data: bytes | bytearray | memoryview, count: int) -> list[str]:
    """Return the names that `pack_names` joined.

    Raises:
        ValueError: they are not `count`.
    """
    names = str(data, "utf-8", "surrogateescape").split("\0") if count else []
    if len(names) != count or (not count and len(data)):
        raise ValueError("the number of paths differs from the count that was sent")
    return names


def pack_paths(paths: Iterable[str]) -> bytes:
    """Turn paths into one buffer; `unpack_paths` takes it back."""
    listed = list(paths)
    return struct.pack("<I", len(listed)) + pack_names(listed)


def unpack_paths(data: bytes | bytearray | memoryview) -> list[str]:
    """Return the paths of one buffer.

    Raises:
        ValueError: it is malformed, or one of them is not a path inside a tree.
    """
    view = memoryview(data)
    if len(view) < 4:
        raise ValueError("a list of paths is cut short")
    (count,) = struct.unpack_from("<I", view)
    return _checked(unpack_names(view[4:], count))


def pack_entries(tree: Tree) -> Iterator[bytes]:
    """Turn a tree into buffers of bounded size; `unpack_entries` takes one back."""
    items = list(tree.items())
    for start in range(0, len(items), _BATCH):
        paths, entries = zip(*items[start : start + _BATCH], strict=True)
        kinds, modes, sizes, times, targets = zip(*entries, strict=True)
        names = pack_names(paths)
        links = pack_names(target for kind, target in zip(kinds, targets, strict=True) if kind == SYMLINK)
        yield b"".join([
            _HEAD.pack(len(paths), len(names), len(links)),
            names,
            links,
            "".join(kinds).encode("ascii"),
            to_bytes(array("H", modes)),
            to_bytes(array("q", sizes)),
            to_bytes(array("q", times)),
        ])  # fmt: skip


def unpack_entries(data: bytes | bytearray | memoryview) -> Tree:
    """Return the part of a tree that one buffer holds.

    Raises:
        ValueError: it is malformed, or a path or a value cannot be one of a tree.
    """
    view = memoryview(data)
    if len(view) < _HEAD.size:
        raise ValueError("a tree is cut short")
    count, names_bytes, links_bytes = _HEAD.unpack_from(view)
    ends = [_HEAD.size]
    for width in (names_bytes, links_bytes, count, 2 * count, 8 * count, 8 * count):
        ends.append(ends[-1] + width)
    if ends[-1] != len(view):
        raise ValueError("the length of a tree differs from the length that it announces")
    parts = [view[start:end] for start, end in pairwise(ends)]
    paths = _checked(unpack_names(parts[0], count))
    kinds = bytes(parts[2])
    modes, sizes, times = from_bytes("H", parts[3]), from_bytes("q", parts[4]), from_bytes("q", parts[5])
    if kinds.translate(None, _KINDS) or (count and (max(modes) > MODE_BITS or min(sizes) < 0)):
        raise ValueError("an entry of a tree is malformed")
    links = iter(unpack_names(parts[1], kinds.count(b"l")))
    targets = [next(links) if kind == _LINK else "" for kind in kinds] if b"l" in kinds else [""] * count
    make = Entry._make
    return dict(
        zip(paths, map(make, zip(kinds.decode("ascii"), modes, sizes, times, targets, strict=True)), strict=True)
    )


_LINK = ord(SYMLINK)


def _checked(paths: list[str]) -> list[str]:
    """Check that all are paths inside a tree; the empty one, the root, may be the first."""
    text = "\0" + "\0".join(paths[1:] if paths[:1] == [""] else paths) + "\0"
    if text != "\0\0" and ("\0\0" in text or any(refused in text for refused in _REFUSED)):
        raise ValueError("a received path is not inside a tree")
    return paths
