"""Locks of volumes exclude each other across machines, also where a removed file keeps a link."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from atoll.storage.sync.cleanup import collect
from atoll.storage.volume.locks import holding
from atoll.storage.volume.root import VolumeRoot
from atoll.storage.volume.staging import create_file, has_name

from ..waiting import soak, until

COUNT = """
import os, sys
from atoll.storage.volume.locks import holding
directory = os.open(sys.argv[1], os.O_RDONLY)
sys.stdin.readline()
for _ in range(int(sys.argv[2])):
    with holding(directory, "target", exclusive=True, wait=lambda: True):
        with open(sys.argv[1] + "/count", "r+") as file:
            number = int(file.read())
            file.seek(0)
            file.write(str(number + 1))
print("done")
"""


@pytest.fixture
def directories(mounts: tuple[Path, Path]) -> Iterator[tuple[int, int]]:
    """One directory, opened by two mounts."""
    found = []
    for mount in mounts:
        (mount / "locks").mkdir(exist_ok=True)
        found.append(os.open(mount / "locks", os.O_RDONLY | os.O_CLOEXEC))
    yield found[0], found[1]
    for descriptor in found:
        os.close(descriptor)


def test_a_removed_lock_is_held_by_nobody(directories: tuple[int, int]) -> None:
    """A waiter that gets the lock of a file without its name takes the file that has the name now.

    JuiceFS keeps removed files in its trash, where they still have a link.
    """
    one, other = directories
    stale = os.open("lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=other)
    with holding(one, "lock", exclusive=True, wait=None) as held:
        assert held
    assert os.fstat(stale).st_nlink == 1  # else this test would prove nothing
    assert not has_name(other, "lock", stale)
    os.close(stale)
    with holding(one, "lock", exclusive=True, wait=None), holding(other, "lock", exclusive=False, wait=None) as held:
        assert not held


def test_no_two_machines_hold_a_lock(mounts: tuple[Path, Path], directories: tuple[int, int]) -> None:
    """Processes on two mounts that count in a file under a lock lose no step."""
    (mounts[0] / "locks" / "count").write_text("0")
    rounds = soak(15, 300)
    line = [sys.executable, "-c", COUNT]
    counting = [
        subprocess.Popen(
            [*line, str(mounts[number % 2] / "locks"), str(rounds)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for number in range(4)
    ]
    for one in counting:
        assert one.stdin is not None
        one.stdin.write(b"\n")
        one.stdin.flush()
    assert [one.communicate(timeout=120)[0] for one in counting] == [b"done\n"] * 4
    assert (mounts[0] / "locks" / "count").read_text() == str(4 * rounds)


def test_a_living_machine_keeps_its_files_in_staging(mounts: tuple[Path, Path]) -> None:
    """A cleanup removes what a dead writer left, and nothing of a writer that lives on another machine."""
    (mounts[0] / "volume").mkdir()
    with VolumeRoot(str(mounts[0] / "volume")) as one, VolumeRoot(str(mounts[1] / "volume")) as other:
        name, descriptor = create_file(one.staging)
        collect(other)
        assert name in os.listdir(other.staging)
        os.close(descriptor)  # as the kernel does when the writer dies

        def is_collected() -> bool:
            collect(other)
            return name not in os.listdir(other.staging)

        until(is_collected)  # FUSE tells a file system of a close, and so of the lock's end, a moment later
