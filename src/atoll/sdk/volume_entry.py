"""What a directory of a volume holds under one name."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from atoll.storage.files.status import Status


class VolumeEntry:
    """What a directory of a volume holds under one name, as `os.DirEntry`.

    Attributes:
        name: in its directory.
        path: absolute, below `/data`.
    """

    def __init__(self, path: str, status: Status) -> None:
        self.path = path
        self.name = path.rpartition("/")[2]
        self._status = status

    def __repr__(self) -> str:
        return f"<VolumeEntry {self.name!r}>"

    def __fspath__(self) -> str:
        return self.path

    def stat(self) -> os.stat_result:
        """Return its status, of a symlink its own."""
        return self._status.as_stat()

    def inode(self) -> int:
        """Return the number of its inode."""
        return self._status.inode

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        """Say whether it is a directory, or a symlink to one inside `/data`."""
        return "d" in (self._status.kind, self._status.leads if follow_symlinks else "")

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        """Say whether it is a file, or a symlink to one inside `/data`."""
        return "f" in (self._status.kind, self._status.leads if follow_symlinks else "")

    def is_symlink(self) -> bool:
        """Say whether it is a symlink."""
        return self._status.kind == "l"

    def target(self) -> str:
        """Return where a symlink points, as it is stored; empty for anything else."""
        return self._status.target
