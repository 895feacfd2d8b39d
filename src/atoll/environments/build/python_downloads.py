"""Pythons that this machine lacks: uv installs them beside the environments, once.

uv checks each download against the digest that it brings itself, so a mirror or a proxy cannot change it, and all share
the installed ones. The exception is a caller's own list of Pythons (`UV_PYTHON_DOWNLOADS_JSON_URL`), whose digests are
the list's: such Pythons are only for requests with the same list, reached in the same way. An installed Python stays
until the state directory is removed: environments depend on it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

from atoll.environments.build.workshop import VARIABLES, Workshop
from atoll.environments.built import interpreter, locks
from atoll.environments.built.interpreter import Interpreter
from atoll.environments.built.records import make_directory
from atoll.errors import EnvironmentBuildError
from atoll.model.mounts import Bind
from atoll.model.specs import EnvironmentSpec

_UV = "/opt/atoll-uv/uv"
_LIST = "UV_PYTHON_DOWNLOADS_JSON_URL"
_MIRRORS = ("UV_PYTHON_INSTALL_MIRROR", _LIST)
"""The caller's variables that name sources of Pythons."""


class Pythons:
    """Finds interpreters, and installs those that are missing.

    Args:
        workshop: holds the installed Pythons.
        lock_path: lock held during an installation.
        keyed: gives a digest of text that may hold credentials.
    """

    def __init__(self, workshop: Workshop, lock_path: Path, keyed: Callable[[str], str]) -> None:
        self._workshop = workshop
        self._directory = workshop.directory / "pythons"
        self._lock_path = lock_path
        self._keyed = keyed

    async def find(self, spec: EnvironmentSpec, log: Callable[[str], None], *, nested: bool = False) -> Interpreter:
        """Return the caller's interpreter if it fits, else one of this machine, else a newly installed one.

        Args:
            nested: a function asks, which may not have anything installed on the machine.

        Raises:
            EnvironmentBuildError: there is none, and none can be installed.
        """
        try:
            return await interpreter.find(spec)
        except EnvironmentBuildError as error:
            wanted = error.details.get("wanted")
            if wanted is None:
                raise
            directory = self._place(spec)
            found = await self._installed(directory, str(wanted))
            if found is None and not nested and _may_download(spec):
                with await locks.wait_exclusive(self._lock_path, lambda: None):
                    found = await self._installed(directory, str(wanted))
                    found = found or await self._install(directory, spec, error, log)
            if found is None:
                raise
            return found

    def _place(self, spec: EnvironmentSpec) -> Path:
        """Return where Pythons for this request are installed."""
        variables = dict(spec.index)
        if _LIST not in variables:
            return self._directory
        way = sorted((name, text) for name, text in variables.items() if name == _LIST or "proxy" in name.lower())
        return self._directory.with_name(f"pythons-{self._keyed(json.dumps(way))}")

    async def _installed(self, directory: Path, wanted: str) -> Interpreter | None:
        for path in sorted(directory.glob("*-*/bin/python3"), reverse=True):
            if re.fullmatch(r"cpython-\d+\.\d+\.\d+[a-z0-9]*(\+freethreaded)?-.*", path.parents[1].name):
                found = await interpreter.probe(str(path))
                if interpreter.fits(found.version, wanted):
                    return found
        return None

    async def _install(
        self, directory: Path, spec: EnvironmentSpec, missing: EnvironmentBuildError, log: Callable[[str], None]
    ) -> Interpreter | None:
        wanted = spec.python_version.strip()
        log(f"Installing Python {wanted}")
        make_directory(directory, exist_ok=True)
        self._workshop.own(directory)
        command = [_UV, "python", "install", wanted, "--install-dir", str(directory)]
        command += ["--no-config", "--no-progress", "--color", "never"]
        variables = dict(spec.index)
        local = [variables[name] for name in _MIRRORS if variables.get(name, "").startswith("/")]
        local += [variables[name][7:] for name in _MIRRORS if variables.get(name, "").startswith("file:///")]
        done = await self._workshop.run(
            command,
            binds=[
                Bind(str(directory), str(directory), writable=True),
                Bind(uv_program(), _UV),
                *(Bind(path, path) for path in dict.fromkeys(local) if Path(path).exists()),
            ],
            environment={
                **VARIABLES,
                "UV_PYTHON_INSTALL_BIN": "0",
                "UV_CACHE_DIR": "/tmp/uv",
                **{name: value for name, value in variables.items() if _decides(name)},
            },
            on_line=log,
        )
        found = await self._installed(directory, wanted) if done.status == 0 else None
        if found is None:
            causes = re.findall(r"(?:cause|error): (.+)", done.output)
            reason = causes[-1].strip()[:300] if causes else f"uv ended with status {done.status}"
            raise EnvironmentBuildError(
                f"{missing.message}, and it cannot be downloaded: {reason}",
                hint=missing.hint + ", or have uv find a mirror (`UV_PYTHON_INSTALL_MIRROR`)",
                log=done.output[-4000:],
                **missing.details,
            ) from missing
        return found


def _may_download(spec: EnvironmentSpec) -> bool:
    variables = dict(spec.index)
    offline = variables.get("UV_OFFLINE", "").lower() in ("1", "true", "yes")
    return not offline and variables.get("UV_PYTHON_DOWNLOADS", "").lower() not in ("never", "manual")


def _decides(name: str) -> bool:
    return (
        name in _MIRRORS or "proxy" in name.lower() or name in ("UV_NATIVE_TLS", "UV_SYSTEM_CERTS", "UV_HTTP_TIMEOUT")
    )


def uv_program() -> str:
    """Return the path of the uv program.

    Raises:
        EnvironmentBuildError: the package `uv` is not complete.
    """
    import uv

    try:
        return os.path.realpath(uv.find_uv_bin())
    except FileNotFoundError as error:
        raise EnvironmentBuildError(
            "the program `uv` is missing", hint="install the package `uv` again: `pip install --force-reinstall uv`"
        ) from error
