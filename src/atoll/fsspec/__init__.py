"""`atoll://`: the volume as a file system for programs that use fsspec (pandas, Dask, Zarr, datasets, …).

`atoll://a/b` is `/data/a/b`, and so is `atoll:///data/a/b`; names are given as functions know them (`/data/a/b`).
`atoll://USER@HOST/a/b` is that of USER at a server, and `atoll:///data/USER@HOST/b` a directory of such a name.
Installing Atoll registers it; inside functions it is registered too, and there it works on `/data` itself.
"""

from __future__ import annotations

from atoll.fsspec.directory import DirectoryFileSystem
from atoll.fsspec.volume import VolumeFileSystem

__all__ = ["AtollFileSystem", "DirectoryFileSystem", "VolumeFileSystem"]

IN_FUNCTION = __file__.startswith("/opt/atoll/lib/")
"""True for the library that is mounted into sandboxes, where `/data` is a directory."""

AtollFileSystem = DirectoryFileSystem if IN_FUNCTION else VolumeFileSystem
"""The implementation of `atoll://` here."""
