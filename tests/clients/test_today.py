"""The clients of today: calls, deployments, and calls of endpoints."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ..server.process import Server
from ..server.queue_app import WEBHOOKS, App
from ..waiting import PATIENCE_SECONDS, until
from .published import HERE, NEW, Client, client, serving


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server over TLS by names."""
    with serving(tls=True) as found:
        yield found


@pytest.fixture
def user(server: Server) -> Iterator[Client]:
    """A user with a published client."""
    with client(NEW, server) as found:
        yield found


def test_calls(user: Client) -> None:
    """`fal.function` calls functions with cloudpickle: results, output and exceptions."""
    output = user.program("calls_today")
    assert "WRONG" not in output
    assert output.count("ok ") == 3
    assert "adding 1 2 0.6.0" in output


def test_apps(user: Client) -> None:
    """`fal run` calls a function, `fal deploy` deploys an app, and fal-client calls it."""
    program = HERE / "programs" / "app_today.py"
    output = user.run("fal", "run", f"{program}::shout")
    assert "printed in the function" in output
    output = user.run("fal", "deploy", f"{program}::Greeter", "--app-name", "greeter", "--auth", "private")
    assert "greeter" in output
    assert "greeter" in user.run("fal", "apps", "list")
    name = user.server.ask("GET", "/v1/whoami")[1]["name"]
    output = user.program("endpoint_today", f"{name}/greeter")
    assert "WRONG" not in output
    assert output.count("ok ") == 2
    assert "main" in user.run("fal", "environments", "list")
    assert "has `main` alone" in user.run("fal", "environments", "create", "staging", status=None)
    assert "no environment `staging`" in user.run("fal", "environments", "delete", "staging", "--yes", status=None)
    assert "`main` stays" in user.run("fal", "environments", "delete", "main", "--yes", status=None)
    (revision,) = [one["id"] for one in _revisions(user) if one["alias"] == "greeter"]
    assert "of the alias `greeter`" in user.run("fal", "apps", "delete-rev", revision, status=None)
    assert name in user.run("fal", "auth", "whoami")
    user.run("fal", "apps", "delete", "greeter")
    assert "greeter" not in user.run("fal", "apps", "list")
    user.run("fal", "apps", "delete-rev", revision)
    assert revision not in [one["id"] for one in _revisions(user)]
    assert "there is no revision" in user.run("fal", "apps", "delete-rev", revision, status=None)


@contextlib.contextmanager
def run_app(
    user: Client, program: Path, name: str, printed: str = "printed by setup", **variables: str
) -> Iterator[str]:
    """Have `fal run` serve an app while the context is open; yield its path, and wait in the end for what it prints."""
    options = ("--auth", "private")
    with user.started("fal", "run", f"{program}::{name}", *options, PYTHONUNBUFFERED="1", **variables) as process:
        lines: list[str] = []

        def read() -> None:
            assert process.stdout is not None
            lines.extend(process.stdout)

        reader = threading.Thread(target=read)
        reader.start()
        try:
            found = until(lambda: re.search(r"https://\S+(/\w+/[0-9a-f-]{36})/?\s", "".join(lines)) or _none(process))
            assert isinstance(found, re.Match), lines
            yield found[1]
            until(lambda: printed in "".join(lines))
            process.send_signal(signal.SIGINT)
            process.wait(PATIENCE_SECONDS)
        finally:
            process.kill()
            reader.join()


def _none(process: subprocess.Popen[str]) -> str:
    """Return a word once a program has ended that was to print something."""
    return "" if process.poll() is None else "ended"


def test_an_app_is_served_while_its_command_runs(user: Client) -> None:
    """`fal run` of an app prints an address and the app's output; with the end of the command the app is gone."""
    with run_app(user, HERE / "programs" / "app_today.py", "Greeter") as path:
        assert user.server.ask("POST", path, b'{"name": "you"}', _json(user)) == (200, {"text": "hello you"})
    until(lambda: user.server.ask("POST", path, b"{}", _json(user))[0] == 404)
    until(lambda: not user.server.ask("POST", "/v1/requests/calls.running", b"{}")[1]["calls"])
    assert path.rpartition("/")[2] not in [one["id"] for one in _revisions(user)]


def beside(user: Client, word: str) -> Path:
    """Return the program with files beside it, in a directory of its own, with another word in its file."""
    made = user.directory / word
    shutil.copytree(HERE / "programs" / "beside", made, ignore=shutil.ignore_patterns("__pycache__"))
    (made / "words" / "one.txt").write_text(word)
    return made / "app.py"


