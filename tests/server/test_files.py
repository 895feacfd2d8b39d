"""`/v1/files/` over a real server: whole files, ranges, conditions, uploads in parts, listings and changes of names."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote

import pytest

from ..waiting import until
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


def test_several_ranges_are_parts_of_one_answer(files: Files) -> None:
    """Each range is a part with its place; those that overlap are one span."""
    files.ask("PUT", "/f.txt", b"0123456789")
    status, headers, content = files.ask("GET", "/f.txt", Range="bytes=0-1, 4-5,-1")
    assert status == 206
    assert len(content) == int(headers["content-length"])
    boundary = headers["content-type"].removeprefix("multipart/byteranges; boundary=").encode()
    parts = content.split(b"--" + boundary)
    found = [part.partition(b"\r\n\r\n") for part in parts[1:-1]]
    assert [body.removesuffix(b"\r\n") for _, _, body in found] == [b"01", b"45", b"9"]
    assert [b"content-range: bytes 4-5/10" in head for head, _, _ in found] == [False, True, False]
    assert parts[-1] == b"--\r\n"
    status, headers, content = files.ask("GET", "/f.txt", Range="bytes=1-4,3-6")
    assert (status, content) == (206, b"123456")
    assert files.ask("GET", "/f.txt", Range="bytes=" + ",".join(["0-0"] * 100))[::2] == (200, b"0123456789")


@pytest.mark.parametrize("asked", ["bytes=5-1", "bytes=x-", "lines=0-1", "bytes=", "bytes=-", "bytes=1"])
def test_a_malformed_range_counts_for_nothing(files: Files, asked: str) -> None:
    """The whole file answers a range that means nothing."""
    files.ask("PUT", "/f", b"abc")
    assert files.ask("GET", "/f", Range=asked)[::2] == (200, b"abc")


@pytest.mark.parametrize("asked", ["bytes=3-", "bytes=3-7", "bytes=-0"])
def test_a_range_beyond_the_end_is_refused(files: Files, asked: str) -> None:
    """A range without a byte of the file answers its size."""
    files.ask("PUT", "/f", b"abc")
    status, headers, error = files.ask("GET", "/f", Range=asked)
    assert (status, headers["content-range"]) == (416, "bytes */3")
    assert error["error"]["code"] == "range_not_satisfiable"


def test_an_interrupted_download_goes_on_if_the_file_is_the_same(files: Files) -> None:
    """`If-Range` gives the rest of the same file, and all of another one."""
    first = files.ask("PUT", "/f", b"0123456789")[1]["etag"]
    assert files.ask("GET", "/f", Range="bytes=5-", If_Range=first)[::2] == (206, b"56789")
    files.ask("PUT", "/f", b"abcdefghij")
    assert files.ask("GET", "/f", Range="bytes=5-", If_Range=first)[::2] == (200, b"abcdefghij")


def test_conditions_of_reading(files: Files) -> None:
    """A browser's copy that is still right is not sent again."""
    headers = files.ask("PUT", "/f", b"abc")[1]
    tag, time = headers["etag"], headers["last-modified"]
    assert files.ask("GET", "/f", If_None_Match=tag)[0] == 304
    assert files.ask("GET", "/f", If_None_Match=f'W/{tag}, "other"')[0] == 304
    assert files.ask("GET", "/f", If_None_Match='"other"')[0] == 200
    assert files.ask("GET", "/f", If_Modified_Since=time)[0] == 304
    assert files.ask("GET", "/f", If_Modified_Since="Thu, 01 Jan 1970 00:00:00 GMT")[0] == 200
    assert files.ask("GET", "/f", If_Match=tag)[0] == 200
    assert files.ask("GET", "/f", If_Match=f"W/{tag}")[0] == 412
    assert files.ask("GET", "/f", If_Unmodified_Since="Thu, 01 Jan 1970 00:00:00 GMT")[0] == 412


