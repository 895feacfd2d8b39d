"""`/v1/files/` over a real server: whole files, ranges, conditions, uploads in parts, listings and changes of names."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from typing import Any

import pytest

from .process import Server


class Files:
    """A directory of its own on a server's volume.

    Args:
        base: its address.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self.base = f"/v1/files/http-{secrets.token_hex(4)}"
        self.name = self.base.removeprefix("/v1/files/")

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, dict[str, str], Any]:
        """Return status, headers and body (JSON as data) of a request below the directory."""
        connection = self._server.connection()
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, self.base + path, body, {**self._server.headers(), **named})
            answer = connection.getresponse()
            data = answer.read()
            found = {name.lower(): value for name, value in answer.getheaders()}
            is_json = found.get("content-type", "") == "application/json" and "etag" not in found
            return answer.status, found, json.loads(data) if is_json else data
        finally:
            connection.close()


@pytest.fixture
def files(server: Server) -> Iterator[Files]:
    """An empty directory, removed at the end."""
    made = Files(server)
    yield made
    made.ask("DELETE", "?recursive")


CONTENT = bytes(range(256)) * 8192
"""2 MiB: several pieces."""


def test_a_file_comes_back_as_it_was_put(files: Files) -> None:
    """A file has its content, size, tag and time, and `HEAD` has all but the content."""
    status, put, _ = files.ask("PUT", "/a/b.bin", CONTENT)
    assert status == 201
    status, got, content = files.ask("GET", "/a/b.bin")
    assert (status, content) == (200, CONTENT)
    assert got["etag"] == put["etag"]
    assert got["last-modified"] == put["last-modified"]
    status, head, nothing = files.ask("HEAD", "/a/b.bin")
    assert (status, nothing, head["content-length"]) == (200, b"", str(len(CONTENT)))
    assert files.ask("PUT", "/a/b.bin", b"")[0] == 200
    assert files.ask("GET", "/a/b.bin")[2] == b""


@pytest.mark.parametrize(
    ("asked", "first", "length"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=1000-1999", 1000, 1000),
        ("bytes=2097000-", 2097000, 152),
        ("bytes=-5", 2097147, 5),
        ("bytes=5-99999999", 5, 2097147),
        ("bytes=1048570-1048590", 1048570, 21),
    ],
)
def test_a_range_is_a_part(files: Files, asked: str, first: int, length: int) -> None:
    """A range gives its bytes alone, and says where they are."""
    files.ask("PUT", "/f", CONTENT)
    status, headers, content = files.ask("GET", "/f", Range=asked)
    assert (status, content) == (206, CONTENT[first : first + length])
    assert headers["content-range"] == f"bytes {first}-{first + length - 1}/{len(CONTENT)}"
