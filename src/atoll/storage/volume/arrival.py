"""Move a finished file or directory to its path, even if a concurrent sync swaps the parent. Linux only.

A path is looked up, and the new entry is moved into the directory that was found. Meanwhile a sync may have replaced
that directory. An entry that comes to the old one after the sync has copied late writes (`sync.late_writes`) would be
lost. So the path is looked up when all else is done, and once more after the move. If the directory there is still the
same, any later sync finds the entry. If not, the entry is moved again, to the new directory.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from typing import TypeVar

from atoll import linux
from atoll.storage.crash_points import reached
from atoll.storage.volume import locate
from atoll.storage.volume.locate import Place

T = TypeVar("T")

_ATTEMPTS = 20


def arrive(parent: int, name: str, find: Callable[[], Place], *, exclusive: bool = False) -> None:
    """Move the entry `name` of `parent` to a place of the volume, durably.

    Args:
        find: looks the place up; called several times.
        exclusive: whether an entry that exists there is an error.

    Raises:
        FileExistsError: one exists, with `exclusive`.
        OSError: it cannot be moved, or its place does not come to rest.
    """
    moved = os.stat(name, dir_fd=parent, follow_symlinks=False)
    parent, first = os.dup(parent), True
    try:
        for _ in range(_ATTEMPTS):
            with find() as place:
                if not first and not locate.exists(parent, name):
                    return  # a function has removed or renamed it since
                place.make_parents()
                reached("arriving")
                if first or not _is_there(place, moved):
                    if exclusive:
                        linux.rename_new(parent, name, place.parent, place.name)
                    else:
                        locate.move(parent, name, place.parent, place.name)
                linux.sync_directory(place.parent)
                os.close(parent)
                parent, name, first = os.dup(place.parent), place.name, False
            with find() as now:
                if not now.missing and os.path.samestat(os.fstat(now.parent), os.fstat(parent)):
                    return
    finally:
        os.close(parent)
    raise OSError(errno.EBUSY, "its directory is being replaced all the time")


def make(find: Callable[[], Place], create: Callable[[Place, bool], T]) -> T:
    """Make something new at a place of the volume, and again where a sync has replaced its directory meanwhile.

    Args:
        find: looks the place up; called several times.
        create: makes the missing entries there, durably, and returns the result of `make`. Its second argument is True
            after the first call: an entry that a sync has copied is no error then.

    Raises:
        OSError: it cannot be made, or its place does not come to rest.
    """
    for attempt in range(_ATTEMPTS):
        with find() as place:
            reached("arriving")
            made = create(place, attempt > 0)
            with find() as now:
                if not now.missing and os.path.samestat(os.fstat(now.parent), os.fstat(place.parent)):
                    return made
    raise OSError(errno.EBUSY, "its directory is being replaced all the time")


def _is_there(place: Place, moved: os.stat_result) -> bool:
    """Return whether a sync has copied the entry: a file is linked, a directory made anew."""
    found = place.found
    if found is None:
        return False
    return os.path.samestat(found, moved) or (stat.S_ISDIR(found.st_mode) and stat.S_ISDIR(moved.st_mode))
