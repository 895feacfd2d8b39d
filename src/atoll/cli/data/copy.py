"""`atoll data get`, `put`, `cp` and `mv`."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Annotated

import cyclopts

from atoll.cli.data.commands import print_content
from atoll.cli.data.paths import base_name, expanded, opened, several, targets
from atoll.cli.programs.program import TargetError
from atoll.cli.terminal import echo
from atoll.sdk.data.volume import Volume
from atoll.storage.content.transfer import CHUNK_BYTES
from atoll.storage.protocol.connection import absolute, volume_path
from atoll.storage.protocol.progress import ProgressLine
from atoll.terminal_text import printable

_Paths = Annotated[str, cyclopts.Parameter(allow_leading_hyphen=True)]
_Recursive = Annotated[bool, cyclopts.Parameter(name=["--recursive", "-r"], negative="")]


def get(*paths: _Paths, recursive: _Recursive = False) -> int:  # noqa: ARG001 - accepted for habit
    """Copy files and directories from /data. A directory is merged into an existing one; symlinks in the way are replaced,
    never followed.

    Parameters
    ----------
    paths: str
        Sources, and last the target: a new name, an existing directory, or `-` for stdout. A single path is copied to
        the same name here.
    recursive: bool
        Accepted for habit: directories are always copied whole.
    """
    _check(paths, 1)
    sources, target = (paths[:-1], paths[-1]) if len(paths) > 1 else (paths, os.curdir)
    with opened() as volume:
        found = expanded(volume, sources)
        if target == "-":
            for path in found:
                print_content(volume, path)
            return 0
        into = os.path.isdir(target) or target.endswith(("/", os.sep))
        if len(found) > 1 and not into:
            raise NotADirectoryError(f"several files go to `{printable(target)}`, which is not a directory here")
        places = [os.path.join(target, base_name(path)) if into else target for path in found]
        if into:
            os.makedirs(target, exist_ok=True)
        for path, where in zip(found, places, strict=True):
            for left in volume.get(path, where, ProgressLine("downloading")):
                echo(f"left out `{left}`: a special file", error=True)
    return 0


def put(*paths: _Paths, recursive: _Recursive = False) -> int:  # noqa: ARG001 - accepted for habit
    """Copy files and directories to /data. A directory is merged into one that is there; `sync` mirrors it.

    Parameters
    ----------
    paths: str
        Sources (`-` for stdin), and last the target: a new name, or a directory of /data. A single path is copied to
        the same name in /data.
    recursive: bool
        Accepted for habit: directories are always copied whole.
    """
    _check(paths, 1)
    sources, target = (paths[:-1], paths[-1]) if len(paths) > 1 else (paths, "")
    where = volume_path(target)
    if "-" in sources and (len(sources) > 1 or not where):
        raise TargetError("name the file of /data that stdin goes to")
    if "-" in sources and sys.stdin is None:
        raise TargetError("stdin is closed", hint="name a file, or pipe to this command")
    if target == "-":
        raise TargetError("`-` is not a place of /data", hint="a file so called is `./-`")
    for source in sources:
        if source != "-" and not os.path.exists(source):
            raise FileNotFoundError(f"there is no `{printable(source)}`")
    with opened() as volume:
        into = target.endswith("/") or volume.isdir(where)
        if sources == ("-",):
            if into:
                raise IsADirectoryError(f"`{printable(absolute(where))}` is a directory; name a file for stdin")
            with contextlib.closing(ProgressLine("uploading")) as progress:
                volume.write_bytes(where, _stdin(progress))
            return 0
        if len(sources) > 1 and not into:
            raise NotADirectoryError(several(where))
        for source in sources:
            name = f"{where}/{_local_name(source)}" if where else _local_name(source)
            volume.put(source, name if into else where, ProgressLine("uploading"))
    return 0


def _check(paths: tuple[str, ...], least: int) -> None:
    """Check the paths; `-` is one, and anything else that begins with a dash is an unknown option."""
    for path in paths:
        if path.startswith("-") and path != "-":
            raise TargetError(
                f"there is no option `{printable(path)}`", hint="see `--help`; a file so called is `./-…`"
            )
    if len(paths) < least:
        raise TargetError("name sources and target: SOURCE… TARGET" if least > 1 else "name what to copy")


def _local_name(path: str) -> str:
    return os.path.basename(os.path.realpath(path) if path.strip("./") == "" else path.rstrip("/"))


def _stdin(progress: ProgressLine) -> Iterator[bytes]:
    while piece := sys.stdin.buffer.read(CHUNK_BYTES):
        yield piece
        progress.advance(0, len(piece))


def cp(*paths: _Paths, recursive: _Recursive = False) -> int:
    """Copy files and directories within /data, without moving their content through this machine's client.

    Modes and modification times are kept. A copy appears when it is whole.

    Parameters
    ----------
    paths: str
        Sources, and last the target: a new name, or an existing directory.
    recursive: bool
        Copy directories with all that they hold.
    """
    sources, target = _sources_and_target(paths)
    with opened() as volume:
        found = expanded(volume, sources)
        for path in found:
            if not recursive and volume.isdir(path):
                raise IsADirectoryError(f"`{printable(path)}` is a directory; copy it with `cp -r`")
        for source, where in targets(volume, found, target):
            _copy(volume, source, where)
    return 0


def _copy(volume: Volume, source: str, target: str) -> None:
    with contextlib.closing(ProgressLine("copying")) as progress:
        if sys.stderr.isatty():
            used = volume.usage(source)
            progress.start(used.files, used.apparent_bytes)
        volume.copy(source, target, progress.reach if sys.stderr.isatty() else None)


def mv(
    *paths: _Paths,
    no_clobber: Annotated[bool, cyclopts.Parameter(name=["--no-clobber", "-n"], negative="")] = False,
) -> int:
    """Rename or move files and directories within /data, each in one step.

    Parameters
    ----------
    paths: str
        Sources, and last the target: a new name, or an existing directory.
    no_clobber: bool
        Refuse to replace a file that is there.
    """
    sources, target = _sources_and_target(paths)
    with opened() as volume:
        for source, where in targets(volume, expanded(volume, sources, follow=False), target):
            if source != where:
                volume.rename(source, where, replace=not no_clobber)
    return 0


def _sources_and_target(paths: tuple[str, ...]) -> tuple[tuple[str, ...], str]:
    _check(paths, 2)
    return paths[:-1], paths[-1]
