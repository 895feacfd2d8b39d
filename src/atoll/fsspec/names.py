"""Paths of `atoll://`, outside of functions and inside."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.utils import stringify_path

from atoll.storage.protocol.connection import ROOT, absolute, split_server, volume_path

PROTOCOL = "atoll"


class Names(AbstractFileSystem):  # type: ignore[misc]
    """Spelling of paths: absolute, below `/data`, without a slash at the end."""

    protocol = PROTOCOL
    root_marker = ROOT
    _place = ""
    """`USER@HOST/` where the address of the file system has it."""

    @staticmethod
    def _get_kwargs_from_urls(path: Any) -> dict[str, str]:
        user, server, _ = split_server(stringify_path(path))
        return {"user": user, "server": server} if server else {}

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(one) for one in path]
        text = split_server(stringify_path(path))[2]
        for prefix in (f"{PROTOCOL}://", f"{PROTOCOL}::"):
            text = text.removeprefix(prefix)
        return absolute(volume_path(text)) if text.strip("/") else ROOT

    def unstrip_protocol(self, name: str) -> str:
        return f"{PROTOCOL}://{self._place}{volume_path(self._strip_protocol(name))}"

    @classmethod
    def _parent(cls, path: Any) -> str:
        found: str = cls._strip_protocol(path)
        return found.rpartition("/")[0] or ROOT

    def walk(
        self, path: Any, maxdepth: int | None = None, topdown: bool = True, on_error: Any = "omit", **kwargs: Any
    ) -> Iterator[Any]:
        """As `AbstractFileSystem.walk`; symlinks to directories are not followed."""
        if maxdepth is not None and maxdepth < 1:
            raise ValueError("maxdepth must be at least 1")
        detail = kwargs.pop("detail", False)
        where = self._strip_protocol(path)
        try:
            listing = self.ls(where, detail=True)
        except OSError as error:
            if on_error == "raise":
                raise
            if callable(on_error):
                on_error(error)
            return
        found = {info["name"].rpartition("/")[2]: info for info in listing if info["name"] != where}
        below = {name: info for name, info in found.items() if info["type"] == "directory"}
        files = {name: info for name, info in found.items() if info["type"] != "directory"}
        names = below if detail else list(below)
        if topdown:
            yield where, names, files if detail else list(files)
        if maxdepth is None or maxdepth > 1:
            for name in list(names):
                if not below[name]["islink"]:
                    deeper = None if maxdepth is None else maxdepth - 1
                    yield from self.walk(f"{where}/{name}", deeper, topdown, on_error, detail=detail, **kwargs)
        if not topdown:
            yield where, names, files if detail else list(files)
