"""Texts of requirements files, and their lines as pip reads them. A file is read again when its stamp differs."""

from __future__ import annotations

import os
import re

from atoll import file_stamp
from atoll.errors import EnvironmentBuildError
from atoll.payload.project import working_directory
from atoll.sdk.requirements.entries import absolute

CONSTRAINT = "--constraint-line"
"""Option of an entry that is one line of a file of constraints."""
MAX_BYTES = 8 << 20
"""The longest file."""

_known: dict[str, tuple[file_stamp.Stamp, str]] = {}
_MOST_KNOWN = 64


def text_of(path: str) -> str:
    """Return the text of a file.

    Raises:
        EnvironmentBuildError: it cannot be read, is not UTF-8, or is longer than `MAX_BYTES`.
    """
    stamp = file_stamp.take(path)
    known = _known.get(path)
    if known is not None and known[0] == stamp and not file_stamp.is_young(stamp):
        return known[1]
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise EnvironmentBuildError(f"`{path}` has more than {MAX_BYTES >> 20} MiB", hint="check the path")
        text = data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except FileNotFoundError as error:
        raise EnvironmentBuildError(
            f"there is no file `{path}`, which `requirements` names",
            hint="check the name; it is looked for beside the program, at its project's root and in the working directory",
        ) from error
    except OSError as error:
        raise EnvironmentBuildError(
            f"cannot read `{path}`, which `requirements` names: {(error.strerror or str(error)).lower()}",
            hint="check the path and its permissions",
        ) from error
    except UnicodeDecodeError as error:
        raise EnvironmentBuildError(
            f"`{path}`, which `requirements` names, is not UTF-8", hint="save it in that encoding"
        ) from error
    if known is not None and known[1] == text:
        text = known[1]  # the same object: a reader that remembers its texts finds it fast
    if len(_known) >= _MOST_KNOWN:
        _known.clear()
    _known[path] = stamp, text
    return text


def lines(text: str, path: str, *, variables: bool) -> tuple[str, ...]:
    """Return the entries of a requirements file, as pip reads them.

    A backslash at the end of a line continues it, `#` begins a comment, and relative paths are meant from the file's
    directory.

    Args:
        variables: whether `${NAME}` is replaced by that variable of the environment.
    """
    found = []
    joined = re.sub(r"\\\r?\n", " ", text)
    for line in joined.splitlines():
        line = re.sub(r"(^|\s)#.*$", "", line).strip()
        if line:
            found.append(re.sub(r"\$\{([A-Z0-9_]+)\}", _variable, line) if variables else line)
    return absolute(found, (os.path.dirname(path), working_directory()))


def _variable(match: re.Match[str]) -> str:
    from atoll import settings  # only for files that name variables

    return settings.variable(match[1]) or match[0]
