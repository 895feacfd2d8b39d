"""`/files/…`: the volume as the published clients ask for it."""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from typing import Any

from atoll.server.accounts.bodies import NewUser

from ..server.process import Server
from ..waiting import until
from .published import serving


def upload(server: Server, path: str, content: bytes) -> tuple[int, Any]:
    """Upload a file as the clients do."""
    head = b'--XX\r\nContent-Disposition: form-data; name="file_upload"; filename="f"\r\n\r\n'
    headers = {**server.headers(), "Content-Type": "multipart/form-data; boundary=XX"}
    return server.ask("POST", path, head + content + b"\r\n--XX--\r\n", headers)


def send_part(server: Server, address: str, content: bytes, headers: dict[str, str] | None = None) -> tuple[int, Any]:
    """Send a part of a file as the clients do."""
    head = b'--XX\r\nContent-Disposition: form-data; name="file_upload"; filename="chunk"\r\n\r\n'
    more = {**(headers or server.headers()), "Content-Type": "multipart/form-data; boundary=XX"}
    return server.ask("PUT", address, head + content + b"\r\n--XX--\r\n", more)


def listed(*parts: dict[str, Any]) -> bytes:
    """Return the body that completes an upload."""
    return json.dumps({"parts": parts}).encode()


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


PART = 10 << 20


def test_a_file_in_parts() -> None:
    """Parts come in any order and again; the file appears whole, or not at all, and its etag is the MD5 of the whole."""
    content = os.urandom(PART + 1000)
    with serving(tls=False) as server:
        base = "/files/file/multipart//data/new/big.bin"
        status, found = server.ask("POST", f"{base}/initiate")
        assert status == 200, found
        one = f"{base}/{found['upload_id']}"
        last = send_part(server, f"{one}/2", content[PART:])[1]
        assert last == {"part_number": 2, "etag": hashlib.md5(content[PART:]).hexdigest()}
        assert send_part(server, f"{one}/1", b"of another attempt")[0] == 200
        status, answer = server.ask("POST", f"{one}/complete", listed(last))
        assert (status, "part 2 and not 1" in answer["detail"]) == (422, True), answer
        first = {"part_number": 1, "etag": hashlib.md5(content[:PART]).hexdigest()}
        status, answer = server.ask("POST", f"{one}/complete", listed(first, last))
        assert (status, "another etag" in answer["detail"]) == (422, True), answer
        assert send_part(server, f"{one}/1", content[:PART]) == (200, first)
        status, answer = server.ask("POST", f"{one}/complete", listed(first))
        assert (status, "part 2 has come" in answer["detail"]) == (422, True), answer
        assert server.ask("GET", "/files/list/new") == (200, [])

        etag = {"etag": hashlib.md5(content).hexdigest()}
        assert server.ask("POST", f"{one}/complete", listed(last, first)) == (200, etag)
        assert server.ask("POST", f"{one}/complete", listed(last, first)) == (200, etag)
        assert server.ask("GET", "/files/file/new/big.bin") == (200, content)
        assert [entry["name"] for entry in server.ask("GET", "/files/list/new")[1]] == ["big.bin"]
        assert send_part(server, f"{one}/3", b"late")[0] == 404
        assert leftovers(server) == []


def leftovers(server: Server) -> list[str]:
    """Return the names of unfinished uploads of all users."""
    return [found.name for found in server.volumes.glob("*/staging/parts-*")]


def test_parts_that_are_refused() -> None:
    """Wrong numbers, sizes and paths are named; an upload is its user's alone, ends with a cancellation, and has bounds."""
    with serving(tls=False) as server:
        base = "/files/file/multipart/refused.bin"
        name = server.ask("POST", f"{base}/initiate")[1]["upload_id"]
        for bad in ("0", "-1", "x", "10001", "1.5"):
            assert send_part(server, f"{base}/{name}/{bad}", b"x")[0] == 422, bad
        status, answer = send_part(server, f"{base}/{name}/1", bytes(PART + 1))
        assert (status, "10,485,760 bytes" in answer["detail"]) == (413, True), answer
        assert server.ask("POST", f"{base}/{name}/complete", listed())[0] == 422
        missing = listed({"part_number": 1, "etag": hashlib.md5(b"x").hexdigest()})
        status, answer = server.ask("POST", f"{base}/{name}/complete", missing)
        assert (status, "has not come" in answer["detail"]) == (422, True), answer
        assert send_part(server, f"/files/file/multipart/other.bin/{name}/1", b"x")[0] == 404

        other = server.add_user(NewUser("other")).key
        assert other is not None
        headers = {"Authorization": f"Key {other.id}:{other.secret}"}
        assert send_part(server, f"{base}/{name}/1", b"x", headers)[0] == 404
        assert server.ask("POST", f"{base}/{name}/cancel", headers=headers)[0] == 404
        assert server.ask("POST", f"{base}/{name}/complete", missing, headers)[0] == 404

        assert send_part(server, f"{base}/{name}/1", b"x")[0] == 200
        assert leftovers(server) != []
        assert server.ask("POST", f"{base}/{name}/cancel") == (200, {})
        assert leftovers(server) == []
        assert send_part(server, f"{base}/{name}/1", b"x")[0] == 404

        assert upload(server, "/files/file/local/directory/file", b"") == (200, True)
        for path, status in (("directory", 422), ("directory/file/below", 422), ("/data", 422), ("../out", 422)):
            found, answer = server.ask("POST", f"/files/file/multipart/{path}/initiate")
            if found == 200:  # the file above it is seen when it gets its path
                one = f"/files/file/multipart/{path}/{answer['upload_id']}"
                part = send_part(server, f"{one}/1", b"x")[1]
                found, answer = server.ask("POST", f"{one}/complete", listed(part))
            assert (found, list(answer)) == (status, ["detail"]), path
        assert server.ask("GET", "/files/file/directory/file") == (200, b"")

        names = [server.ask("POST", f"{base}/initiate") for _ in range(70)]
        assert names[0][0] == 200
        status, answer = names[-1]
        assert (status, "uploads are open" in answer["detail"]) == (422, True), answer


