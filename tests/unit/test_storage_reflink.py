"""Clones of files, on whatever file system the tests run on and on tmpfs, which cannot."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from atoll.storage.content.copy import can_clone, clone


def test_a_clone_has_the_content_or_nothing_has_changed(tmp_path: Path) -> None:
    """`clone` either gives the whole content, apart from later writes, or says that it cannot and changes nothing."""
    (tmp_path / "one").write_bytes(b"content" * 1000)
    source = os.open(tmp_path / "one", os.O_RDWR)
    target = os.open(tmp_path / "two", os.O_RDWR | os.O_CREAT)
    directory = os.open(tmp_path, os.O_RDONLY)
    try:
        able = can_clone(directory)
        assert clone(source, target) == able
        os.pwrite(source, b"CHANGED", 0)
        assert (tmp_path / "two").read_bytes() == (b"content" * 1000 if able else b"")
        assert sorted(os.listdir(tmp_path)) == ["one", "two"]
    finally:
        for descriptor in (source, target, directory):
            os.close(descriptor)


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="no tmpfs here")
def test_memory_cannot_clone() -> None:
    """tmpfs has no reflinks, and is asked without an error."""
    directory = os.open("/dev/shm", os.O_RDONLY)
    try:
        assert not can_clone(directory)
    finally:
        os.close(directory)
