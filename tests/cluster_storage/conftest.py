"""Mounts and machines for a module's tests; all are skipped where nothing can be mounted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from . import shared_disk
from .shared_disk import Disk, Machine


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = shared_disk.why_not()
    for item in items:
        if reason and Path(item.path).parent == Path(__file__).parent and "disk" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="module")
def disk() -> Iterator[Disk]:
    """A JuiceFS of this module."""
    with shared_disk.made() as found:
        yield found


@pytest.fixture(scope="module")
def mounts(disk: Disk) -> Iterator[tuple[Path, Path]]:
    """Two mounts of it, as of two machines."""
    with disk.mounted() as one, disk.mounted() as other:
        yield one, other


@pytest.fixture(scope="module")
def machines(disk: Disk) -> Iterator[tuple[Machine, Machine]]:
    """Two machines with their daemons on it."""
    with shared_disk.machine(disk) as one, shared_disk.machine(disk) as other:
        one.atoll("data", "filesystem", "init")
        yield one, other