def test_parts_of_connections_that_break() -> None:
    """A part whose connection breaks is sent again, and holds up nobody; a server that starts anew knows no upload."""
    with serving(tls=False) as server:
        base = "/files/file/multipart/broken.bin"
        one = f"{base}/{server.ask('POST', f'{base}/initiate')[1]['upload_id']}"
        connection = server.connection()
        connection.putrequest("PUT", f"{one}/1")
        for name, value in {**server.headers(), "Content-Type": "multipart/form-data; boundary=XX"}.items():
            connection.putheader(name, value)
        connection.putheader("Content-Length", str(3 << 20))
        connection.endheaders(b'--XX\r\nContent-Disposition: form-data; name="f"; filename="f"\r\n\r\n')
        connection.send(b"broken" * 400_000)
        until(lambda: [found for found in server.volumes.glob("*/staging/parts-*") if found.stat().st_size])
        connection.close()
        part = send_part(server, f"{one}/1", b"whole")[1]
        assert server.ask("POST", f"{one}/complete", listed(part))[0] == 200
        assert server.ask("GET", "/files/file/broken.bin") == (200, b"whole")

        one = f"{base}/{server.ask('POST', f'{base}/initiate')[1]['upload_id']}"
        server.end()
        server.start()
        status, answer = send_part(server, f"{one}/1", b"x")
        assert (status, "begin it anew" in answer["detail"]) == (404, True)
        assert server.ask("GET", "/files/file/broken.bin") == (200, b"whole")


def test_parts_and_a_quota() -> None:
    """A part that no longer fits is refused by its name, with a status that the clients do not take for success."""
    with serving(tls=False) as server:
        key = server.add_user(NewUser("small")).key
        assert key is not None
        assert server.ask("PUT", "/v1/users/small/quota", b'{"volume_bytes": 1048576}')[0] == 200
        headers = {"Authorization": f"Key {key.id}:{key.secret}"}
        base = "/files/file/multipart/much.bin"
        one = f"{base}/{server.ask('POST', f'{base}/initiate', headers=headers)[1]['upload_id']}"
        status, answer = send_part(server, f"{one}/1", bytes(3 << 20), headers)
        assert "quota" in answer["detail"]
        assert status == 507


def test_contents_by_their_hashes() -> None:
    """Contents of files beside functions are kept once, by the hash of content and mode, each user's for itself."""
    content, mode = b"import this\n", str(0o100644)
    digest = hashlib.sha256(content + mode.encode()).hexdigest()
    wanted, base = json.dumps({"hashes": [digest, "0" * 64]}).encode(), f"/files/app/multipart/{digest}"
    with serving(tls=False) as server:
        assert server.ask("POST", "/files/missing_hashes", wanted) == (200, [digest, "0" * 64])
        assert server.ask("POST", "/files/missing_hashes", b'{"hashes": ["../x"]}')[0] == 422
        for bad in ("", "x", str(0o040755), str(0o104755), str(0o100000), "9" * 30):
            assert server.ask("POST", f"{base}/initiate", json.dumps({"mode": bad}).encode())[0] == 422, bad
        assert server.ask("POST", "/files/app/multipart/..%2Fx/initiate", b'{"mode": "33188"}')[0] in (403, 404, 422)
        begun = json.dumps({"mode": mode, "hash": digest, "size": "12", "mtime": "0"}).encode()

        status, found = server.ask("POST", f"{base}/initiate", begun)
        assert status == 200, found
        one = f"{base}/{found['upload_id']}"
        other = send_part(server, f"{one}/1", b"import that\n")[1]
        status, answer = server.ask("POST", f"{one}/complete", listed(other))
        assert (status, "another hash" in answer["detail"]) == (422, True), answer
        assert server.ask("POST", "/files/missing_hashes", wanted)[1] == [digest, "0" * 64]
        part = send_part(server, f"{one}/1", content)[1]
        assert server.ask("POST", f"{one}/complete", listed(part)) == (200, {"etag": ""})
        assert server.ask("POST", "/files/missing_hashes", wanted) == (200, ["0" * 64])
        assert server.ask("POST", f"{base}/initiate", begun)[0] == 409

        key = server.add_user(NewUser("other")).key
        assert key is not None
        headers = {"Authorization": f"Key {key.id}:{key.secret}"}
        assert server.ask("POST", "/files/missing_hashes", wanted, headers) == (200, [digest, "0" * 64])
        assert leftovers(server) == []
