"""Directories to copy, made from a seed, and what changes in them."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

SMALL_FILES = 10_000
SMALL_BYTES = (1_000, 20_000)
FILES_OF_A_DIRECTORY = 100
PIECE_BYTES = 16 << 20


def make_small_files(root: Path, count: int, seed: int = 4) -> list[Path]:
    """Make files of 1 to 20 KB of random content, a hundred in each directory."""
    chance = random.Random(seed)
    paths = []
    for number in range(count):
        directory = root / f"directory-{number // FILES_OF_A_DIRECTORY:03}"
        if number % FILES_OF_A_DIRECTORY == 0:
            directory.mkdir(parents=True)
        path = directory / f"file-{number:05}.bin"
        path.write_bytes(chance.randbytes(chance.randint(*SMALL_BYTES)))
        paths.append(path)
    return paths


def change_small_files(paths: list[Path], part: float, seed: int) -> None:
    """Give a part of the files new content of another length."""
    chance = random.Random(seed)
    for path in chance.sample(paths, max(1, round(part * len(paths)))):
        path.write_bytes(chance.randbytes(chance.randint(*SMALL_BYTES)))


def make_empty_files(root: Path, count: int) -> None:
    """Make empty files, a thousand in each directory."""
    for first in range(0, count, 1000):
        directory = root / f"directory-{first // 1000:04}"
        directory.mkdir(parents=True)
        for number in range(first, min(first + 1000, count)):
            os.close(os.open(directory / f"file-{number:07}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))


def make_large_file(path: Path, size: int, seed: int = 5) -> None:
    """Make one file of random content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        for piece in _random_pieces(size, seed):
            file.write(piece)


def insert(path: Path, size: int, seed: int) -> None:
    """Put random content into the middle of a file, as a program does that writes it anew."""
    longer = path.with_name(f"{path.name}.new")
    with path.open("rb") as old, longer.open("wb") as new:
        left = path.stat().st_size // 2
        while left:
            piece = old.read(min(left, PIECE_BYTES))
            new.write(piece)
            left -= len(piece)
        for piece in _random_pieces(size, seed):
            new.write(piece)
        shutil.copyfileobj(old, new, PIECE_BYTES)
    longer.replace(path)


def _random_pieces(size: int, seed: int) -> Iterator[bytes]:
    chance = random.Random(seed)
    while size > 0:
        yield chance.randbytes(min(size, PIECE_BYTES))
        size -= PIECE_BYTES


def file_system(path: Path) -> str:
    """Return the name of the file system that a directory is on."""
    best, kind = "", "unknown"
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, mounted, found, *_ = line.split()
        if (str(path) + "/").startswith(mounted.rstrip("/") + "/") and len(mounted) >= len(best):
            best, kind = mounted, found
    return kind
