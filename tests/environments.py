"""Environments with the real builder in the real sandbox, from packages and indexes that are made here."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import http.server
import os
import ssl
import sys
import tarfile
import tempfile
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from atoll import process
from atoll.environments.built.records import Environment
from atoll.environments.store import EnvironmentStore
from atoll.host import index_settings
from atoll.model.mounts import Bind
from atoll.model.specs import EnvironmentSpec
from atoll.sandbox.identity import Identities
from atoll.sandbox.launch import Launcher
from atoll.sandbox.policy import confine
from atoll.settings import INDEX_VARIABLES, Settings

BASE = os.path.realpath(getattr(sys, "_base_executable", sys.executable))


class Machine:
    """A state directory with a store, packages of its own, and a way to run things in an environment."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.home = directory / "home"
        self.wheels = directory / "wheels"
        self.home.mkdir(mode=0o700)
        self.wheels.mkdir()
        self.settings = Settings(self.home)
        self.launcher = Launcher(self.settings)
        self.identities = Identities(self.settings)
        self.lines: list[str] = []
        self.store = self.new_store()

    def new_store(self) -> EnvironmentStore:
        return EnvironmentStore(self.settings.environments_directory, self.confinement, self.identities.builder())

    async def confinement(
        self,
        command: Sequence[str],
        *,
        binds: Sequence[Bind],
        environment: Mapping[str, str],
        on_line: Callable[[str], None] | None = None,
        reaches: Sequence[str] | None = None,
    ) -> process.Completed:
        policy = confine(
            command,
            machine=self.launcher.machine,
            identity=self.identities.builder(),
            binds=binds,
            environment=tuple(environment.items()),
        )
        return await self.launcher.run(policy, on_line=on_line)

    def spec(self, *requirements: str, index: Mapping[str, str] | None = None) -> EnvironmentSpec:
        """Return the spec of a caller with these variables, or of one that knows the wheels of this machine only."""
        entries = requirements if index is not None else (*requirements, "--no-index", f"--find-links {self.wheels}")
        with pytest.MonkeyPatch.context() as patch:
            for name in INDEX_VARIABLES:
                patch.delenv(name, raising=False)
            for name, value in (index or {}).items():
                patch.setenv(name, value)
            patch.setattr(index_settings, "SYSTEM", str(self.directory / "etc"))
            sent = index_settings.collect(entries)
        if digest := dict(sent).get("certificates"):
            self.store.certificates.learn(index_settings.certificates(digest))
        return EnvironmentSpec("virtualenv", entries, "", BASE, sent)

    def ensure(self, *requirements: str, **options: Any) -> Environment:
        return asyncio.run(self.store.ensure(self.spec(*requirements, **options), self.lines.append))

    def inside(self, environment: Environment, *command: str) -> str:
        """Run a command as another user than the builder, where this process may, with the environment read-only."""
        policy = confine(
            command,
            machine=self.launcher.machine,
            identity=self.identities.user("someone"),
            binds=[Bind(str(environment.path), "/opt/atoll/env"), *environment.interpreter.binds],
        )
        done = asyncio.run(self.launcher.run(policy))
        assert done.status == 0, done.output
        return done.output

    def python(self, environment: Environment, code: str) -> str:
        return self.inside(environment, environment.python, "-c", code).strip()

    def wheel(self, name: str, version: str = "1", files: Mapping[str, str] | None = None, requires: str = "") -> Path:
        """Make a wheel with one module that has `VERSION`, and a script of its name."""
        info = f"{name}-{version}.dist-info"
        content = {
            f"{name}.py": f"VERSION = {version!r}\ndef main():\n    print('{name}', VERSION)\n",
            **(files or {}),
            f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
            + (f"Requires-Dist: {requires}\n" if requires else ""),
            f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            f"{info}/entry_points.txt": f"[console_scripts]\n{name} = {name}:main\n",
        }
        content[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*content, f"{info}/RECORD"])
        path = self.wheels / f"{name}-{version}-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as archive:
            for file, text in content.items():
                archive.writestr(file, text)
        path.chmod(0o644)
        return path

    def tree(self, name: str, during_build: str = "", place: Path | None = None) -> Path:
        """Make a source tree with a build backend of its own, which runs `during_build` when it builds."""
        tree = (place or self.directory) / f"{name}-1"
        tree.mkdir()
        (tree / "pyproject.toml").write_text(
            f'[project]\nname = "{name}"\nversion = "1"\n'
            '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        )
        (tree / f"{name}.py").write_text("VERSION = 1\nNOTE = ''\n")
        (tree / "PKG-INFO").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
        (tree / "backend.py").write_text(BACKEND.format(name=name, during=during_build))
        return tree

    def sdist(self, name: str, during_build: str = "") -> None:
        tree = self.tree(name, during_build, Path(tempfile.mkdtemp(dir=self.directory)))
        with tarfile.open(self.wheels / f"{name}-1.tar.gz", "w:gz") as archive:
            archive.add(tree, f"{name}-1")
        (self.wheels / f"{name}-1.tar.gz").chmod(0o644)

    def work(self) -> list[str]:
        return os.listdir(self.settings.environments_directory / ".cache" / "work")

    def texts(self) -> Iterator[tuple[Path, str]]:
        """Give every file of the state with its content."""
        for path in self.home.rglob("*"):
            if path.is_file() and not path.is_symlink():
                yield path, path.read_bytes().decode("latin-1")


BACKEND = """
import os, zipfile
def build_wheel(directory, config_settings=None, metadata_directory=None):
    note = ""
{during}
    name, info = "{name}-1-py3-none-any.whl", "{name}-1.dist-info"
    content = {{
        "{name}.py": open("{name}.py").read() + "NOTE = %r\\n" % (note,),
        info + "/METADATA": "Metadata-Version: 2.1\\nName: {name}\\nVersion: 1\\n",
        info + "/WHEEL": "Wheel-Version: 1.0\\nGenerator: t\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n",
    }}
    content[info + "/RECORD"] = "".join(path + ",,\\n" for path in [*content, info + "/RECORD"])
    with zipfile.ZipFile(os.path.join(directory, name), "w") as archive:
        for path, text in content.items():
            archive.writestr(path, text)
    return name
"""


class Index(http.server.SimpleHTTPRequestHandler):
    """A package index that lets in who knows the password; also a proxy to itself."""

    password = "hunter27x"

    def do_GET(self) -> None:
        self.path = urlsplit(self.path).path  # of a proxy's request, too
        expected = "Basic " + base64.b64encode(f"me:{self.password}".encode()).decode()
        if self.password and self.headers.get("Authorization") != expected:
            self.send_response(401)
            self.send_header("WWW-Authenticate", "Basic")
            self.end_headers()
            return
        name = self.path.strip("/").split("/")[-1]
        if name.endswith(".whl"):
            super().do_GET()
            return
        links = "".join(
            f'<a href="/{file}">{file}</a>' for file in os.listdir(self.directory) if file.startswith(name + "-")
        )
        body = f"<!DOCTYPE html><html><body>{links}</body></html>".encode()
        self.send_response(200 if links else 404)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *_: Any) -> None:
        return None


@contextlib.contextmanager
def serve(directory: Path, password: str = Index.password, tls: tuple[Path, Path] | None = None) -> Iterator[int]:
    """Serve the wheels of a directory as an index on the loopback; give its port.

    Args:
        password: of the user `me`; empty for an index that lets everybody in.
        tls: certificate and key of the server.
    """
    handler = type("Index", (Index,), {"password": password})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=str(directory)))
    if tls is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*tls)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
