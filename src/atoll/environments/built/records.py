"""Records of built environments, and their format on disk.

An environment's directory is `NAME`: the key, and from the second generation on (`upgrade`) `KEY.2`, `KEY.3` …
The current generation is the highest that is complete, so that no pointer can be torn.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from atoll.environments.built.interpreter import Interpreter

INSIDE = "/opt/atoll/env"
"""The environment's path in every sandbox."""

PYTHON = f"{INSIDE}/bin/python"


def create(directory: Path, interpreter: Interpreter) -> None:
    """Make an environment without packages at `directory`, which must not exist; no process is started."""
    packages = site_packages_of(directory, interpreter)
    for path in (directory, directory / "lib", packages.parent, packages, directory / "bin"):
        make_directory(path)
    (directory / "lib64").symlink_to("lib")
    (directory / "bin" / "python").symlink_to(interpreter.executable)
    for name in ("python3", f"python{interpreter.minor}"):
        (directory / "bin" / name).symlink_to("python")
    (directory / "pyvenv.cfg").write_text(
        f"home = {os.path.dirname(interpreter.executable)}\n"
        f"implementation = {interpreter.implementation}\n"
        f"version_info = {interpreter.version}\n"
        "include-system-site-packages = false\n"
    )
    (directory / "pyvenv.cfg").chmod(0o644)


def make_directory(path: Path, *, exist_ok: bool = False) -> None:
    """Make a directory that everyone may read, independent of the umask."""
    path.mkdir(exist_ok=exist_ok)
    path.chmod(0o755)


def site_packages_of(directory: Path, interpreter: Interpreter) -> Path:
    """Return where the packages of the environment at `directory` are."""
    kind = "pypy" if interpreter.implementation == "pypy" else "python"
    return directory / "lib" / f"{kind}{interpreter.minor}" / "site-packages"


def has_shape(environment: Path, interpreter: Interpreter) -> bool:
    """Return whether an environment still has the shape that `create` gave it.

    A package's build may write into it, and a process that sees more than the build reads it afterwards: so no
    directory on the way may have become a symlink.
    """
    packages = site_packages_of(environment, interpreter)
    parts = [packages, *packages.parents][: len(packages.relative_to(environment).parts) + 1]
    python = environment / "bin" / "python"
    try:
        return os.readlink(python) == interpreter.executable and all(
            stat.S_ISDIR(part.lstat().st_mode) for part in (*parts, environment / "bin")
        )
    except OSError:
        return False


_NAME = re.compile(r"^(?P<key>[0-9a-f]{32})(?:\.(?P<generation>[1-9][0-9]*))?$")

_ACTIVATE = """
if [ -d "$CONDA_PREFIX/etc/conda/activate.d" ] && [ -x /bin/bash ]; then
    exec /bin/bash -c '
        for script in "$CONDA_PREFIX"/etc/conda/activate.d/*.sh; do
            if [ -r "$script" ]; then . "$script" >/dev/null </dev/null; fi
        done
        exec "$@"' bash "$@"
fi
exec "$@"
"""
"""Runs the activation scripts, which are written for bash, and becomes the command."""


@dataclass(frozen=True)
class Environment:
    """A complete environment, ready to be shown in a sandbox.

    Args:
        key: its name on disk, and part of a sandbox's key; another after an upgrade.
        directory: holds `env`, `record.json`, `requirements.lock`, `build.log`.
        path: the environment on the host; sandboxes have it read-only at `/opt/atoll/env`.
        interpreter: its Python; the interpreter's binds are needed beside.
        python: its Python inside a sandbox.
        kind: how it was made.
    """

    key: str
    directory: Path
    path: Path
    interpreter: Interpreter
    python: str = PYTHON
    kind: str = "virtualenv"

    @property
    def variables(self) -> dict[str, str]:
        """Return the variables that tell programs about their environment."""
        if self.kind == "conda":
            return {"CONDA_PREFIX": INSIDE, "CONDA_DEFAULT_ENV": INSIDE, "CONDA_SHLVL": "1"}
        return {"VIRTUAL_ENV": INSIDE}

    def command(self, *arguments: str, starter: Sequence[str] = ()) -> list[str]:
        """Return the command that starts the environment's Python inside a sandbox.

        Args:
            starter: a command that becomes the one given as its arguments.

        A conda environment is activated first: its packages may bring scripts that set variables.
        """
        start = ["/bin/sh", "-c", _ACTIVATE, "sh"] if self.kind == "conda" else []
        return [*start, *starter, self.python, *arguments]


@dataclass(frozen=True)
class EnvironmentRecord:
    """The contents of `record.json`; times are seconds since the epoch.

    Args:
        key: its name on disk, generation included.
        requirements: without credentials.
        size_bytes: of its files, each counted once; most are shared with the cache by hard links.
        last_used: to the minute.
        in_use: whether a sandbox holds it now.
    """

    key: str
    kind: str
    requirements: tuple[str, ...]
    python_version: str
    interpreter: str
    size_bytes: int
    created: float
    build_seconds: float
    builder: str
    last_used: float = 0.0
    in_use: bool = False
    superseded: bool = False

    def to_data(self) -> dict[str, Any]:
        return asdict(self)


def split(name: str) -> tuple[str, int] | None:
    """Return key and generation of a directory's name, None for one that is no environment."""
    match = _NAME.match(name)
    return None if match is None else (match["key"], int(match["generation"] or 1))


def name_of(key: str, generation: int) -> str:
    return key if generation == 1 else f"{key}.{generation}"


def write(directory: Path, record: EnvironmentRecord) -> None:
    """Mark the environment complete: everything in `directory` first reaches the disk, then the record."""
    data = {name: value for name, value in asdict(record).items() if name not in ("last_used", "in_use", "superseded")}
    temporary = directory / "record.json.new"
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(data, file, indent=1, sort_keys=True)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(directory / "record.json")
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read(directory: Path) -> EnvironmentRecord | None:
    """Return the record of a complete environment, None where there is none."""
    path = directory / "record.json"
    try:
        data = json.loads(path.read_text("utf-8"))
        data["requirements"] = tuple(data["requirements"])
        data["last_used"] = path.stat().st_mtime
        record = EnvironmentRecord(**data)
        numbers = (record.size_bytes, record.created, record.build_seconds)
        whole = record.key == directory.name and all(isinstance(number, (int, float)) for number in numbers)
        return record if whole else None
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None


def complete(directory: Path) -> bool:
    """Return whether the environment is complete and its Python exists; a damaged record counts as none."""
    return read(directory) is not None and (directory / "env" / "bin" / "python").exists()
