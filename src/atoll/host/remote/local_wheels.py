"""Wheels of source trees and archives of this machine, built here by uv, for a server.

A tree is built here, since the server runs no code of packages that it was not asked to. Where its wheel is for another
system than Linux, its source distribution is sent instead: the server builds that as one of an index. What was built is
kept for the next program, by the digest of the tree.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from pathlib import Path

from atoll import process, settings
from atoll.environments.asked.local_sources import content_digest
from atoll.errors import EnvironmentBuildError
from atoll.host.remote.package_directories import fits
from atoll.model.specs import EnvironmentSpec
from atoll.terminal_text import printable

KEPT_SECONDS = 30 * 24 * 3600.0
"""Seconds for which an unused wheel of a tree is kept here."""
BUILD_SECONDS = 600.0


def wheel_of(path: str, entry: str, spec: EnvironmentSpec) -> Path:
    """Return the package of a requirement: itself if it is a wheel, else what uv builds of it.

    Args:
        entry: the requirement, for messages.
        spec: has the version of Python, and the index settings of the build.

    Raises:
        EnvironmentBuildError: it cannot be built; the message names it.
    """
    found = Path(path)
    if not found.exists():
        raise EnvironmentBuildError(
            f"there is nothing at `{printable(path)}`, which `requirements` names", hint="check the path"
        )
    if found.suffix == ".whl":
        return found
    kept = settings.default_home() / "wheels" / f"{content_digest(path)}-{spec.python_version}"
    with contextlib.suppress(OSError, StopIteration):
        package = next(kept.iterdir())
        os.utime(kept)
        return package
    return _built(found, kept, entry, spec)


def _built(source: Path, kept: Path, entry: str, spec: EnvironmentSpec) -> Path:
    uv = _find_uv()
    if uv is None:
        raise EnvironmentBuildError(
            f"`{printable(entry)}` in `requirements` is a source tree, which is built here before it is uploaded, by uv",
            hint="install uv on this machine, or build a wheel and name that",
        )
    kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    _drop_old(kept.parent)
    with tempfile.TemporaryDirectory(dir=kept.parent, prefix=".new-") as directory:
        package = _run(uv, source, Path(directory), spec, "--wheel")
        if not fits(package.name, spec.python_version):
            package.unlink()
            if source.is_dir():
                package = _run(uv, source, Path(directory), spec, "--sdist")
            else:
                package = Path(shutil.copy(source, directory))
        kept.mkdir(exist_ok=True)
        return package.replace(kept / package.name)  # whole, or not there


def _run(uv: str, source: Path, directory: Path, spec: EnvironmentSpec, kind: str) -> Path:
    """Build a wheel or a source distribution into a directory; return it."""
    command = [uv, "build", kind, "--python", spec.interpreter or spec.python_version]
    command += ["--out-dir", os.fspath(directory), os.fspath(source)]
    environment = settings.environment_with(_index_variables(dict(spec.index)))
    try:
        done = process.run_here(command, timeout_seconds=BUILD_SECONDS, environment=environment)
    except TimeoutError as error:
        raise EnvironmentBuildError(
            f"the build of `{printable(str(source))}` took longer than {BUILD_SECONDS:.0f} s",
            hint="build a wheel and name that",
        ) from error
    made = [one for one in directory.iterdir() if one.name.endswith((".whl", ".tar.gz", ".zip"))]
    if done.status != 0 or len(made) != 1:
        raise EnvironmentBuildError(
            f"`{printable(str(source))}` in `requirements` cannot be built into a wheel",
            hint=f"see what `uv build {kind} {printable(str(source))}` says",
            log=done.output[-4000:],
        )
    return made[0]


def _index_variables(index: dict[str, str]) -> dict[str, str]:
    """Return pip's settings as variables of uv, where uv has none of its own: what the build needs comes from there."""
    found: dict[str, str] = {}
    if "PIP_INDEX_URL" in index and not {"UV_DEFAULT_INDEX", "UV_INDEX_URL"} & index.keys():
        found["UV_DEFAULT_INDEX"] = index["PIP_INDEX_URL"]
    if "PIP_EXTRA_INDEX_URL" in index and not {"UV_INDEX", "UV_EXTRA_INDEX_URL"} & index.keys():
        found["UV_INDEX"] = " ".join(index["PIP_EXTRA_INDEX_URL"].split())
        found["UV_INDEX_STRATEGY"] = index.get("UV_INDEX_STRATEGY", "unsafe-best-match")
    if "PIP_FIND_LINKS" in index and "UV_FIND_LINKS" not in index:
        found["UV_FIND_LINKS"] = ",".join(index["PIP_FIND_LINKS"].split())
    return found


def _drop_old(directory: Path) -> None:
    oldest = time.time() - KEPT_SECONDS
    for found in directory.iterdir():
        with contextlib.suppress(OSError):
            if found.stat().st_mtime < oldest:
                shutil.rmtree(found, ignore_errors=True)


def _find_uv() -> str | None:
    """Return the program that is installed with atoll, else one on PATH."""
    try:
        from uv import find_uv_bin  # for source trees alone

        return str(find_uv_bin())
    except (ImportError, FileNotFoundError):  # the latter is `uv.UvNotFound`'s base
        return shutil.which("uv")
