"""`atoll data`: look at a volume, copy to and from it. `-` is stdin or stdout."""

from __future__ import annotations

import json as json_module
import os
import stat
import sys
import time
from collections.abc import Iterator
from typing import Annotated

import cyclopts

from atoll.cli import snapshots
from atoll.storage.progress import ProgressLine
from atoll.storage.status import Status
from atoll.storage.transfer import CHUNK_BYTES
from atoll.storage.tree import DIRECTORY, FILE, SYMLINK, printable
from atoll.storage.volume import VolumeClient, absolute, volume_path

app = cyclopts.App(
    name="data",
    help="Look at /data, and copy files to and from it. Paths are below /data.",
    help_format="plaintext",
    version_flags=[],
    result_action="return_value",
)

_KIND_NAMES = {FILE: "file", DIRECTORY: "directory", SYMLINK: "symlink"}
_KIND_BITS = {FILE: stat.S_IFREG, DIRECTORY: stat.S_IFDIR, SYMLINK: stat.S_IFLNK}


def _open() -> VolumeClient:
    from atoll.host.local import local

    return VolumeClient(local.open_storage())


@app.command
def ls(
    path: str = "/data",
    /,
    *,
    long: Annotated[bool, cyclopts.Parameter(name=["--long", "-l"], negative="")] = False,
    json: Annotated[bool, cyclopts.Parameter(negative="")] = False,
) -> int:
    """List a directory of /data, or one file.

    Parameters
    ----------
    path: str
        What to list.
    long: bool
        Show modes, sizes and times.
    json: bool
        Print a list of objects with `name`, `type`, `size`, `mode`, `mtime_ns` and `target`.
    """
    with _open() as volume:
        entry = volume.stat(path)
        name = volume_path(path).rpartition("/")[2]
        entries = volume.listdir(path) if entry.kind == DIRECTORY else {name: entry}
    if json:
        print(json_module.dumps([_described(name, found) for name, found in entries.items()], indent=2))
        return 0
    for name, found in entries.items():
        _print_name(_line(name, found) if long else (b"", name))
    return 0


def _described(name: str, entry: Status) -> dict[str, object]:
    return {
        "name": name,
        "type": _KIND_NAMES.get(entry.kind, "special"),
        "size": entry.size,
        "mode": f"{0o777 if entry.kind == SYMLINK else entry.mode:04o}",
        "mtime_ns": entry.mtime_ns,
        "target": entry.target,
    }


def _line(name: str, entry: Status) -> tuple[bytes, str]:
    mode = stat.filemode(_KIND_BITS.get(entry.kind, 0) | (0o777 if entry.kind == SYMLINK else entry.mode))
    moment = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.mtime_ns // 1_000_000_000))
    return f"{mode} {entry.size:>12} {moment} ".encode(), name + (f" -> {entry.target}" if entry.target else "")


def _print_name(line: tuple[bytes, str]) -> None:
    """Print a line that ends in a name: escaped on a terminal, which no name may act on; its own bytes elsewhere."""
    before, name = line
    text = printable(name) if sys.stdout.isatty() else name
    sys.stdout.flush()
    sys.stdout.buffer.write(before + text.encode("utf-8", "surrogateescape") + b"\n")


@app.command
def cat(*paths: str) -> int:
    """Print files of /data, one after the other.

    Parameters
    ----------
    paths: str
        The files.
    """
    with _open() as volume:
        for path in paths:
            _print_content(volume, path)
    return 0


def _print_content(volume: VolumeClient, path: str) -> None:
    sys.stdout.flush()
    for piece in volume.read(path):
        sys.stdout.buffer.write(piece)
    sys.stdout.buffer.flush()


@app.command
def get(remote: str, local: Annotated[str, cyclopts.Parameter(allow_leading_hyphen=True)] = "", /) -> int:
    """Copy a file or a directory from /data. A directory is merged into one that is there; symlinks in it that stand
    where directories or files come are replaced, never followed.

    Parameters
    ----------
    remote: str
        What to copy.
    local: str
        Where to: a new name, a directory to put it in, or `-` for stdout. The same name here by default.
    """
    with _open() as volume:
        if local == "-":
            _print_content(volume, remote)
            return 0
        target = local or os.curdir
        name = volume_path(remote).rpartition("/")[2] or "data"
        if os.path.isdir(target):
            target = os.path.join(target, name)
        for path in volume.get(remote, target, ProgressLine("downloading")):
            print(f"left out `{printable(path)}`: a special file", file=sys.stderr)
    return 0


