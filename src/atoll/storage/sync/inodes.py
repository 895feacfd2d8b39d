"""Which inode stands at each path, as text that fits into a record: what a switch remembers of the tree it replaces.

    inode    the file there is in the new tree too, or has been brought to it: it needs nothing more
    0        what is there is another one in the new tree, or in neither, as the sync wanted it

A file that has another inode now, and one whose path is not there, came later.
"""

from __future__ import annotations

import base64
import struct
import zlib
from array import array
from collections.abc import Mapping

from atoll.storage.files.tree_wire import from_bytes, pack_names, to_bytes, unpack_names

_COUNT = struct.Struct("<I")
_WIDTH = 8


def pack_inodes(inodes: Mapping[str, int]) -> str:
    """Return the text; `unpack_inodes` takes it back."""
    data = _COUNT.pack(len(inodes)) + to_bytes(array("Q", inodes.values())) + pack_names(inodes)
    return base64.b64encode(zlib.compress(data, 1)).decode("ascii")


def unpack_inodes(text: str) -> dict[str, int]:
    """Return what `pack_inodes` made a text of; empty for an empty text.

    Raises:
        ValueError: it is malformed.
    """
    if not text:
        return {}
    try:
        data = memoryview(zlib.decompress(base64.b64decode(text, validate=True)))
        (count,) = _COUNT.unpack_from(data)
    except (zlib.error, struct.error) as error:
        raise ValueError(f"inodes are malformed: {error}") from error
    end = _COUNT.size + _WIDTH * count
    if len(data) < end:
        raise ValueError("inodes are cut short")
    return dict(zip(unpack_names(data[end:], count), from_bytes("Q", data[_COUNT.size : end]), strict=True))
