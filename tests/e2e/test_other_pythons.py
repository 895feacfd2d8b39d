"""Functions of another minor version of Python than their caller's, with the Pythons that this machine has."""

from __future__ import annotations

import functools
import hashlib
import http.server
import io
import json
import os
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from atoll.environments.built.interpreter import find
from atoll.errors import EnvironmentBuildError
from atoll.model.specs import EnvironmentSpec

from ..conftest import Home

BASE = os.path.realpath(getattr(sys, "_base_executable", sys.executable))


@functools.cache
def other_python() -> tuple[str, str]:
    """Return minor version and path of another Python of this machine; skip the test where there is none."""
    import asyncio

    for minor in range(10, 16):
        if minor != sys.version_info[1]:
            try:
                found = asyncio.run(find(EnvironmentSpec(python_version=f"3.{minor}", interpreter=BASE)))
            except EnvironmentBuildError:
                continue
            return f"3.{minor}", found.executable
    pytest.skip("this machine has one Python only")


FILE = """
import sys
from atoll import isolated
import beside

@isolated(python_version={version!r}, keep_alive=0)
def double(number: int, *, word: str = "none"):
    '''Doubles.'''
    print("on", sys.version_info[:2], beside.VALUE)
    return {{"number": 2 * number, "word": word}}

@isolated(python_version={version!r}, keep_alive=0)
def count(most: int):
    for number in range(most):
        yield number

@isolated(python_version={version!r}, keep_alive=0)
async def later():
    return "later"

class Own(Exception):
    pass

@isolated(python_version={version!r}, keep_alive=0)
def fail():
    raise Own("no")

@isolated(python_version={version!r}, keep_alive=0)
def inner():
    return sys.version_info[:2]

@isolated(python_version={version!r}, keep_alive=0)
def outer():
    return [inner(), isolated(inner.local)()]

if __name__ == "__main__":
    double(1)
"""


@pytest.fixture
def file(shared_home: Home, tmp_path: Path) -> Path:
    path = tmp_path / "with-dashes.py"
    path.write_text(FILE.format(version=other_python()[0]))
    (tmp_path / "beside.py").write_text("VALUE = 'beside'\n")
    return path


def test_a_function_is_imported_by_the_other_python(shared_home: Home, file: Path) -> None:
    """`atoll run` takes plain arguments there, with the project's modules, and shows what it printed and returned."""
    found = shared_home.atoll("run", f"{file}::double", "4", "--word", "x y", cwd=file.parent)
    minor = tuple(int(part) for part in other_python()[0].split("."))
    assert found.stdout.splitlines() == [f"on {minor} beside", "{'number': 8, 'word': 'x y'}"]


def test_generators_and_async_functions_are_run_to_their_end(shared_home: Home, file: Path) -> None:
    """Items are printed one by one; an async function's result as any other."""
    assert shared_home.atoll("run", f"{file}::count", "3").stdout == "0\n1\n2\n"
    assert shared_home.atoll("run", f"{file}::later").stdout == "later\n"


def test_an_exception_of_the_other_python_is_shown(shared_home: Home, file: Path) -> None:
    """Its traceback is printed with the caller's own file, and nothing that was pickled there is unpickled here."""
    found = shared_home.atoll("run", f"{file}::fail", check=False)
    assert found.returncode == 1
    assert f'File "{file}"' in found.stderr
    assert "Own: no" in found.stderr
    assert "cannot be" not in found.stderr


def test_functions_that_it_calls_are_of_its_own_python(shared_home: Home, file: Path) -> None:
    """A nested call travels as a pickle of the other Python, to that Python, asked for or not."""
    minor = tuple(int(part) for part in other_python()[0].split("."))
    assert shared_home.atoll("run", f"{file}::outer").stdout == f"{[minor, minor]}\n"


def test_a_pickled_function_is_refused_with_both_versions(shared_home: Home, file: Path) -> None:
    """A call from a program of this Python is a `PythonVersionMismatch` whose hint says what works."""
    found = shared_home.python(str(file), check=False)
    assert f"PythonVersionMismatch: the function asks for Python {other_python()[0]}, and is pickled by" in found.stderr
    assert "atoll run FILE.py::FUNC" in found.stderr


