"""The base Python of an environment, and the host's files that it needs inside a sandbox.

An interpreter is not relocatable: it finds its standard library from where it lies, so a sandbox shows it at the
host's own path. Usually that is its whole prefix (pyenv, conda, uv's own); where the prefix holds much else (a home
directory, `~/.local`), only the interpreter's files in it. What the process maps beside (a shared libpython
elsewhere) is read from the process itself.
"""

from __future__ import annotations

import errno
import json
import os
import pwd
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atoll import process, settings
from atoll.errors import EnvironmentBuildError, StateUnusable
from atoll.model.mounts import Bind
from atoll.model.specs import EnvironmentSpec

SYSTEM_DIRECTORIES = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
"""Directories that every sandbox sees."""

_SHARED_DIRECTORIES = ("/", "/opt", "/home", "/srv", "/mnt", "/var", "/data", "/media", "/tmp", "/etc", "/run")

_MACHINES = (errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM)
"""The reasons for which a process cannot be started that are not its program's."""

_PROBE = """
import json, os, sys, sysconfig
v = sys.version_info
level = {"alpha": "a", "beta": "b", "candidate": "rc"}.get(v[3], "")
try:
    libc = os.confstr("CS_GNU_LIBC_VERSION") or ""
except (ValueError, OSError, AttributeError):
    libc = ""
try:
    with open("/proc/self/maps") as maps:
        mapped = sorted({line.split(None, 5)[5].strip() for line in maps if "/" in line})
except OSError:
    mapped = []
print(json.dumps({
    "implementation": sys.implementation.name,
    "version": "%d.%d.%d" % v[:3] + (level + str(v[4]) if level else ""),
    "abi": sysconfig.get_config_var("SOABI") or "",
    "platform": sysconfig.get_platform() + ("-" + libc.replace(" ", "") if libc else ""),
    "prefix": sys.base_prefix,
    "executable": getattr(sys, "_base_executable", None) or sys.executable,
    "mapped": mapped,
}))
"""


@dataclass(frozen=True)
class Interpreter:
    """A Python that environments can be made for.

    Args:
        executable: absolute path with all symlinks resolved.
        version: as in `3.11.7`.
        implementation: `cpython`, `pypy`.
        abi: the tag of its extension modules, as in `cpython-311-x86_64-linux-gnu`.
        platform: operating system, architecture and C library.
        prefix: the directory of its standard library, as the interpreter reports.
        binds: host paths that a sandbox must show beside the system's libraries.
    """

    executable: str
    version: str
    implementation: str
    abi: str
    platform: str
    prefix: str
    binds: tuple[Bind, ...]

    @property
    def minor(self) -> str:
        """As in `3.11`."""
        return ".".join(self.version.split(".")[:2])


def fits(version: str, wanted: str) -> bool:
    """Return whether `version` (`3.11.7`) satisfies `wanted`: ``, `3`, `3.11`, `3.11.7` or `>=3.10,<3.13`.

    Raises:
        EnvironmentBuildError: `wanted` is not a version.
    """
    wanted = wanted.strip()
    if not wanted:
        return True
    from packaging.specifiers import InvalidSpecifier, SpecifierSet  # 13 ms of the daemon's start
    from packaging.version import InvalidVersion, Version  # as above

    try:
        if wanted[0].isdigit():
            wanted = wanted.removesuffix(".*")
            if Version(wanted).is_prerelease or len(Version(wanted).release) > 2:
                return Version(version) == Version(wanted)
            return Version(version) in SpecifierSet(f"=={wanted}.*", prereleases=True)
        return Version(version) in SpecifierSet(wanted, prereleases=True)
    except (InvalidSpecifier, InvalidVersion) as error:
        raise EnvironmentBuildError(
            f"`{wanted}` is not a version of Python", hint='write it as in `python_version="3.11"`'
        ) from error


_probed: dict[tuple[str, int, int], Interpreter] = {}
_found: dict[str, str] = {}


async def probe(executable: str) -> Interpreter:
    """Ask the interpreter at `executable` for its facts; it runs once for each state of its file.

    Raises:
        EnvironmentBuildError: it is not there, or not a Python.
    """
    try:
        status = os.stat(executable)
    except OSError as error:
        raise EnvironmentBuildError(
            f"there is no Python at `{executable}`", hint="was it removed or upgraded? restart the program that calls"
        ) from error
    identity = (executable, status.st_mtime_ns, status.st_ino)
    if identity not in _probed:
        facts = await _ask(executable)
        real = os.path.realpath(facts["executable"])
        _probed[identity] = Interpreter(
            executable=real,
            version=facts["version"],
            implementation=facts["implementation"],
            abi=facts["abi"],
            platform=facts["platform"],
            prefix=facts["prefix"],
            binds=binds(real, facts["prefix"], facts["version"], facts["mapped"]),
        )
    return _probed[identity]


