"""A conda channel in a directory, with packages that are made here: archives, digests and repodata, as servers have."""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

PLACEHOLDER = "/opt/placeholder" + "_h" * 20
"""What packages have where the path of their environment belongs."""

MINOR = ".".join(map(str, sys.version_info[:2]))

_LEFT_OUT = frozenset(
    [
        "test",
        "tests",
        "idlelib",
        "tkinter",
        "turtledemo",
        "lib2to3",
        "ensurepip",
        "__pycache__",
        "site-packages",
        "dist-packages",
        "pydoc_data",
    ]
)

_SITE = """
import os, site, sys
site.addsitedir(os.path.join(sys.prefix, "lib", "python%d.%d" % sys.version_info[:2], "site-packages"))
"""
"""Debian's Python looks for packages elsewhere."""


class LocalChannel:
    """A channel to which packages can be added.

    Args:
        directory: is made; holds `linux-64`, `noarch`.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._repodata: dict[str, dict[str, Any]] = {}
        for subdir in (_subdir(), "noarch"):
            (directory / subdir).mkdir(parents=True)
            self._repodata[subdir] = {}
            self._write(subdir)

    def package(
        self,
        name: str,
        version: str = "1",
        files: Mapping[str, str | bytes] | None = None,
        *,
        depends: Iterable[str] = (),
        links: Mapping[str, str] | None = None,
        noarch: bool = True,
        scripts: Iterable[str] = (),
        build: str = "0",
        placeholder: str = PLACEHOLDER,
    ) -> Path:
        """Add a package; by default one of Python, with a module of its name that has `VERSION`.

        Args:
            files: by path; those below `bin` are executable; but below `lib`, `placeholder` in them becomes the
                environment's path (a linker may have merged it with other texts there).
            links: symlinks by path.
            scripts: entry points, as in `alpha = alpha:main`.
        """
        if files is None:
            files = {f"site-packages/{name}.py": f"VERSION = {version!r}\ndef main():\n    print('{name}', VERSION)\n"}
        subdir = "noarch" if noarch else _subdir()
        index: dict[str, Any] = {
            "name": name,
            "version": version,
            "build": build,
            "build_number": 0,
            "depends": list(depends),
            "subdir": subdir,
        }
        if noarch:
            index["noarch"] = "python"
        paths: list[dict[str, Any]] = []
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:bz2", compresslevel=1) as archive:

            def add(path: str, data: bytes) -> None:
                entry = tarfile.TarInfo(path)
                entry.size = len(data)
                entry.mode = 0o755 if path.startswith("bin/") else 0o644
                archive.addfile(entry, io.BytesIO(data))

            for path, content in files.items():
                data = content.encode() if isinstance(content, str) else content
                add(path, data)
                described: dict[str, Any] = {
                    "_path": path,
                    "path_type": "hardlink",
                    "sha256": hashlib.sha256(data).hexdigest(),
                    "size_in_bytes": len(data),
                }
                if placeholder.encode() in data and not path.startswith("lib/"):
                    mode = "binary" if b"\0" in data else "text"
                    described |= {"prefix_placeholder": placeholder, "file_mode": mode}
                paths.append(described)
            for path, target in (links or {}).items():
                entry = tarfile.TarInfo(path)
                entry.type, entry.linkname = tarfile.SYMTYPE, target
                archive.addfile(entry)
                paths.append({"_path": path, "path_type": "softlink"})
            add("info/index.json", json.dumps(index).encode())
            add("info/paths.json", json.dumps({"paths": paths, "paths_version": 1}).encode())
            if noarch:
                python = {"type": "python", "entry_points": list(scripts)}
                add("info/link.json", json.dumps({"noarch": python, "package_metadata_version": 1}).encode())
        data = buffer.getvalue()
        file = self.directory / subdir / f"{name}-{version}-{build}.tar.bz2"
        file.write_bytes(data)
        file.chmod(0o644)
        digests = {"sha256": hashlib.sha256(data).hexdigest(), "md5": hashlib.md5(data).hexdigest()}
        self._repodata[subdir][file.name] = {**index, **digests, "size": len(data)}
        self._write(subdir)
        return file

    def remove(self, file: Path) -> None:
        """Forget a package."""
        del self._repodata[file.parent.name][file.name]
        file.unlink()
        self._write(file.parent.name)

    def add_python(self, file: Path | None = None) -> Path:
        """Add a package with this interpreter's own files; `file` is one that was made before."""
        if file is not None:
            target = self.directory / _subdir() / file.name
            os.link(file, target)
            self._repodata[_subdir()][file.name] = json.loads(file.with_suffix(".json").read_text())
            self._write(_subdir())
            return target
        stdlib = Path(os.__file__).parent
        files: dict[str, str | bytes] = {}
        for parent, inner, names in os.walk(stdlib):
            inner[:] = [name for name in inner if name not in _LEFT_OUT and not name.startswith("config-")]
            for name in names:
                path = Path(parent, name)
                if path.is_file() and name != "sitecustomize.py":
                    files[f"lib/python{MINOR}/{path.relative_to(stdlib)}"] = path.read_bytes()
        files[f"lib/python{MINOR}/sitecustomize.py"] = _SITE
        base = Path(os.path.realpath(getattr(sys, "_base_executable", sys.executable)))
        files[f"bin/python{MINOR}"] = base.read_bytes()
        for library in Path(sys.base_prefix, "lib").glob("libpython3.*.so.*"):
            files[f"lib/{library.name}"] = library.read_bytes()
        prefix = sys.base_prefix if len(sys.base_prefix) > len("/opt/atoll/env") else PLACEHOLDER
        files["bin/where"] = f"#!/bin/sh\necho {prefix}\n"
        version = "{}.{}.{}".format(*sys.version_info[:3])
        links = {"bin/python": f"python{MINOR}", "bin/python3": f"python{MINOR}"}
        made = self.package("python", version, files, links=links, noarch=False, placeholder=prefix)
        made.with_suffix(".json").write_text(json.dumps(self._repodata[_subdir()][made.name]))
        return made

    def _write(self, subdir: str) -> None:
        path = self.directory / subdir / "repodata.json"
        text = json.dumps({"info": {"subdir": subdir}, "packages": self._repodata[subdir], "packages.conda": {}})
        path.write_text(text)
        path.chmod(0o644)


def _subdir() -> str:
    machine = os.uname().machine
    return {"x86_64": "linux-64", "aarch64": "linux-aarch64"}.get(machine, f"linux-{machine}")
