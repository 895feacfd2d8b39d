"""An environment's directories and files before anything is installed into it.

A virtual environment is a `pyvenv.cfg`, a link to the interpreter and an empty directory for packages: it is made
without starting a process.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from atoll.environments.built.interpreter import Interpreter

INSIDE = "/opt/atoll/env"
"""Where every sandbox has its environment."""

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
    """Make a directory that everyone may read, whatever the umask."""
    path.mkdir(exist_ok=exist_ok)
    path.chmod(0o755)


def site_packages_of(directory: Path, interpreter: Interpreter) -> Path:
    """Return where the packages of the environment at `directory` are."""
    kind = "pypy" if interpreter.implementation == "pypy" else "python"
    return directory / "lib" / f"{kind}{interpreter.minor}" / "site-packages"


def has_shape(environment: Path, interpreter: Interpreter) -> bool:
    """Whether an environment still has the shape that `create` gave it.

    The build of a package may write into it, and what it leaves is read by a process that may see more than the
    build: no directory on the way may have become a symlink.
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
