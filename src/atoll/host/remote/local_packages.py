"""Packages of this machine in requirements, uploaded to a server: wheels, source trees built into wheels, directories.

A tree is built here, by uv, since the server runs no code of packages that it was not asked to. A wheel is named by
its digest, and sent once. The wheel of a tree is kept for the next program, by the digest of the tree.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shlex
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from atoll import process, settings
from atoll.environments.asked.local_sources import content_digest
from atoll.environments.asked.uploaded import SCHEME
from atoll.errors import EnvironmentBuildError
from atoll.model.specs import EnvironmentSpec
from atoll.terminal_text import printable

KNOWN_SECONDS = 600.0
"""Seconds for which the server is taken to have an upload."""
KEPT_SECONDS = 30 * 24 * 3600.0
"""Seconds for which an unused wheel of a tree is kept here."""
BUILD_SECONDS = 600.0
MOST_LINKS = 1000

_LINKS = ("-f", "--find-links")
_NAMED = re.compile(r"(?P<name>[\w.-]+)\s*(?P<extras>\[[^\]]*\])?\s*@\s*(?P<address>(git\+)?file:.*)", re.DOTALL)
_known: dict[tuple[str, str], float] = {}


def has_any(spec: EnvironmentSpec) -> bool:
    """Return whether a spec names packages of this machine."""
    return any(_reads(entry) for entry in (*spec.requirements, *spec.pip))


def _reads(entry: str) -> bool:
    text = entry.strip()
    if text.startswith(("-e", "--editable", "file:", "git+file:")) or os.path.isabs(text):
        return True
    return _links_of(text) is not None or _NAMED.match(text) is not None


def uploaded(host: Any, spec: EnvironmentSpec) -> EnvironmentSpec:
    """Return the spec with names of uploads in place of paths, which are on the server by then.

    Args:
        host: has `server` and `identity`.

    Raises:
        EnvironmentBuildError: a package cannot be uploaded; the message names it.
    """
    return replace(
        spec,
        requirements=tuple(_entry(host, one) for one in spec.requirements),
        pip=tuple(_entry(host, one) for one in spec.pip),
    )


def _entry(host: Any, entry: str) -> str:
    if not _reads(entry):
        return entry
    text = re.sub(r"\s#.*$", "", entry.strip())  # a stamp of the path's contents
    if (directory := _links_of(text)) is not None:
        return f"--find-links {SCHEME}{_upload_directory(host, directory)}"
    text = re.sub(r"^(-e|--editable)[ =]\s*", "", text)
    text, semicolon, marker = text.partition(" ;")
    extras = ""
    if named := _NAMED.match(text):
        text, extras = named["address"], named["extras"] or ""
    if text.startswith("git+"):
        raise EnvironmentBuildError(
            f"`{printable(entry)}` in `requirements` is a git repository of this machine, which a server cannot read",
            hint="name its working tree, which is uploaded, or an address of the network",
        )
    if text.startswith("file:"):
        path = unquote(urlsplit(text).path)
        path = path[1:] if re.match(r"/[A-Za-z]:", path) else path
    else:
        bare, bracket, rest = text.removesuffix("]").rpartition("[")
        path, extras = (
            (bare, f"[{rest}]") if bracket and text.endswith("]") and not os.path.exists(text) else (text, "")
        )
    wheel = _wheel_of(path, entry)
    key = _digest_of(wheel)
    _send(host, key, wheel, key)
    return f"{SCHEME}{key}/{wheel.name}{extras}{semicolon}{marker}"


def _links_of(text: str) -> str | None:
    """Return the directory of an option for packages in a directory; None for anything else."""
    if not text.startswith(_LINKS):
        return None
    with contextlib.suppress(ValueError):
        words = shlex.split(text.replace("--find-links=", "--find-links ", 1))
        if len(words) == 2 and words[0] in _LINKS and "://" not in words[1] and not words[1].startswith(SCHEME):
            return words[1]
    return None


# --- wheels -----------------------------------------------------------------------------------------------------------


def _wheel_of(path: str, entry: str) -> Path:
    """Return the wheel of a requirement: itself, or what uv builds of a tree or archive."""
    found = Path(path)
    if not found.exists():
        raise EnvironmentBuildError(
            f"there is nothing at `{printable(path)}`, which `requirements` names", hint="check the path"
        )
    if found.suffix == ".whl":
        return found
    kept = settings.default_home() / "wheels" / content_digest(path)
    with contextlib.suppress(OSError, StopIteration):
        wheel = next(kept.glob("*.whl"))
        os.utime(kept)
        return wheel
    return _built(found, kept, entry)


def _built(source: Path, kept: Path, entry: str) -> Path:
    uv = _find_uv()
    if uv is None:
        raise EnvironmentBuildError(
            f"`{printable(entry)}` in `requirements` is a source tree, which is built here before it is uploaded, by uv",
            hint="install uv on this machine, or build a wheel and name that",
        )
    kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    _drop_old(kept.parent)
    with tempfile.TemporaryDirectory(dir=kept.parent, prefix=".new-") as directory:
        command = [uv, "build", "--wheel", "--no-config", "--out-dir", directory, os.fspath(source)]
        try:
            done = process.run_here(command, timeout_seconds=BUILD_SECONDS)
        except TimeoutError as error:
            raise EnvironmentBuildError(
                f"the build of `{printable(str(source))}` took longer than {BUILD_SECONDS:.0f} s",
                hint="build a wheel and name that",
            ) from error
        wheels = list(Path(directory).glob("*.whl"))
        if done.status != 0 or len(wheels) != 1:
            raise EnvironmentBuildError(
                f"`{printable(str(source))}` in `requirements` cannot be built into a wheel",
                hint=f"see what `uv build --wheel {printable(str(source))}` says",
                log=done.output[-4000:],
            )
        kept.mkdir(exist_ok=True)
        wheels[0].replace(kept / wheels[0].name)
        return kept / wheels[0].name


def _drop_old(directory: Path) -> None:
    oldest = time.time() - KEPT_SECONDS
    for found in directory.iterdir():
        with contextlib.suppress(OSError):
            if found.stat().st_mtime < oldest:
                shutil.rmtree(found, ignore_errors=True)


def _upload_directory(host: Any, directory: str) -> str:
    """Upload the wheels of a directory; return its key."""
    try:
        wheels = sorted(one for one in Path(directory).iterdir() if one.suffix == ".whl")
    except OSError as error:
        raise EnvironmentBuildError(
            f"cannot read `{printable(directory)}`, which `requirements` names: {error.strerror}", hint="check the path"
        ) from error
    if not 0 < len(wheels) <= MOST_LINKS:
        raise EnvironmentBuildError(
            f"`{printable(directory)}`, which `requirements` names, has {len(wheels)} wheels, and 1 to {MOST_LINKS} can be "
            "uploaded",
            hint="build wheels of its archives with `uv build`, or serve them as an index",
        )
    digests = {wheel: _digest_of(wheel) for wheel in wheels}
    listed = "".join(f"{digest} {wheel.name}\n" for wheel, digest in digests.items())
    key = hashlib.sha256(listed.encode()).hexdigest()
    for wheel, digest in digests.items():
        _send(host, key, wheel, digest)
    return key


def _digest_of(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
    except OSError as error:
        raise EnvironmentBuildError(
            f"cannot read `{printable(str(path))}`, which `requirements` names: {error.strerror}", hint="check the path"
        ) from error
    return digest.hexdigest()


def _send(host: Any, key: str, wheel: Path, digest: str) -> None:
    """Upload a wheel that the server has not yet."""
    where = f"/v1/packages/{key}/{wheel.name}"
    known = host.identity, where
    if _known.get(known, 0.0) > time.monotonic():
        return
    if not host.server.ask("GET", where)["present"]:
        with open(wheel, "rb") as file:
            host.server.put(where, file, os.fstat(file.fileno()).st_size, {"Atoll-Sha256": digest})
    _known[known] = time.monotonic() + KNOWN_SECONDS


def _find_uv() -> str | None:
    """Return the program that is installed with atoll, else one on PATH."""
    try:
        from uv import find_uv_bin  # for source trees alone

        return str(find_uv_bin())
    except (ImportError, FileNotFoundError):  # the latter is `uv.UvNotFound`'s base
        return shutil.which("uv")