def test_files_beside_a_function(user: Client) -> None:
    """`fal run` of a function with `app_files`: a module is imported and a file read by its relative path, others never."""
    for word in ("first", "second"):
        program = beside(user, word)
        output = user.run("fal", "run", f"{program}::speak", PYTHONPATH=str(program.parent))
        assert f"spoken {word.upper()} /home/user/.app ['shouting.py', 'words']" in output
        assert "Uploading file: words/one.txt" in output
    program = user.directory / "first" / "app.py"
    again = user.run("fal", "run", f"{program}::speak", PYTHONPATH=str(program.parent))
    assert "spoken FIRST" in again
    assert "Uploading" not in again
    (stored,) = user.server.volumes.glob("*/data/.atoll/app-files")
    for one in stored.iterdir():
        assert one.name == hashlib.sha256(one.read_bytes() + str(one.stat().st_mode).encode()).hexdigest()
    changed = next(one for one in stored.iterdir() if one.read_bytes() == b"first")
    changed.write_bytes(b"other")
    (program.parent / "words" / "more.txt").touch()  # with other files it has another sandbox
    output = user.run("fal", "run", f"{program}::speak", status=None, PYTHONPATH=str(program.parent))
    assert "`words/one.txt` was changed" in output
    changed.unlink()
    assert "spoken FIRST" in user.run("fal", "run", f"{program}::speak", PYTHONPATH=str(program.parent))


def test_files_beside_an_app(user: Client) -> None:
    """`fal deploy` of two apps with `app_files`: each has its own files, also after both have run, and large ones."""
    sizes = {"third": 1, "fourth": 65 << 20}
    for word, size in sizes.items():
        program = beside(user, word)
        with open(program.parent / "words" / "large.bin", "wb") as file:
            file.truncate(size)
        options = ("--app-name", word, "--auth", "private")
        user.run("fal", "deploy", f"{program}::Speaker", *options, PYTHONPATH=str(program.parent))
    name = user.server.ask("GET", "/v1/whoami")[1]["name"]
    for word in ("third", "fourth", "third"):
        assert user.server.ask("POST", f"/{name}/{word}", b"{}", _json(user)) == (
            200,
            {"text": word.upper(), "bytes": sizes[word]},
        )
    for word in ("third", "fourth"):
        user.run("fal", "apps", "delete", word)
    path: dict[str, Any] = {"PYTHONPATH": str(program.parent)}
    with run_app(user, program, "Speaker", printed="", **path) as place:
        assert user.server.ask("POST", place, b"{}", _json(user)) == (200, {"text": "FOURTH", "bytes": sizes["fourth"]})
    user.run("fal", "deploy", f"{program}::said", "--app-name", "said", "--auth", "private", **path)
    status, answer = user.server.ask("POST", f"/{name}/said", b"{}", _json(user))
    assert (status, "FOURTH" in str(answer)) == (200, True), answer


def test_a_large_file(user: Client) -> None:
    """`fal files` uploads a file of 25 MB in parts, replaces it, and downloads it."""
    local, again = user.directory / "large.bin", user.directory / "again.bin"
    for size in (25_000_000, 21_000_001):
        content = os.urandom(size)
        local.write_bytes(content)
        user.run("fal", "files", "upload", str(local), "models/large.bin")
        assert "large.bin" in user.run("fal", "files", "list", "models")
        user.run("fal", "files", "download", "models/large.bin", str(again))
        assert again.read_bytes() == content
    assert list(user.server.volumes.glob("*/staging/parts-*")) == []


def test_a_file_of_the_network() -> None:
    """`fal files upload-url` has the server fetch an address, where its settings allow that network."""
    with front_app() as app, serving(tls=True, settings=WEBHOOKS) as server, client(NEW, server) as user:
        url = f"http://127.0.0.1:{app.port}/large?bytes=3000000"
        user.run("fal", "files", "upload-url", url, "models/fetched.bin")
        user.run("fal", "files", "download", "models/fetched.bin", str(user.directory / "fetched.bin"))
        assert (user.directory / "fetched.bin").stat().st_size == 3_000_000
        output = user.run("fal", "files", "upload-url", f"http://localhost:{server.port}/", "x", status=None)
        assert server.ask("POST", "/files/file/exists/x")[0] == 404, output


@contextlib.contextmanager
def front_app() -> Iterator[App]:
    """Run a site that answers with many bytes."""
    app = App()
    try:
        yield app
    finally:
        app.close()


def _revisions(user: Client) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = user.server.ask("GET", "/v1/revisions")[1]["revisions"]
    return found


def _json(user: Client) -> dict[str, str]:
    return {**user.server.headers(), "Content-Type": "application/json"}
