"""Where new trees go on the disk."""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path

import pytest

from atoll.storage.volume.root import VolumeRoot, start_in_own_block_group

TOPDIR = 0x20000


def flags_of(path: Path) -> int:
    """Return the file's flags as `lsattr` reads them."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return int(struct.unpack("=I4x", fcntl.ioctl(descriptor, 0x80086601, bytes(8)))[0])
    finally:
        os.close(descriptor)


def can_spread(directory: Path) -> bool:
    directory.mkdir()
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        return start_in_own_block_group(descriptor)
    finally:
        os.close(descriptor)


def test_trees_that_are_staged_start_in_places_of_their_own(tmp_path: Path) -> None:
    """On ext4 `staging` says that its directories have nothing to do with each other, and nothing else changes."""
    if not can_spread(tmp_path / "probe"):
        pytest.skip("the file system of the temporary directory has no such flag")
    (tmp_path / "plain").mkdir()
    for _ in range(2):
        VolumeRoot(str(tmp_path)).close()
    assert flags_of(tmp_path / "staging") == flags_of(tmp_path / "plain") | TOPDIR
    assert not flags_of(tmp_path / "data") & TOPDIR


def test_a_file_system_without_the_flag_is_left_alone() -> None:
    """Where directories cannot be spread, that is said and nothing fails."""
    descriptor = os.open("/proc/self", os.O_RDONLY)
    try:
        assert not start_in_own_block_group(descriptor)
    finally:
        os.close(descriptor)
