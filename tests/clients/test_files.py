"""`/files/…`: the volume as the published clients ask for it."""

from __future__ import annotations

import io
import zipfile
from typing import Any

from ..server.process import Server
from .published import serving


def upload(server: Server, path: str, content: bytes) -> tuple[int, Any]:
    """Upload a file as the clients do."""
    head = b'--XX\r\nContent-Disposition: form-data; name="file_upload"; filename="f"\r\n\r\n'
    headers = {**server.headers(), "Content-Type": "multipart/form-data; boundary=XX"}
    return server.ask("POST", path, head + content + b"\r\n--XX--\r\n", headers)


def archive(*names: str) -> bytes:
    """Return an archive of files that have their names as contents."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as file:
        for name in names:
            file.writestr(name, name)
    return made.getvalue()


def test_files_and_archives() -> None:
    """Files are written, described, listed, moved and removed; an archive takes the place of a directory."""
    with serving(tls=False) as server:
        assert upload(server, "/files/file/local/x/y.txt?unzip=false", b"hello") == (200, True)
        status, found = server.ask("POST", "/files/file/exists//data/x/y.txt?calculate_checksum=true")
        assert (status, found["path"], found["size"], found["is_file"]) == (200, "/data/x/y.txt", 5, True)
        assert found["checksum_md5"] == "5d41402abc4b2a76b9719d911017c592"
        assert server.ask("GET", "/files/file//data/x/y.txt") == (200, b"hello")
        assert server.ask("GET", "/files/list//data/none") == (200, [])
        assert server.ask("POST", "/files/rename//data/x/y.txt", b'{"destination": "/data/x/z.txt"}') == (200, True)
        assert server.ask("POST", "/files/file/exists//data/x/y.txt")[0] == 404
        assert server.ask("DELETE", "/files/file//data/x") == (200, True)

        assert upload(server, "/files/file/local/sync/d?unzip=true", archive("a.txt", ".fal_hash")) == (200, True)
        wanted = b'{"hash": ".fal_hash"}'
        assert server.ask("POST", "/files/dir/check_hash/sync/d", wanted) == (200, True)
        assert upload(server, "/files/file/local/sync/d?unzip=true", archive("in/b.txt")) == (200, True)
        assert server.ask("POST", "/files/dir/check_hash/sync/d", wanted) == (200, False)
        names = [one["path"] for one in server.ask("GET", "/files/list/sync/d")[1]]
        assert names == ["/data/sync/d/in"]


def test_what_is_refused() -> None:
    """Paths and archives that lead elsewhere are refused, and what was there stays; nobody unknown is answered."""
    with serving(tls=False) as server:
        assert upload(server, "/files/file/local/sync/d?unzip=true", archive("kept")) == (200, True)
        for bad in ("../out", "in/../../../out"):
            assert upload(server, "/files/file/local/sync/d?unzip=true", archive(bad))[0] == 422
        assert upload(server, "/files/file/local/sync/d?unzip=true", b"no archive")[0] == 422
        assert upload(server, "/files/file/local/sync/../../out", b"x")[0] == 422
        assert server.ask("DELETE", "/files/file//data")[0] in (403, 422)
        assert [one["name"] for one in server.ask("GET", "/files/list/sync")[1]] == ["d"]
        assert [one["name"] for one in server.ask("GET", "/files/list/sync/d")[1]] == ["kept"]
        unknown = {"Authorization": "Key nobody:nothing"}
        for method, path in (("GET", "/files/list"), ("GET", "/users/current"), ("POST", "/tokens/")):
            status, answer = server.ask(method, path, headers=unknown)
            assert (status, list(answer)) == (401, ["detail"])
