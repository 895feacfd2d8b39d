"""Paths of the volume on the command line: patterns, directories that things go into, and names that are not there."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterator, Sequence

from atoll.errors import AtollError
from atoll.sdk.data.glob import has_magic
from atoll.sdk.data.volume import Volume
from atoll.storage.protocol.connection import absolute, volume_path
from atoll.terminal_text import printable


@contextlib.contextmanager
def opened() -> Iterator[Volume]:
    """Give the volume of the host that is used; errors of its file system are put into words."""
    with Volume() as volume:
        try:
            yield volume
        except OSError as error:
            raise _worded(volume, error) from error


def _worded(volume: Volume, error: OSError) -> OSError:
    """Return an error of a file system in the words of this program, with the nearest name where one is missing."""
    path, other = error.filename, error.filename2
    if not isinstance(path, str) or error.strerror is None or isinstance(error, AtollError):
        return error
    text = f"{error.strerror.lower()}: `{printable(path)}`"
    if isinstance(other, str):
        text += f" -> `{printable(other)}`"
    if isinstance(error, FileNotFoundError) and path.startswith("/data/"):
        parent, _, name = path.rpartition("/")
        with contextlib.suppress(OSError):
            names = volume.listdir(parent)
            near = difflib.get_close_matches(name, names, 1)
            if name in names:
                text += "\nhint: it is a symlink to what is not there"
            elif near:
                text += f"\nhint: did you mean `{printable(near[0])}`?"
    return type(error)(text)


def expanded(volume: Volume, paths: Sequence[str], *, follow: bool = True) -> list[str]:
    """Return the absolute paths that arguments name, patterns replaced by their matches.

    Args:
        follow: whether symlinks are to lead to something: they are looked at all, also those that match.

    Raises:
        FileNotFoundError: one is not there, or nothing matches.
        PermissionError: a symlink leads out of `/data`.
    """
    found: list[str] = []
    for path in paths:
        where = absolute(volume_path(path))
        if has_magic(where) and not volume.exists(where):
            matches = volume.glob(where)
            if not matches:
                raise FileNotFoundError(f"nothing matches `{printable(where)}`")
            if follow:
                for match in matches:
                    volume.stat(match)
            found += matches
        else:
            volume.stat(where, follow=follow)
            found.append(where)
    return found


def base_name(path: str) -> str:
    """Return the last name of an absolute path of the volume."""
    return path.rpartition("/")[2]


def targets(volume: Volume, sources: Sequence[str], target: str) -> list[tuple[str, str]]:
    """Pair sources with their targets, as `cp` and `mv` do: inside the target if it is a directory or ends with `/`,
    else exactly the target.

    Raises:
        NotADirectoryError: there are several sources and the target is no directory.
    """
    where = absolute(volume_path(target))
    if target.endswith("/") or volume.isdir(where):
        return [(source, f"{where}/{base_name(source)}") for source in sources]
    if len(sources) != 1:
        raise NotADirectoryError(several(where))
    return [(sources[0], where)]


def several(target: str) -> str:
    """Return the error for several sources without a target directory."""
    where = printable(absolute(volume_path(target)))
    return f"several files go to `{where}`, which is not a directory\nhint: `{where}/` makes one where nothing is"