def test_conditions_of_writing(files: Files) -> None:
    """A file is replaced by those alone who know it, and made by those alone who expect none."""
    first = files.ask("PUT", "/f", b"1", If_None_Match="*")[1]["etag"]
    assert files.ask("PUT", "/f", b"2", If_None_Match="*")[0] == 412
    second = files.ask("PUT", "/f", b"3", If_Match=first)[1]["etag"]
    status, _, error = files.ask("PUT", "/f", b"4", If_Match=first)
    assert (status, error["error"]["code"]) == (412, "precondition_failed")
    assert files.ask("PUT", "/other", b"5", If_Match="*")[0] == 412
    assert files.ask("DELETE", "/f", If_Match=first)[0] == 412
    assert files.ask("GET", "/f")[2] == b"3"
    assert files.ask("DELETE", "/f", If_Match=second)[0] == 204
    assert files.ask("GET", "/f")[0] == 404


def test_one_of_many_who_expect_the_same_version_wins(files: Files) -> None:
    """Of writers that replace one version at a time, exactly one does."""
    tag = files.ask("PUT", "/f", b"0")[1]["etag"]
    with ThreadPoolExecutor(5) as pool:
        asked = [pool.submit(files.ask, "PUT", "/f", str(number).encode(), If_Match=tag) for number in range(1, 6)]
    statuses = [one.result()[0] for one in asked]
    assert sorted(statuses) == [200, 412, 412, 412, 412]
    assert files.ask("GET", "/f")[2] == str(statuses.index(200) + 1).encode()


def test_an_upload_that_breaks_off_leaves_the_old_file(files: Files, server: Server) -> None:
    """A file is the old one, whole, until the last byte of the new one has come."""
    files.ask("PUT", "/f", b"old")
    connection = server.connection()
    connection.putrequest("PUT", f"{files.base}/f")
    for name, value in {**server.headers(), "Content-Length": str(3 << 20)}.items():
        connection.putheader(name, value)
    connection.endheaders(CONTENT)
    assert files.ask("GET", "/f")[2] == b"old"
    connection.close()
    assert files.ask("GET", "/f")[2] == b"old"
    assert files.ask("PUT", "/f", b"new")[0] == 200


def test_an_upload_goes_on_where_it_broke_off(files: Files, server: Server) -> None:
    """What came of a part before the connection broke is kept, and the last part makes the file."""
    total = len(CONTENT)
    connection = server.connection()
    connection.putrequest("PUT", f"{files.base}/f?upload=mine")
    headers = {"Content-Range": f"bytes 0-{total - 1}/{total}", "Content-Length": str(total)}
    for name, value in {**server.headers(), **headers}.items():
        connection.putheader(name, value)
    connection.endheaders(CONTENT[: 1 << 20])
    until(lambda: files.ask("GET", "/f?upload=mine")[0] == 200)
    connection.close()
    until(lambda: files.ask("GET", "/f?upload=mine")[2].get("received", 0) == 1 << 20)
    assert files.ask("GET", "/f")[0] == 404
    status, headers, error = files.ask("PUT", "/f?upload=mine", b"x", Content_Range=f"bytes 7-7/{total}")
    assert (status, headers["upload-offset"], error["error"]["code"]) == (409, str(1 << 20), "upload_offset")
    middle = (1 << 20) + 1000

    def send(first: int, end: int) -> tuple[int, dict[str, str], Any]:
        where = f"bytes {first}-{end - 1}/{total}"
        return files.ask("PUT", "/f?upload=mine", CONTENT[first:end], Content_Range=where)

    assert until(lambda: send(1 << 20, middle))[::2] == (202, {"received": middle, "total": total})
    assert send(middle, total)[0] == 201
    assert files.ask("GET", "/f")[2] == CONTENT
    assert files.ask("GET", "/f?upload=mine")[0] == 404


def test_an_upload_can_be_forgotten(files: Files) -> None:
    """A dropped upload begins anew; names and ranges that mean nothing are refused."""
    assert files.ask("PUT", "/f?upload=a", b"123", Content_Range="bytes 0-2/9")[0] == 202
    assert files.ask("DELETE", "/f?upload=a")[0] == 204
    assert files.ask("DELETE", "/f?upload=a")[0] == 404
    assert files.ask("PUT", "/f?upload=a", b"123", Content_Range="bytes 3-5/9")[0] == 409
    assert files.ask("PUT", "/f?upload=../x", b"123", Content_Range="bytes 0-2/9")[0] == 400
    assert files.ask("PUT", "/f?upload=a", b"123", Content_Range="bytes 0-2/2")[0] == 400
    assert files.ask("PUT", "/f?upload=a", b"12", Content_Range="bytes 0-2/9")[0] == 400
    assert files.ask("PUT", "/f", b"123", Content_Range="bytes 0-2/9")[0] == 400


