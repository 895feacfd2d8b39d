"""Modules in a zip archive, as `python app.pyz` and an archive on `sys.path` have them: units like those of a directory.

The worker gets them unpacked, so that data beside a module can be opened there.
"""

from __future__ import annotations

import functools
import os
import stat
import zipfile

from atoll import file_stamp
from atoll.blake2 import blake2b
from atoll.errors import SerializationError
from atoll.sdk.modules.bundle import MOST_BYTES, MOST_FILES, File, Unit, imports_in, too_large

_CODE = (".py", ".pyc")


@functools.lru_cache(maxsize=1024)
def inside(path: str) -> tuple[str, str] | None:
    """Return the archive that a path leads into, and the name in it (with `/`); None for a path of the file system."""
    archive = path
    while not os.path.exists(archive):
        parent = os.path.dirname(archive)
        if parent == archive:
            return None
        archive = parent
    if archive == path or not os.path.isfile(archive) or not zipfile.is_zipfile(archive):
        return None
    return archive, path[len(archive) + 1 :].replace(os.sep, "/")


class ArchiveUnit(Unit):
    """A top-level module or package of an archive.

    Args:
        name: the name of its import.
        path: of the module or the package's directory, as `__file__` and `__path__` have it.
        archive, inner: the path's two parts.
    """

    def __init__(self, name: str, path: str, archive: str, inner: str) -> None:
        super().__init__(name, path)
        self._archive = archive
        self._inner = inner
        self._stamp = file_stamp.GONE

    def has_code(self) -> bool:
        """Return whether there is anything to import in it."""
        self.refresh()
        return any(file.relative.endswith(_CODE) for file in self.files)

    def refresh(self) -> None:
        """Read the archive again if it changed.

        Raises:
            SerializationError: it cannot be read, or the unit is over `MOST_BYTES` or `MOST_FILES`.
        """
        stamp = file_stamp.take(self._archive)
        if not self._young and stamp == self._stamp:
            return
        young = file_stamp.is_young(stamp)
        try:
            with zipfile.ZipFile(self._archive) as archive:
                files = [self._file(archive, entry, stamp, young) for entry in self._entries(archive)]
        except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
            raise SerializationError(
                f"cannot read `{self._archive}`, which holds the module `{self.name}`: {error}",
                hint="write the archive anew, or name the modules with `local_modules=[...]`",
            ) from error
        self._young, self._stamp = young, stamp
        self._keep(files)

    def stamps(self) -> list[tuple[str, file_stamp.Stamp]] | None:
        """Return the archive's stamp, which stands for all files; None where it is too young."""
        return None if self._young or not self.files else [(self._archive, self._stamp)]

    def _entries(self, archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
        found = [
            entry
            for entry in archive.infolist()
            if not entry.is_dir() and (entry.filename == self._inner or entry.filename.startswith(f"{self._inner}/"))
        ]
        self.is_package = not (len(found) == 1 and found[0].filename == self._inner)
        if self.is_package:
            self.top = self.name
        if len(found) > MOST_FILES:
            raise too_large(self, f"more than {MOST_FILES} files")
        if (size := sum(entry.file_size for entry in found)) > MOST_BYTES:
            raise too_large(self, f"{size >> 20} MiB")
        return found

    def _file(self, archive: zipfile.ZipFile, entry: zipfile.ZipInfo, stamp: file_stamp.Stamp, young: bool) -> File:
        content = archive.read(entry)
        relative = self.top + entry.filename[len(self._inner) :]
        mode = 0o755 if (entry.external_attr >> 16) & stat.S_IXUSR else 0o644
        digest = blake2b(content, digest_size=16).digest()
        path = os.path.join(self._archive, *entry.filename.split("/"))
        return File(path, relative, mode, stamp, young, digest, content, imports_in(relative, content))