async def _ask(executable: str) -> dict[str, Any]:
    try:
        done = await process.run(
            [executable, "-I", "-S", "-c", _PROBE], env={"PATH": settings.search_path()}, timeout_seconds=30
        )
        facts: dict[str, Any] = json.loads(done.output.strip().splitlines()[-1])
        return facts
    except TimeoutError as error:
        raise EnvironmentBuildError(
            f"`{executable}` did not answer within 30 seconds", hint=f"try `{executable} -I -c 'print(1)'`"
        ) from error
    except OSError as error:
        if error.errno in _MACHINES:
            raise StateUnusable(
                f"cannot start `{executable}`: {(error.strerror or str(error)).lower()}",
                hint="end programs that use many files, processes or memory, or raise the limit (`ulimit -n`, `ulimit -u`)",
            ) from error
        raise EnvironmentBuildError(
            f"`{executable}` cannot be started: {(error.strerror or str(error)).lower()}",
            hint=f"try `{executable} -I -c 'print(1)'`",
        ) from error
    except (ValueError, IndexError) as error:
        raise EnvironmentBuildError(
            f"`{executable}` does not run as a Python", hint=f"try `{executable} -I -c 'print(1)'`"
        ) from error


async def find(spec: EnvironmentSpec) -> Interpreter:
    """Return the caller's interpreter when it fits the version asked for, else one that this machine has.

    Nothing is downloaded.

    Raises:
        EnvironmentBuildError: no Python here fits; the message names those that are installed.
    """
    wanted = spec.python_version.strip()
    own = spec.interpreter or os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)
    fits("3", wanted)  # refuse a malformed version before any search
    caller = await probe(own)
    if fits(caller.version, wanted):
        return caller
    known = _found.get(wanted)
    if known is not None and os.path.exists(known):
        return await probe(known)
    for candidate in [line for line in await _uv("find", wanted) if line.startswith("/")]:
        found = await probe(candidate)
        if fits(found.version, wanted):
            _found[wanted] = candidate
            return found
    from packaging.version import Version  # as in `fits`

    there = sorted({caller.version, *await _installed()}, key=Version)
    raise EnvironmentBuildError(
        f"no Python `{wanted}` on this machine; there is {', '.join(f'`{version}`' for version in there)}",
        hint=f"install it, for example with `uv python install {wanted}`",
        wanted=wanted,
        found=there,
    )


async def _uv(verb: str, *arguments: str) -> list[str]:
    """Return the lines that `uv python VERB` prints, warnings included; none when it fails."""
    from uv import find_uv_bin

    home = Path.home()
    # pyenv's shims only work where its own shell functions chose a version
    search = [part for part in settings.search_path().split(":") if not part.endswith("/.pyenv/shims")]
    search += sorted(str(path) for path in home.glob(".pyenv/versions/*/bin"))
    options = ["--no-python-downloads", "--no-config", "--no-cache", "--color", "never"]
    if verb == "find":
        options += ["--system", "--no-project"]
    try:
        done = await process.run(
            [find_uv_bin(), "python", verb, *options, *arguments],
            env={"PATH": ":".join(search), "HOME": str(home)},
            timeout_seconds=60,
        )
    except (OSError, TimeoutError):
        return []
    return [line.strip() for line in done.output.splitlines() if line.strip()] if done.status == 0 else []


async def _installed() -> list[str]:
    text = "\n".join(await _uv("list", "--only-installed", "--output-format", "json"))
    try:  # warnings come before the data
        return [str(entry["version"]) for entry in json.loads(text[text.index("[{") :])]
    except (ValueError, TypeError, KeyError):
        return []


def _below(path: str, directory: str) -> bool:
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def _is_system(path: str) -> bool:
    return any(_below(path, directory) for directory in SYSTEM_DIRECTORIES)


def _is_shared(prefix: str) -> bool:
    """Return whether a prefix holds much more than the interpreter."""
    if prefix in _SHARED_DIRECTORIES or prefix.endswith("/.local"):
        return True
    homes = {entry.pw_dir for entry in pwd.getpwall()} | {str(Path.home())}
    return any(_below(os.path.realpath(home), prefix) for home in homes if home.count("/") > 1 or home == "/root")


def binds(executable: str, prefix: str, version: str, mapped: list[str]) -> tuple[Bind, ...]:
    """Return the host's paths that `executable` needs in a sandbox, beside the system's libraries."""
    minor = ".".join(version.split(".")[:2])
    wanted: list[str] = []
    for place in dict.fromkeys([prefix, os.path.realpath(prefix)]):
        if _is_system(place):
            continue
        if place.startswith("/nix/store/"):
            wanted.append("/nix/store")  # its libraries are spread over the whole store
        elif _is_shared(place):
            wanted += [f"{place.rstrip('/')}/{part}/python{minor}" for part in ("lib", "lib64", "include")]
            wanted += sorted(str(path) for path in Path(place, "lib").glob("libpython*"))
        else:
            wanted.append(place)
    wanted.append(executable)
    wanted += [path for path in mapped if ".so" in path]
    shown: list[str] = []
    for path in wanted:
        if os.path.exists(path) and not _is_system(path) and not any(_below(path, done) for done in shown):
            shown.append(path)
    return tuple(Bind(path, path) for path in shown)
