"""A sync in a few lines: its result, and the directories of tools that it has mirrored without being asked."""

from __future__ import annotations

import stat
from collections.abc import Iterator, Sequence

from atoll.storage.files.scan import ROW, Scan
from atoll.storage.protocol.progress import size_text
from atoll.storage.sync.client import Synced
from atoll.terminal_text import printable

DEV = (
    ".git",
    ".hg/",
    ".svn/",
    ".venv/",
    "node_modules/",
    "__pycache__/",
    "*.pyc",
    ".mypy_cache/",
    ".pytest_cache/",
    ".ruff_cache/",
    ".tox/",
    ".nox/",
    ".ipynb_checkpoints/",
    ".DS_Store",
)
"""The preset `dev`: names that tools of developers make, in gitignore's syntax."""

_TOOLS = frozenset(name.rstrip("/") for name in DEV if "*" not in name)
_SHOWN = 3
"""Names that a line shows before it counts the rest."""
_MANY_FILES, _MANY_BYTES = 100, 1 << 20
"""A program is told of directories of tools when it sends as much of them."""
_LONG_SECONDS = 5.0
"""A program is told the result of a sync that took so long."""


def line(synced: Synced, seconds: float) -> str:
    """Return the result in one line."""
    modes, sizes = synced.source.rows[::ROW], synced.source.rows[1::ROW]
    files = sum(map(stat.S_ISREG, modes))
    parts = [
        f"{_count(files, 'file')}, {size_text(sum(sizes))}",
        f"sent {_count(synced.sent, 'file')}, {size_text(synced.sent_bytes)}",
        f"removed {len(synced.plan.drop):,}",
        f"left out {len(synced.skipped):,}",
        f"{seconds:.2f} s",
    ]
    return "; ".join(parts)


def notes(synced: Synced) -> Iterator[str]:
    """Yield what every caller should know: the mirror differs from what the source was."""
    if synced.vanished:
        yield f"vanished while the sync ran, counted as removed: {shown(synced.vanished)}"
    if synced.unheld:
        yield "a function could not be held for the switch: what it wrote just then to excluded names may be missing"
    if synced.source.clamped:
        clamped = [path or "." for path in synced.source.clamped]
        yield f"times before 1677 or after 2262 were moved into that range: {shown(clamped)}"


def tools(synced: Synced, how: str, *, quietly: bool = False) -> Iterator[str]:
    """Yield a line if directories of tools are mirrored: the largest ones, and how to leave them out.

    Args:
        how: the option.
        quietly: only where this sync has sent much of them.
    """
    if quietly:
        sent = [path for path in synced.plan.send if not _TOOLS.isdisjoint(path.split("/")[:-1])]
        if len(sent) < _MANY_FILES and sum(synced.plan.put[path].size for path in sent) < _MANY_BYTES:
            return
    if not (found := _largest(synced.source)):
        return
    names = ", ".join(
        f"`{name}` {size_text(size)}" + (f" in {count:,} directories" if count > 1 else "")
        for name, (size, count) in found[:_SHOWN]
    )
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    yield f"mirrored with the rest: {names}{more}; {how} leaves out what such tools make"


def messages(synced: Synced, seconds: float) -> Iterator[str]:
    """Yield the lines for a program, which a small and quick sync has not: `sync_dir`."""
    yield from notes(synced)
    yield from tools(synced, '`exclude="dev"`', quietly=True)
    if seconds >= _LONG_SECONDS:
        yield line(synced, seconds)


def shown(paths: Sequence[str]) -> str:
    """Return the first names of a list, for one line."""
    more = f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else ""
    return ", ".join(f"`{printable(path)}`" for path in paths[:_SHOWN]) + more


def _largest(scan: Scan) -> list[tuple[str, tuple[int, int]]]:
    """Return the tools' directories by name, with their bytes together and their number, the largest first."""
    sizes: dict[str, int] = {}
    counts: dict[str, int] = {}
    modes, bytes_of = scan.rows[::ROW], scan.rows[1::ROW]
    for path, mode, size in zip(scan.paths, modes, bytes_of, strict=True):
        parts = path.split("/")
        if _TOOLS.isdisjoint(parts):
            continue
        name = next(part for part in parts if part in _TOOLS)
        if parts.index(name) == len(parts) - 1 and stat.S_ISDIR(mode):  # the topmost, not one in another
            counts[name] = counts.get(name, 0) + 1
        if name in counts:
            sizes[name] = sizes.get(name, 0) + size
    found = [(name, (sizes[name], count)) for name, count in counts.items()]
    return sorted(found, key=lambda item: -item[1][0])


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"
