"""The options `storage` of `settings.toml`: the file system that carries `/data`."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

OWN, PATH, JUICEFS = "own", "path", "juicefs"

_PASSWORD = re.compile(r"://[^/@]*:[^/@]+@")


@dataclass(frozen=True)
class StorageSettings:
    """The place of the volumes. Machines with the same file system share every `/data`.

    Args:
        filesystem: `own` for the state directory, `path` for a shared file system that is mounted already, `juicefs`
            for one that the daemon mounts.
        path: with `path`, the absolute path of a directory on it (NFS, CephFS, Lustre, JuiceFS mounted by hand).
        metadata: with `juicefs`, the address of its metadata, without a password: `redis://HOST:6379/1`,
            `postgres://USER@HOST:5432/NAME`, or `sqlite3:///PATH` for one machine.
        objects: with `juicefs`, the place of contents: `s3`, `minio`, or `file` for one machine. Read by
            `atoll data filesystem init` alone, as are `bucket`, `name` and `trash_days`.
        bucket: the address of the bucket, or the directory.
        name: the name of the file system, and the prefix of its objects.
        credentials_file: path of a file with mode 0600 and lines such as `META_PASSWORD=…`, `ACCESS_KEY=…` and
            `SECRET_KEY=…`.
        trash_days: days for which JuiceFS keeps removed contents; at least 1, since 0 has lost data.
        cache_bytes: the most that its cache of contents takes on this machine's disk; 0 for 100 MiB of memory instead.
    """

    filesystem: str = OWN
    path: str = ""
    metadata: str = ""
    objects: str = "file"
    bucket: str = ""
    name: str = "atoll"
    credentials_file: str = ""
    trash_days: int = 1
    cache_bytes: int = 10 << 30

    @property
    def is_shared(self) -> bool:
        """Return whether the volumes are on a file system of their own, which other machines may have, too."""
        return self.filesystem != OWN

    @property
    def mistake(self) -> tuple[str, str, str] | None:
        """The option that does not fit the others, the reason and the next step; None where all do."""
        if self.filesystem == PATH and not os.path.isabs(self.path):
            return "path", "must be an absolute path", "name a directory on the shared file system"
        if self.filesystem != JUICEFS:
            return None
        if not re.match(r"(redis|rediss|unix|postgres|sqlite3|mysql|tikv)://.", self.metadata):
            return "metadata", "must be an address of metadata", "such as `redis://10.0.0.1:6379/1`"
        if _PASSWORD.search(self.metadata):
            hint = "write `META_PASSWORD=…` into the file that `storage.credentials_file` names"
            return "metadata", "must not hold a password, which other processes could see", hint
        if self.metadata.startswith("sqlite3://") and not self.metadata.startswith("sqlite3:///"):
            return "metadata", "must have an absolute path", "write `sqlite3:///PATH`"
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9]", self.name):
            return "name", "must be 3 to 63 lower-case letters, digits and `-`", "such as `atoll`"
        return None

    def root(self, home: Path) -> Path:
        """Return the directory above `volumes`: the state directory, the shared path, or the mount point."""
        if self.filesystem == PATH:
            return Path(self.path)
        return home / "shared" if self.filesystem == JUICEFS else home


REMOVED = "removed"
"""The directory beside `volumes` for volumes of removed users: they get there by one rename."""