def test_a_version_that_is_too_old_is_refused(shared_home: Home, tmp_path: Path) -> None:
    """The error names the oldest one that functions run on."""
    path = tmp_path / "old.py"
    path.write_text("from atoll import isolated\n@isolated(python_version='3.6')\ndef f(): pass\n")
    found = shared_home.atoll("run", str(path), check=False)
    assert found.returncode == 1
    assert "functions run on 3.10 and newer" in found.stderr


def test_a_python_that_cannot_be_had_is_said(shared_home: Home, tmp_path: Path) -> None:
    """The error names the Pythons that are there and what to do, and the next call works."""
    path = tmp_path / "future.py"
    path.write_text("from atoll import isolated\n@isolated(python_version='3.99')\ndef f(): pass\n")
    found = shared_home.atoll("run", str(path), check=False)
    assert found.returncode == 1
    assert "no Python `3.99` on this machine; there is" in found.stderr
    assert "uv python install 3.99" in found.stderr
    path.write_text("from atoll import isolated\n@isolated\ndef f(): return 1\n")
    assert shared_home.atoll("run", str(path)).stdout == "1\n"


SYSCONFIG = b"""# system configuration generated and used by the sysconfig module
build_time_vars = {'CC': 'cc'}
"""


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A directory, and the address at which its files are served."""
    directory = tmp_path / "served"
    directory.mkdir()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(directory)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield directory, f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_missing_python_is_installed_once(atoll_home: Home, served: tuple[Path, str], tmp_path: Path) -> None:
    """uv downloads it where it can be had, the function runs on it, and the next one finds it there."""
    minor, executable = other_python()
    version = subprocess.run(
        [executable, "-c", "import platform; print(platform.python_version())"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    script = f'#!/bin/sh\nexec "{executable}" "$@"\n'.encode()
    directory, address = served
    archive = directory / "python.tar.gz"
    with tarfile.open(archive, "w:gz") as made:
        names = dict.fromkeys(("bin/python", "bin/python3", f"bin/python{minor}"), script)
        names[f"lib/python{minor}/_sysconfigdata__linux_{os.uname().machine}-linux-gnu.py"] = SYSCONFIG
        for name, content in names.items():
            entry = tarfile.TarInfo(f"python/{name}")
            entry.size, entry.mode = len(content), 0o755
            made.addfile(entry, io.BytesIO(content))
    key = f"cpython-{version}-linux-{os.uname().machine}-gnu"
    major, middle, patch = (int(part) for part in version.split("."))
    listed = {
        "name": "cpython",
        "arch": {"family": os.uname().machine, "variant": None},
        "os": "linux",
        "libc": "gnu",
        "major": major,
        "minor": middle,
        "patch": patch,
        "prerelease": "",
        "url": f"{address}/{archive.name}",
        "sha256": hashlib.sha256(archive.read_bytes()).hexdigest(),
        "variant": None,
        "build": "20260101",
    }
    (directory / "downloads.json").write_text(json.dumps({key: listed}))
    program = atoll_home.path / "program.py"
    program.write_text(
        f"import sys\nfrom atoll import isolated\n@isolated(python_version={minor!r})\ndef f(): return sys.version_info[1]\n"
    )
    # a program that sees no other Python, on a machine where uv knows of one
    alone = {
        "PATH": "/nonexistent",
        "HOME": str(tmp_path / "nobody"),
        "UV_PYTHON_DOWNLOADS_JSON_URL": f"{address}/downloads.json",
    }
    first = atoll_home.atoll("run", str(program), env=alone, check=False)
    assert (first.stdout, first.returncode) == (f"{middle}\n", 0), first.stderr
    assert f"Installing Python {minor}" in first.stderr
    second = atoll_home.atoll("run", str(program), env=alone)
    assert second.stdout == f"{middle}\n"
    assert "Installing" not in second.stderr
