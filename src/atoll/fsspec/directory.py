"""`atoll://` inside functions, on the directory `/data`."""

from __future__ import annotations

import contextlib
import io
import os
import secrets
from collections.abc import Callable
from types import TracebackType
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.callbacks import DEFAULT_CALLBACK
from fsspec.implementations.local import LocalFileSystem

from atoll.fsspec.names import PROTOCOL, Names

_BUFFER_BYTES = 1 << 20


class DirectoryFileSystem(Names, LocalFileSystem):  # type: ignore[misc]
    """The same inside a function, where `/data` is a directory.

    Args:
        host, user, server: without effect: the volume is that of the function.
    """

    local_file = False

    def __init__(self, host: Any = None, user: str = "", server: str = "", **options: Any) -> None:
        LocalFileSystem.__init__(self, auto_mkdir=True, host=host, user=user, server=server, **options)

    @property
    def fsid(self) -> str:
        return PROTOCOL

    def _open(
        self, path: str, mode: str = "rb", block_size: int | None = None, autocommit: bool = True, **kwargs: Any
    ) -> Any:
        if mode not in ("wb", "xb"):
            return super()._open(path, mode, block_size, **kwargs)
        os.makedirs(self._parent(path), exist_ok=True)
        return _NewFile(path, exclusive=mode == "xb", held=not autocommit)

    def put_file(
        self, lpath: Any, rpath: Any, callback: Any = DEFAULT_CALLBACK, mode: str = "overwrite", **_: Any
    ) -> None:
        """Copy from anywhere in the function's file system to `/data`, in one step as every write."""
        where = self._strip_protocol(rpath)
        if os.path.isdir(lpath):
            self.makedirs(where, exist_ok=True)
            return
        with open(lpath, "rb") as local:
            callback.set_size(os.fstat(local.fileno()).st_size)
            with self.open(where, "xb" if mode == "create" else "wb") as file:
                while piece := local.read(_BUFFER_BYTES):
                    file.write(piece)
                    callback.relative_update(len(piece))

    def get_file(self, rpath: Any, lpath: Any, callback: Any = DEFAULT_CALLBACK, outfile: Any = None, **_: Any) -> None:
        """Copy from `/data` to anywhere in the function's file system."""
        AbstractFileSystem.get_file(self, rpath, lpath, callback, outfile)


class _NewFile(io.BufferedWriter):
    """A file beside its name, which it takes when it is closed, or when `commit` is called."""

    def __init__(self, path: str, *, exclusive: bool, held: bool) -> None:
        if exclusive and os.path.lexists(path):
            raise FileExistsError(17, "File exists", path)
        if os.path.isdir(path):
            raise IsADirectoryError(21, "Is a directory", path)
        self._path = os.path.realpath(path)
        self._temporary = f"{os.path.dirname(self._path)}/.atoll-{secrets.token_hex(8)}"
        self._held = held
        self._place: Callable[[str, str], None] = os.link if exclusive else os.replace
        super().__init__(io.FileIO(self._temporary, "xb"), _BUFFER_BYTES)

    @property
    def name(self) -> str:
        """The path that it is for."""
        return self._path

    def close(self) -> None:
        if not self.closed:
            try:
                self.flush()
                os.fsync(self.fileno())
            except BaseException:
                self._drop()
                raise
            super().close()
            if not self._held:
                self.commit()

    def _drop(self) -> None:
        self.raw.close()
        self.discard()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._drop()

    def commit(self) -> None:
        """Take the name."""
        try:
            self._place(self._temporary, self._path)
        finally:
            self.discard()

    def discard(self) -> None:
        """Remove the incomplete file."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._temporary)