def test_listings_come_in_pages(files: Files) -> None:
    """A directory's names come sorted, a page at a time, with addresses that lead to them."""
    for name in ("b", "a", "c/d", "\u00e9 &?#%"):
        assert files.ask("PUT", f"/{quote(name)}", name.encode())[0] == 201
    status, _, page = files.ask("GET", "?list&limit=3")
    assert status == 200
    assert [(one["name"], one["kind"], one["size"]) for one in page["entries"]][:2] == [
        ("a", "file", 1),
        ("b", "file", 1),
    ]
    assert page["entries"][2]["href"] == f"{files.base}/c/"
    status, _, rest = files.ask("GET", page["next"].removeprefix(files.base))
    assert [one["name"] for one in rest["entries"]] == ["\u00e9 &?#%"]
    assert "next" not in rest
    assert files.ask("GET", rest["entries"][0]["href"].removeprefix(files.base))[2] == "\u00e9 &?#%".encode()
    assert files.ask("GET", "/c/")[2]["entries"][0]["etag"] == files.ask("HEAD", "/c/d")[1]["etag"]
    assert files.ask("GET", "?list&limit=0")[0] == 400
    assert files.ask("GET", "/c")[0] == 409
    assert files.ask("GET", "/a?list")[0] == 409
    assert files.ask("GET", "/none/")[0] == 404


def test_names_are_made_moved_copied_and_removed(files: Files) -> None:
    """Changes of names are one request each, and replace nothing unless told to."""
    assert files.ask("POST", "/x/y?mkdir")[0] == 201
    assert files.ask("POST", "/x/y?mkdir")[0] == 409
    assert files.ask("POST", "/x/y?mkdir&exist_ok")[0] == 201
    files.ask("PUT", "/x/f", b"1")
    assert files.ask("POST", f"/x/f?move={files.name}/x/y/g")[1]["location"] == f"{files.base}/x/y/g"
    files.ask("PUT", "/x/f", b"2")
    assert files.ask("POST", f"/x/f?move={files.name}/x/y/g")[0] == 409
    assert files.ask("POST", f"/x/f?move=/data/{files.name}/x/y/g&replace")[0] == 201
    assert files.ask("POST", f"/x?copy={files.name}/z")[0] == 201
    assert files.ask("GET", "/z/y/g")[2] == b"2"
    assert files.ask("DELETE", "/z")[0] == 409
    assert files.ask("DELETE", "/z?recursive")[0] == 204
    assert files.ask("POST", "/x")[0] == 400
    assert files.ask("GET", "/x?stat")[2]["kind"] == "directory"


def test_snapshots_are_read_and_not_written(files: Files) -> None:
    """The volume's snapshots are a directory that nothing changes."""
    assert files.ask("PUT", "/../.snapshots/x", b"1")[0] == 400
    files.base = "/v1/files/.snapshots"
    assert files.ask("GET", "/")[0] == 200
    assert files.ask("PUT", "/x/y", b"1")[0] == 403
    assert files.ask("DELETE", "?recursive")[0] == 403


def test_unknown_methods_and_content_are_refused(files: Files) -> None:
    """Nothing is guessed: other methods, encoded bodies, and directories as files."""
    assert files.ask("PATCH", "/f", b"1")[0] == 405
    assert files.ask("PUT", "/f", b"1", Content_Encoding="gzip")[0] == 415
    assert files.ask("PUT", "/f/", b"1")[0] == 400
    files.base = "/v1/files"
    assert files.ask("PUT", "", b"1")[0] == 400


def test_many_requests_use_few_peers(files: Files) -> None:
    """Requests at a time take turns on the user's peers, and all are answered."""
    files.ask("PUT", "/f", CONTENT)
    with ThreadPoolExecutor(16) as pool:
        asked = [pool.submit(files.ask, "GET", "/f") for _ in range(32)]
    assert all(one.result()[::2] == (200, CONTENT) for one in asked)
