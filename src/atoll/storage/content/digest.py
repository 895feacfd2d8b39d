"""Digests of contents, by blocks and whole: BLAKE3 if both ends of a sync have it, else SHA-256. 32 bytes each.

Inside functions there is only the standard library.

The digest of a content of more than `BLOCK_BYTES` is that of the digests of its blocks, so that one pass gives both:
the list of blocks says later which parts of a large file have changed. Sizes are always compared beside digests.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

DIGEST_BYTES = 32
UNKNOWN = bytes(DIGEST_BYTES)
"""Stands where no digest is known."""
BLOCK_BYTES = 256 << 10

ALGORITHMS = ("blake3", "sha256")
"""In the order in which they are preferred."""


class Hash(Protocol):
    """Takes content and gives its digest."""

    def update(self, data: Any, /) -> Any: ...

    def digest(self) -> bytes: ...


Make = Callable[..., Hash]


def _blake3() -> Make | None:
    try:
        from blake3 import blake3
    except ImportError:
        return None
    made: Make = blake3
    return made


def algorithms() -> list[str]:
    """Return the algorithms that this process has."""
    return list(ALGORITHMS if _blake3() is not None else ALGORITHMS[1:])


def chosen(theirs: Sequence[Any]) -> str:
    """Return the best algorithm that both ends have."""
    return next((name for name in algorithms() if name in theirs), "sha256")


def maker(algorithm: str) -> Make:
    """Return a function that makes a hash object, empty or with a first content.

    Raises:
        ValueError: this process does not have the algorithm.
    """
    if algorithm == "sha256":
        return hashlib.sha256
    found = _blake3() if algorithm == "blake3" else None
    if found is None:
        raise ValueError(f"there is no digest `{algorithm}` here")
    return found


def digest_of(make: Make, content: Any) -> bytes:
    """Return the digest of a whole content."""
    if len(content) <= BLOCK_BYTES:
        return make(content).digest()
    hasher = Hasher(make)
    hasher.update(content)
    return hasher.digest()


class Hasher:
    """Hashes a content that comes in pieces.

    Args:
        make: makes the hashes.
    """

    def __init__(self, make: Make) -> None:
        self._make = make
        self._blocks: list[bytes] = []
        self._current = make()
        self._filled = 0

    def update(self, content: Any) -> None:
        """Go on with more of the content."""
        view = memoryview(content)
        while view:
            if self._filled == BLOCK_BYTES:
                self._blocks.append(self._current.digest())
                self._filled = 0
                if len(view) < BLOCK_BYTES:
                    self._current = self._make()
            piece = view[: BLOCK_BYTES - self._filled]
            if len(piece) == BLOCK_BYTES:
                self._current = self._make(piece)
            else:
                self._current.update(piece)
            self._filled += len(piece)
            view = view[len(piece) :]

    @property
    def blocks(self) -> bytes:
        """The digests of the blocks so far, the last one included however long it is."""
        return b"".join([*self._blocks, self._current.digest()])

    def digest(self) -> bytes:
        """Return the digest of the content so far."""
        return self._make(self.blocks).digest() if self._blocks else self._current.digest()
