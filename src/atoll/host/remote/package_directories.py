"""Directories of packages on this machine (`--find-links`), and those of their files that a server may need.

A server runs Linux and the function's version of Python: wheels for others stay here. All others are uploaded, since
this machine does not resolve: a package of an index may need any of them. So a directory with too many is refused.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from atoll.environments.asked.uploaded import MOST_NAMES, PACKAGE
from atoll.errors import EnvironmentBuildError
from atoll.terminal_text import printable

MOST_DIRECTORY_BYTES = 3 << 30
"""Of the packages of one directory."""
_LINUX = ("linux", "manylinux", "musllinux")


def packages_in(directory: str, source: str, python_version: str) -> dict[str, Path]:
    """Return the packages of a directory that a server may need, by their names.

    Args:
        source: the setting or option that names it, for messages.
        python_version: of the function.

    Raises:
        EnvironmentBuildError: it cannot be read, has none, or too many; the message names it.
    """
    shown = f"`{printable(directory)}`, which `{printable(source)}` names,"
    try:
        files = {one.name: one for one in Path(directory).iterdir() if PACKAGE.fullmatch(one.name) and one.is_file()}
    except OSError as error:
        raise EnvironmentBuildError(
            f"cannot read `{printable(directory)}`, which `{printable(source)}` names: {(error.strerror or '').lower()}",
            hint="check the path, or leave the setting out",
        ) from error
    found = {name: path for name, path in files.items() if fits(name, python_version)}
    if not found:
        raise EnvironmentBuildError(
            f"{shown} has no package that fits Linux and Python {python_version}",
            hint="check the path, or leave the setting out",
        )
    size = sum(path.stat().st_size for path in found.values())
    if len(found) > MOST_NAMES or size > MOST_DIRECTORY_BYTES:
        raise EnvironmentBuildError(
            f"{shown} has {len(found)} packages with {size >> 20} MiB, and {MOST_NAMES} with "
            f"{MOST_DIRECTORY_BYTES >> 20} MiB can be uploaded",
            hint="name a directory with those that the function needs: `pip download -d DIRECTORY REQUIREMENTS` makes one",
        )
    return found


def fits(name: str, python_version: str) -> bool:
    """Return whether a server may use a package: a source distribution, or a wheel for Linux and this Python."""
    if not name.endswith(".whl"):
        return True
    *_, pythons, abis, platforms = name.removesuffix(".whl").rsplit("-", 3)
    if not any(platform == "any" or platform.startswith(_LINUX) for platform in platforms.split(".")):
        return False
    asked = re.fullmatch(r"3\.(\d+)(\.\d+)?", python_version)
    return asked is None or any(_suits(tag, abis, int(asked[1])) for tag in pythons.split("."))


def _suits(tag: str, abis: str, minor: int) -> bool:
    """Return whether a wheel's tag suits a minor version of Python 3."""
    match = re.fullmatch(r"(py|cp)3(\d*)", tag)
    if match is None:
        return False
    least = int(match[2] or 0)
    return least == minor or (least < minor and (match[1] == "py" or "abi3" in abis.split(".") or abis == "none"))


def path_of(address: str) -> str | None:
    """Return the path of this machine that a text names as a place of packages; None for an address of the network."""
    if re.match(r"(?i)https?://", address):
        return None
    if re.match(r"(?i)file:", address):
        path = unquote(urlsplit(address).path)
        return path[1:] if re.match(r"/[A-Za-z]:", path) else path
    return None if "://" in address else os.path.abspath(os.path.expanduser(address))
