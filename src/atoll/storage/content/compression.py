"""Contents on their way, smaller: `zstd` at its fastest level, where a sample says that it pays.

Between processes of one machine a copy is faster than any compression, so `auto` means other streams only. What is
compressed already (archives, images, weights) is sent as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from atoll.errors import SyncError
from atoll.wire.frames import Rope

MAX_CONTENT_BYTES = 64 << 20
"""The most that one message may decompress to."""
_LEVEL = 1
_LEAST_BYTES = 4 << 10
_SAMPLE_BYTES = 32 << 10
_WORTH = 0.85
"""Compressing pays where it leaves less than this part."""


def methods() -> list[str]:
    """Return the formats that this process can decompress."""
    try:
        import zstandard  # noqa: F401
    except ImportError:
        return []
    return ["zstd"]


def wanted(option: str, local: bool, theirs: Sequence[Any]) -> bool:
    """Tell if content for a channel is worth compressing.

    Args:
        option: `auto`, `always` or `never`.
        local: the channel is one between processes of a machine.
        theirs: formats that the other end can decompress.
    """
    if option == "never" or "zstd" not in theirs or "zstd" not in methods():
        return False
    return option == "always" or not local


class Compressor:
    """Compresses content that compresses well."""

    def __init__(self) -> None:
        import zstandard

        self._zstd = zstandard.ZstdCompressor(level=_LEVEL)

    def compress(self, content: Any) -> bytes | None:
        """Return a content compressed, or None where that would save little.

        Args:
            content: bytes, or a `Rope` of them.
        """
        parts = content.parts if isinstance(content, Rope) else [content]
        size = sum(len(part) for part in parts)
        if not _LEAST_BYTES <= size <= MAX_CONTENT_BYTES:
            return None
        part = max(parts, key=len)
        middle = max(0, len(part) - _SAMPLE_BYTES) // 2
        sample = part[middle : middle + _SAMPLE_BYTES]
        if len(sample) >= _LEAST_BYTES and len(self._zstd.compress(sample)) > _WORTH * len(sample):
            return None
        made: bytes = self._zstd.compress(b"".join(parts))
        return made if len(made) <= _WORTH * size else None


def decompressed(data: Any, size: Any) -> Any:
    """Return the content of `size` bytes that was compressed.

    Raises:
        SyncError: it is something else.
    """
    import zstandard

    if type(size) is not int or not 0 <= size <= MAX_CONTENT_BYTES:
        raise SyncError("a compressed content has an impossible size")
    try:
        # The frame's own size decides how much memory is taken.
        if zstandard.frame_content_size(bytes(data[:32])) != size:
            raise SyncError("a compressed content has another size than it says")
        return zstandard.ZstdDecompressor().decompress(data, max_output_size=size)
    except zstandard.ZstdError as error:
        raise SyncError(f"a compressed content is damaged: {error}", retry=True) from error
