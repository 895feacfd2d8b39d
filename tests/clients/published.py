"""Environments with published clients, and programs that run in them: never in this process, whose packages differ.

An environment is made by a pinned requirement, kept beside the tools of the tests, and made anew when the file changes.
Programs run in a namespace of their own, where names of a server lead to loopback.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from atoll import settings
from atoll.sandbox import programs

from ..server.process import Server, running
from ..waiting import PATIENCE_SECONDS

HERE = Path(__file__).parent
NAMES = ("api", "rest", "queue", "gateway")
DOMAIN = "atoll.test"
OLD, NEW = "fal-serverless-0.6.41", "fal-1.83"


@functools.cache
def python_of(client: str) -> Path:
    """Return the interpreter of an environment with a published client; skips where it cannot be installed."""
    if client == OLD and sys.version_info >= (3, 12):
        pytest.skip("the client of 2023 cannot be imported by Python 3.12 and later")
    requirements = HERE / f"{client}.txt"
    digest = hashlib.sha256(requirements.read_bytes() + sys.version.encode()).hexdigest()[:12]
    directory = Path(sys.prefix) / "clients" / f"{client}-{digest}"
    directory.parent.mkdir(exist_ok=True)
    uv = Path(sys.executable).parent / "uv"
    with open(directory.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (directory / "complete").exists():
            shutil.rmtree(directory, ignore_errors=True)
            subprocess.run([uv, "venv", "-q", "--python", sys.executable, directory], check=True, capture_output=True)
            made = subprocess.run(
                [uv, "pip", "install", "-q", "--python", directory / "bin" / "python", "-r", requirements],
                check=False,
                capture_output=True,
                text=True,
            )
            if made.returncode:
                pytest.skip(f"`{client}` cannot be installed here: {made.stderr[-500:]}")
            (directory / "complete").touch()
    return directory / "bin" / "python"


class Client:
    """Programs of one user with a published client.

    Args:
        name: of the client.
        server: that they call.
        directory: their home and working directory.
    """

    def __init__(self, name: str, server: Server, directory: Path) -> None:
        self.python = python_of(name)
        self.server, self.directory = server, directory
        self.key = server.key

    @property
    def variables(self) -> dict[str, str]:
        """The environment of the programs: how the client is pointed at the server."""
        found = {"FAL_KEY_ID": self.key[0], "FAL_KEY_SECRET": self.key[1], "FAL_HOME_DIR": str(self.directory)}
        if self.server.tls:
            authority = str(self.server.ca_file)
            found |= {"GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": authority, "SSL_CERT_FILE": authority}
            found |= {"FAL_HOST": f"api.{DOMAIN}:{self.server.port}", "FAL_RUN_HOST": f"{DOMAIN}:{self.server.port}"}
            found["FAL_QUEUE_RUN_HOST"] = f"{DOMAIN}:{self.server.port}/queue"
        else:
            found |= {"FAL_HOST": f"api.localhost:{self.server.port}", "ISOLATE_TEST_MODE": "1"}
        return found

    def run(self, *command: str | Path, status: int | None = 0, **variables: str) -> str:
        """Run a program of the environment's `bin`; return its output, both streams as one."""
        with self.started(*command, **variables) as process:
            output = process.communicate(timeout=4 * PATIENCE_SECONDS)[0]
        assert status is None or process.returncode == status, output
        return output

    @contextlib.contextmanager
    def started(self, *command: str | Path, **variables: str) -> Iterator[subprocess.Popen[str]]:
        """Run a program while the context is open."""
        hosts = self.directory / "hosts"
        names = [DOMAIN, *(f"{name}.{base}" for base in (DOMAIN, "localhost") for name in NAMES)]
        hosts.write_text(f"127.0.0.1 localhost {' '.join(names)}\n")
        inside = [programs.find_bwrap(), "--dev-bind", "/", "/", "--ro-bind", str(hosts), "/etc/hosts"]
        inside += ["--die-with-parent", "--chdir", str(self.directory)]
        environment = {"PATH": settings.search_path(), "HOME": str(self.directory), **self.variables, **variables}
        process = subprocess.Popen(
            [*inside, str(self.python.parent / command[0]), *map(str, command[1:])],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()

    def program(self, name: str, *arguments: str, status: int | None = 0, **variables: str) -> str:
        """Run a program of `programs/`; return its output."""
        return self.run("python", HERE / "programs" / f"{name}.py", *arguments, status=status, **variables)


@contextlib.contextmanager
def serving(*options: str, tls: bool, **more: Any) -> Iterator[Server]:
    """Run a server whose packages come as those of this machine do."""
    strategy: dict[str, Any] = {"UV_INDEX_STRATEGY": "unsafe-best-match"}
    with running(*options, tls=tls, **more, **strategy) as server:
        yield server


@contextlib.contextmanager
def client(name: str, server: Server) -> Iterator[Client]:
    """Yield a client with a directory of its own."""
    with tempfile.TemporaryDirectory(prefix="atoll-client-") as directory:
        yield Client(name, server, Path(directory))


def variables_of(mapping: Mapping[str, str]) -> str:
    """Return variables as a shell has them."""
    return os.linesep.join(f"{name}={value}" for name, value in mapping.items())