@app.command
def put(local: Annotated[str, cyclopts.Parameter(allow_leading_hyphen=True)], remote: str = "", /) -> int:
    """Copy a file or a directory to /data. A directory is merged into one that is there; `sync` mirrors it.

    Parameters
    ----------
    local: str
        What to copy; `-` for stdin.
    remote: str
        Where to: a new name, or a directory of /data to put it in. The same name in /data by default.
    """
    with _open() as volume:
        if local == "-":
            if not volume_path(remote):
                raise ValueError("name the file of /data that stdin goes to")
            volume.write(remote, _stdin())
            return 0
        if not os.path.exists(local):
            raise FileNotFoundError(f"there is no `{printable(local)}`")
        path = volume_path(remote)
        if not path or remote.endswith("/") or _is_directory(volume, path):
            name = (
                os.path.basename(os.path.realpath(local))
                if local.strip("./") == ""
                else os.path.basename(local.rstrip("/"))
            )
            path = f"{path}/{name}" if path else name
        volume.put(local, path, ProgressLine("uploading"))
    return 0


def _stdin() -> Iterator[bytes]:
    while piece := sys.stdin.buffer.read(CHUNK_BYTES):
        yield piece


def _is_directory(volume: VolumeClient, path: str) -> bool:
    try:
        return volume.stat(path).kind == DIRECTORY
    except FileNotFoundError:
        return False


@app.command
def rm(
    *paths: str, recursive: Annotated[bool, cyclopts.Parameter(name=["--recursive", "-r"], negative="")] = False
) -> int:
    """Remove files of /data.

    Parameters
    ----------
    paths: str
        What to remove.
    recursive: bool
        Remove directories with all that they hold.
    """
    with _open() as volume:
        for path in paths:
            if not volume_path(path):
                raise ValueError("`/data` itself cannot be removed")
            if not recursive and volume.stat(path, follow=False).kind == DIRECTORY:
                raise IsADirectoryError(f"`{absolute(volume_path(path))}` is a directory; remove it with `rm -r`")
            volume.remove(path, recursive=recursive)
    return 0


@app.command
def sync(
    local: str,
    remote: str,
    /,
    *,
    exclude: Annotated[tuple[str, ...], cyclopts.Parameter(negative="")] = (),
    delete: bool = True,
    dry_run: Annotated[bool, cyclopts.Parameter(negative="")] = False,
    atomic: bool = True,
    watch: Annotated[bool, cyclopts.Parameter(negative="")] = False,
    json: Annotated[bool, cyclopts.Parameter(negative="")] = False,
    allow_empty: Annotated[bool, cyclopts.Parameter(negative="")] = False,
) -> int:
    """Make a directory of /data a mirror of a local one; prints where it is.

    Parameters
    ----------
    local: str
        The directory to upload.
    remote: str
        Where to: relative to /data/sync, or absolute below /data.
    exclude: tuple[str, ...]
        Pattern (gitignore's syntax) of names to leave alone on both sides; may be given again.
    delete: bool
        Remove there what is gone here.
    dry_run: bool
        Print what would be done, and do nothing.
    atomic: bool
        Refuse where the volume's file system cannot exchange directories in one step.
    watch: bool
        Go on: sync again after each change, a line for each sync, until Ctrl-C.
    json: bool
        With --watch: print a JSON object a line.
    allow_empty: bool
        Let a directory with nothing to mirror in it empty the target.
    """
    if watch:
        if dry_run:
            raise ValueError("`--watch` and `--dry-run` exclude each other")
        from atoll.cli.watch import watch as keep

        return keep(local, remote, json=json, exclude=exclude, delete=delete, atomic=atomic)
    from atoll.sdk.sync import sync_dir

    path = sync_dir(
        local, remote, exclude=exclude, delete=delete, dry_run=dry_run, atomic=atomic, allow_empty=allow_empty
    )
    if not dry_run:
        _print_name((b"", path))
    return 0


snapshots.register(app)
