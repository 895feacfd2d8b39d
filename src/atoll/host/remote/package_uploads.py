"""Uploads of packages to a server: each file once, named by its digest, and directories of files by their lists."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from atoll import file_stamp
from atoll.environments.asked.uploaded import MOST_BYTES, PACKAGE
from atoll.errors import EnvironmentBuildError
from atoll.file_stamp import Stamp
from atoll.terminal_text import printable

KNOWN_SECONDS = 600.0
"""Seconds for which the server is taken to have an upload."""
_MOST_DIGESTS = 4096

_known: dict[tuple[str, str], float] = {}
_digests: dict[str, tuple[Stamp, str]] = {}


def send_file(host: Any, path: Path) -> str:
    """Upload a package that the server has not yet; return its key.

    Args:
        host: has `server` and `identity`.

    Raises:
        EnvironmentBuildError: it cannot be read, or not be uploaded.
        AtollError: the server refuses it, or cannot be reached.
    """
    check(path)
    key = digest_of(path)
    where = f"/v1/packages/{key}/{path.name}"
    if not _is_known(host, where):
        _send(host, where, path)
    return key


def send_directory(host: Any, packages: Mapping[str, Path]) -> str:
    """Upload the packages of a directory that the server has not yet; return the directory's key.

    Args:
        packages: by name; at least one.

    Raises:
        As `send_file`.
    """
    for path in packages.values():
        check(path)
    digests = {name: digest_of(path) for name, path in sorted(packages.items())}
    listed = "".join(f"{digest} {name}\n" for name, digest in digests.items()).encode()
    key = hashlib.sha256(listed).hexdigest()
    where = f"/v1/packages/{key}"
    if _is_known(host, where):
        return key
    for _ in range(2):
        answer = host.server.put(where, listed, len(listed))
        if answer["present"]:
            _note(host, where)
            return key
        for name in {one.partition("/")[2] for one in answer["missing"]} & packages.keys():
            _send(host, f"/v1/packages/{digests[name]}/{name}", packages[name])
    raise EnvironmentBuildError(
        "the server does not keep all packages of a directory that `requirements` or an index setting names",
        hint="name a directory with fewer, or smaller, packages",
    )


def check(path: Path) -> None:
    """Refuse a file that a server does not take.

    Raises:
        EnvironmentBuildError: its name is no package's, or it is too large.
    """
    if PACKAGE.fullmatch(path.name) is None:
        raise EnvironmentBuildError(
            f"`{printable(path.name)}` is not the name of a wheel or source distribution",
            hint="give it the name that its build gave it",
        )
    with contextlib.suppress(OSError):
        if (size := path.stat().st_size) > MOST_BYTES:
            raise EnvironmentBuildError(
                f"`{printable(str(path))}` has {size >> 20} MiB, and a package for a server may have {MOST_BYTES >> 20}",
                hint="serve it by an index that the server reaches",
            )


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file, which is read once for each of its states.

    Raises:
        EnvironmentBuildError: it cannot be read.
    """
    name, stamp = os.fspath(path), file_stamp.take(os.fspath(path))
    known = _digests.get(name)
    if known is not None and known[0] == stamp:
        return known[1]
    try:
        with open(path, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise EnvironmentBuildError(
            f"cannot read `{printable(name)}`, which `requirements` names: {error.strerror}", hint="check the path"
        ) from error
    if not file_stamp.is_young(stamp):
        if len(_digests) >= _MOST_DIGESTS:
            _digests.clear()
        _digests[name] = stamp, found
    return found


def _is_known(host: Any, where: str) -> bool:
    if _known.get((host.identity, where), 0.0) > time.monotonic():
        return True
    if host.server.ask("GET", where)["present"]:
        _note(host, where)
        return True
    return False


def _note(host: Any, where: str) -> None:
    _known[host.identity, where] = time.monotonic() + KNOWN_SECONDS


def _send(host: Any, where: str, path: Path) -> None:
    with open(path, "rb") as file:
        host.server.put(where, file, os.fstat(file.fileno()).st_size)
    _note(host, where)
