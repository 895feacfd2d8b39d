"""The page without a browser: its walls, its sessions, whose data it shows, and texts of others as text alone."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import re
import stat
import threading
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import pytest

from atoll.server.pages import files as file_pages
from atoll.server.pages import guard, previews, rendering
from atoll.storage.files.tree import FILE

from ..conftest import needs_outbound
from ..waiting import until
from .page_client import EVIL, Lines, PageServer, Visitor, page_server, visible

pytestmark = needs_outbound

PAGES = (
    "/",
    "/calls",
    "/endpoints",
    "/requests",
    "/schedules",
    "/files/",
    "/environments",
    "/usage",
    "/keys",
    "/secrets",
    "/admin",
)


@pytest.fixture(scope="module")
def page() -> Iterator[PageServer]:
    """A server whose user `ada` has made some calls."""
    with page_server() as server:
        server.call("for name in 'ab': greet(name)\ntry: fail()\nexcept ValueError: pass")
        yield server


@pytest.fixture(scope="module")
def ada(page: PageServer) -> Visitor:
    """The user who has made the calls, and who runs the server."""
    return Visitor(page).log_in("ada")


@pytest.fixture(scope="module")
def bob(page: PageServer) -> Visitor:
    """Another user."""
    return Visitor(page).log_in("bob")


def ids(visitor: Visitor) -> list[str]:
    """Return the ids of the calls on a user's list."""
    return list(dict.fromkeys(re.findall(r'href="/calls/([0-9a-f-]{20,})"', visitor.get("/calls").text)))


# --- logging in -------------------------------------------------------------------------------------------------------


def test_login_is_needed(page: PageServer) -> None:
    """Every page leads a stranger to the page for logging in, which leads back."""
    stranger = Visitor(page)
    for path in PAGES:
        answer = stranger.get(path)
        assert (answer.status, answer.headers["location"].partition("?")[0]) == (303, "/login")
    assert stranger.get("/calls?outcome=ok").headers["location"] == "/login?next=/calls%3Foutcome%3Dok"
    fields = {"token": stranger.token("/login"), "key": page.keys["ada"], "next": "/calls?outcome=ok"}
    assert stranger.post("/login", fields).headers["location"] == "/calls?outcome=ok"


def test_login_leads_nowhere_else(page: PageServer) -> None:
    """The address to go to after logging in is one of this server."""
    for target in ("//evil.example", "https://evil.example/", "/\\evil.example", "javascript:alert(1)", "/v1/requests"):
        visitor = Visitor(page)
        fields = {"token": visitor.token("/login"), "key": page.keys["bob"], "next": target}
        assert visitor.post("/login", fields).headers["location"] == "/", target


def test_a_wrong_key_is_refused(page: PageServer) -> None:
    """A key that is not valid gives no session, says so with its hint, and is not repeated on the page."""
    visitor = Visitor(page)
    for key in ("ada:other", "ada", "", "ä:ö", EVIL):
        answer = visitor.post("/login", {"token": visitor.token("/login"), "key": key})
        assert answer.status == 401
        assert "atoll_session" not in visitor.cookies
        assert 'role="alert"' in answer.text
        assert "script>document" not in answer.text
        assert not key or f'value="{key}"' not in answer.text


def test_cookies_are_closed(page: PageServer) -> None:
    """No script reads a cookie of the page, no other site's form sends one, and each login makes a new one."""
    visitor = Visitor(page)
    fields = {"token": visitor.token("/login"), "key": page.keys["ada"]}
    answer = visitor.post("/login", fields)
    for one in answer.cookies:
        words = {word.strip().lower() for word in one.split(";")}
        assert {"httponly", "samesite=lax", "path=/"} <= words, one
    before = visitor.cookies["atoll_session"]
    assert Visitor(page).log_in("ada").cookies["atoll_session"] != before


def test_logging_out_ends_the_session(page: PageServer) -> None:
    """A cookie that was copied is worth nothing after its user has logged out."""
    visitor = Visitor(page).log_in("bob")
    copied = Visitor(page, dict(visitor.cookies))
    assert visitor.post("/logout", {"token": visitor.token("/")}).headers["location"] == "/login"
    assert "atoll_session" not in visitor.cookies
    assert copied.get("/").status == 303


# --- walls ------------------------------------------------------------------------------------------------------------


def test_every_answer_has_the_policy(page: PageServer, ada: Visitor) -> None:
    """No script or style of others runs, no other site frames the page, and nothing of it is kept in caches."""
    for path in (*PAGES, "/login", "/calls/none", "/nowhere"):
        headers = ada.get(path).headers
        assert headers["content-security-policy"] == guard.POLICY
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
    assert "unsafe" not in guard.POLICY
    assert "frame-ancestors 'none'" in guard.POLICY


def test_pages_have_nothing_inline(ada: Visitor) -> None:
    """No page holds a script, a style or a handler inside, or names another server."""
    call = ids(ada)[0]
    for path in (*PAGES, "/login", f"/calls/{call}"):
        text = ada.get(path).text
        assert not re.search(r"<style|\sstyle=|\son[a-z]+=|<script(?![^>]*\ssrc=)", text), path
        assert not re.search(r'(?:src|href|action)="(?:https?:)?//', text), path


@pytest.mark.parametrize(
    ("what", "method", "headers"),
    [
        ("a form of another site", "POST", {"sec_fetch_site": "cross-site", "origin": "https://evil.example"}),
        ("a form of a neighbour", "POST", {"sec_fetch_site": "same-site", "origin": "http://other.127.0.0.1"}),
        ("an older browser's form", "POST", {"sec_fetch_site": None, "origin": "https://evil.example"}),
        ("no word of where from", "POST", {"sec_fetch_site": None, "origin": None}),
        ("an opaque origin", "POST", {"sec_fetch_site": None, "origin": "null"}),
        ("a script that reads", "GET", {"sec_fetch_site": "cross-site", "sec_fetch_mode": "cors"}),
        ("an image", "GET", {"sec_fetch_site": "cross-site", "sec_fetch_mode": "no-cors", "sec_fetch_dest": "image"}),
        ("a frame", "GET", {"sec_fetch_site": "cross-site", "sec_fetch_dest": "iframe"}),
    ],
)
def test_other_sites_are_refused(page: PageServer, what: str, method: str, headers: dict[str, str | None]) -> None:
    """A request that another site causes is refused, also with the session's cookie and the right token."""
    visitor = Visitor(page).log_in("bob")
    token = visitor.token("/")
    path, body = ("/logout", f"token={token}".encode()) if method == "POST" else ("/calls", None)
    answer = visitor.ask(method, path, body, **headers)
    assert answer.status == 403, what
    assert visitor.get("/").status == 200


def test_a_link_from_another_site_opens_a_page(ada: Visitor) -> None:
    """Somebody who follows a link arrives."""
    assert ada.get("/calls", sec_fetch_site="cross-site").status == 200
    assert ada.get("/calls", sec_fetch_site="none").status == 200


def test_forms_need_their_token(page: PageServer) -> None:
    """A form without its session's token changes nothing."""
    visitor = Visitor(page).log_in("bob")
    others = Visitor(page).log_in("bob").token("/")
    for fields in ({}, {"token": ""}, {"token": others}, {"token": "ü"}):
        assert visitor.post("/logout", fields).status == 403
    assert visitor.get("/").status == 200


def test_bodies_are_bounded(page: PageServer) -> None:
    """A form that is too large is refused."""
    visitor = Visitor(page)
    assert visitor.post("/login", {"token": visitor.token("/login"), "key": "a" * (600 << 10)}).status in {400, 413}


def test_assets_are_kept_by_digest(page: PageServer) -> None:
    """Style, script and icon come from this server, for ever at their address, and from nowhere else."""
    text = Visitor(page).get("/login").text
    addresses = re.findall(r'"(/assets/[^"]+)"', text)
    assert len(addresses) == 3
    for address in addresses:
        answer = Visitor(page).get(address)
        assert answer.status == 200
        assert "immutable" in answer.headers["cache-control"]
        assert not re.search(r"https?://(?!www\.w3\.org)", answer.text)
    for wrong in ("/assets/0/atoll.js", "/assets/x/..%2finstall.py", "/assets/x/%2e%2e/guard.py"):
        assert Visitor(page).get(wrong).status == 404


# --- calls ------------------------------------------------------------------------------------------------------------


def test_calls_are_listed_and_shown(ada: Visitor) -> None:
    """A call that is over has its function, outcome, time, memory, output and error."""
    text = visible(ada.get("/calls").text)
    assert "greet" in text
    assert "ValueError" in text
    failed, *_ = ids(ada)
    shown = visible(ada.get(f"/calls/{failed}").text)
    assert f"ValueError: {EVIL}" in shown
    assert "100%" in shown
    assert "10%" not in shown.replace("100%", "")


def test_texts_of_functions_are_text(ada: Visitor) -> None:
    """Script, colours and marks of direction in a function's output and error do nothing on the page."""
    failed, *_ = ids(ada)
    for path in ("/", "/calls", f"/calls/{failed}"):
        text = ada.get(path).text
        assert "<script>document" not in text, path
        assert not re.search("[\x1b\u202e]", text), path
    assert "\\u202e" in ada.get(f"/calls/{failed}").text


def test_filters_and_pages_of_calls(ada: Visitor) -> None:
    """The list narrows by function and outcome, and says when nothing is left."""
    assert "greet" not in visible(ada.get("/calls?outcome=error").text)
    assert "fail" not in visible(ada.get("/calls?function=greet").text).replace("Failed", "")
    for query in ("function=none", "offset=40", "since=1h&outcome=lost", "outcome=nonsense&offset=x&since=y"):
        answer = ada.get(f"/calls?{query}")
        assert answer.status == 200
    assert "No call is like this" in ada.get("/calls?function=none").text
    assert ada.get("/calls?function=%00").status == 200


def test_calls_of_others_are_unknown(ada: Visitor, bob: Visitor) -> None:
    """Another user sees no call of somebody, on no page, and cannot cancel it."""
    assert ids(bob) == []
    assert "No call has ended yet" in bob.get("/calls").text
    call = ids(ada)[0]
    token = bob.token("/")
    for answer in (
        bob.get(f"/calls/{call}"),
        bob.get(f"/calls/{call[:8]}"),
        bob.get(f"/live/calls/{call}"),
        bob.post(f"/calls/{call}/cancel", {"token": token}),
    ):
        assert answer.status == 404
        assert "greet" not in answer.text
        assert "fail" not in visible(answer.text)


def test_operators_see_calls_of_all_users(page: PageServer, ada: Visitor, bob: Visitor) -> None:
    """Over or running, with the user's name, for those who ask; other users ask in vain."""
    page.call("greet('dan')", "dan")
    dan = Visitor(page).log_in("dan")
    (call,) = until(lambda: ids(dan))
    assert call not in ada.get("/calls").text
    for asked in ("*", "dan"):
        text = ada.get(f"/calls?user={quote(asked)}").text
        assert call in text
        assert "<small><bdi>dan</bdi></small>" in text
        assert ("<small><bdi>ada</bdi></small>" in text) == (asked == "*")
    text = ada.get(f"/calls/{call}").text
    assert "hello dan" in text
    assert "<dt>User</dt><dd><bdi>dan</bdi></dd>" in text
    assert ada.get("/calls?user=nobody").status == 404
    for path in ("/calls?user=*", "/calls?user=ada"):
        text = bob.get(path).text
        assert not [one for one in ids(ada) if one in text]
        assert 'name="user"' not in text
    with page.start("wait()", "dan") as process:
        lines = Lines(ada, "/live/calls?user=dan")
        assert "<bdi>dan</bdi>" in lines.until("wait").replace("\\u003c", "<")
        lines.close()
        running = next(one for one in ids(dan) if one != call)
        assert running not in ada.get("/calls").text
        assert running not in ada.get("/").text
        assert running in ada.get("/admin").text
        assert ada.post(f"/calls/{running}/cancel", {"token": ada.token("/")}).status == 303
        process.communicate(timeout=120)


def test_unknown_addresses_are_pages(ada: Visitor, page: PageServer) -> None:
    """An address without a page says so as a page; programs get JSON."""
    assert "<h1>Not found</h1>" in ada.get("/nowhere/<b>").text
    assert Visitor(page).get("/nowhere", accept="application/json").headers["content-type"] == "application/json"
    assert ada.ask("DELETE", "/calls", origin=None).status in {403, 405}


def test_output_streams_and_a_call_is_cancelled(page: PageServer, ada: Visitor, bob: Visitor) -> None:
    """The output of a running call comes as it is printed; its owner alone cancels it by a form."""
    process = page.start("wait()")
    try:
        call = until(lambda: re.findall(r'href="/calls/([^"]+)"', running(ada)))[0]
        shown = ada.get(f"/calls/{call}").text
        assert "Cancel the call" in shown
        lines = Lines(ada, f"/live/calls/{call}?seen=/0")
        try:
            assert "step 0 <script>" in lines.until("step 0")
            token = ada.token(f"/calls/{call}")
            assert bob.post(f"/calls/{call}/cancel", {"token": bob.token("/")}).status == 404
            answer = ada.post(f"/calls/{call}/cancel", {"token": token})
            assert answer.headers["location"] == f"/calls/{call}?done=cancelled"
            lines.until("event: end")
        finally:
            lines.close()
        assert "cancelled" in visible(ada.get(f"/calls/{call}").text)
        assert ada.post(f"/calls/{call}/cancel", {"token": token}).headers["location"].endswith("done=over")
    finally:
        process.kill()
        process.communicate()


def test_a_live_view_ends_with_its_key(page: PageServer, ada: Visitor) -> None:
    """A live view that is open ends when the key that its session began with is revoked."""
    made = ada.post("/keys", {"token": ada.token("/keys"), "scope": "API"}).text
    key = re.search(r'<code id="made">([^<]+)</code>', made)
    assert key is not None
    other = Visitor(page)
    other.post("/login", {"token": other.token("/login"), "key": key[1]})
    lines = Lines(other, "/live/calls")
    try:
        lines.until("event: rows")
        path = f"/keys/{key[1].partition(':')[0]}/revoke"
        assert ada.post(path, {"token": ada.token("/keys")}).status == 303
        assert lines.rest() < 30.0
    finally:
        lines.close()


def running(visitor: Visitor) -> str:
    """Return the part of the overview that shows calls that run."""
    text = visitor.get("/").text
    return text[text.index("running-title") : text.index("recent-title")]


# --- rendering --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("printed", "shown"),
    [
        ("plain\n", "plain\n"),
        ("10%\r 50%\r100%\n", "100%\n"),
        ("a\r\nb\r\n", "a\nb\n"),
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("\u202eabc", "\\u202eabc"),
        ("tab\there", "tab\there"),
    ],
)
def test_output_as_text(printed: str, shown: str) -> None:
    """Colours go, lines that were overwritten show their end, and control characters are visible."""
    assert rendering.output_text(printed) == shown


def test_times_no_calendar_has_are_shown() -> None:
    """A time that a function claims, and no calendar has, breaks no page."""
    for at in (1e300, float("inf"), -1e18):
        assert "UTC" not in rendering.moment(at)
    assert 'datetime="1970-01-01T00:00:00Z"' in rendering.moment(0.0)


# --- files ------------------------------------------------------------------------------------------------------------

NAMES = {
    "text": "notes.txt",
    "script": "<script>document.title='evil'<|script>.txt",
    "turned": "\u202eevil\u2066.txt",
    "long": "n" * 250 + ".txt",
    "table": "results.csv",
    "picture": "picture.png",
    "page": "page.html",
    "binary": "weights.bin",
}


@pytest.fixture(scope="module")
def volume(page: PageServer) -> Path:
    """The files of `ada`, some with hostile names and contents; written by the machine's owner."""
    data = page.home.path / "volumes" / "u-ada" / "data"
    contents = {
        "text": b"first line\n<script>document.title='evil'</script>\n",
        "table": b"name,score\n" + b"".join(b'"<b>run %d</b>",%d\n' % (one, one) for one in range(300)),
        "binary": b"\0\1\2",
        "picture": b"\x89PNG\r\n\x1a\n",
    }
    page.call(
        "write({name: content for name, content in "
        + repr({NAMES[kind]: contents.get(kind, b"x") for kind in NAMES})
        + ".items()})"
    )
    page.call("write({f'many/{one:04}': b'' for one in range(450)})")
    return data


def test_directories_are_listed_in_parts(ada: Visitor, volume: Path) -> None:
    """A directory shows its names, the larger one some at a time; hostile names are text."""
    text = ada.get("/files/").text
    assert "<script>document" not in text
    assert not re.search("[\u202e\u2066]", text)
    for kind in ("text", "script", "table"):
        assert NAMES[kind] in visible(text)
    first = ada.get("/files/many")
    assert first.text.count('data-label="Changed"') == 200
    more = re.search(r'href="(/files/many\?after=[^"]+)"', first.text)
    assert more is not None
    assert "0200" in visible(ada.get(unescape(more[1])).text)


def test_previews_are_made_beside_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """A content that takes long to make readable holds up no other request: a thread does it."""
    threads = []

    def of_content(name: str, content: bytes, size: int) -> previews.Preview:
        threads.append(threading.current_thread())
        assert (name, content, size) == ("b.txt", b"text", 4)
        return previews.Preview("text", "text")

    monkeypatch.setattr(previews, "of_content", of_content)
    visit: Any = SimpleNamespace(page=lambda template, **values: (template, values["preview"].text))
    lent: Any = SimpleNamespace(call=asyncio.to_thread, volume=SimpleNamespace(read_bytes=lambda *_: b"text"))
    status: Any = SimpleNamespace(kind=FILE, size=4, mtime_ns=0, target="")
    shown: Any = asyncio.run(file_pages._file(visit, lent, "a/b.txt", status))
    assert shown == ("file.html", "text")
    assert threads
    assert threading.main_thread() not in threads


def test_previews(ada: Visitor, volume: Path) -> None:
    """Text and tables are shown as far as they are short, images by the browser, and nothing of another kind."""
    assert "first line" in ada.get("/files/notes.txt").text
    table = ada.get("/files/results.csv").text
    assert table.count("<tr>") == 201
    assert "&lt;b&gt;run 0&lt;/b&gt;" in table
    assert "This is the beginning" in table
    assert '<img src="/v1/files/picture.png?inline"' in ada.get("/files/picture.png").text
    assert "no preview" in ada.get("/files/weights.bin").text
    for name in NAMES.values():
        answer = ada.get("/files/" + quote(name))
        assert answer.status == 200, name
        assert "<script>document" not in answer.text


def test_contents_cannot_act_here(ada: Visitor, volume: Path) -> None:
    """A page of a user's, opened from this server, has no rights on it."""
    headers = ada.get("/v1/files/page.html?inline").headers
    assert "sandbox" in headers["content-security-policy"]
    assert headers["content-type"].startswith("text/plain")


@pytest.mark.parametrize(
    "path", ["..", "../u-bob/data", "%2e%2e/x", "a/../../x", "a%00b", "a//b", "%2fetc%2fpasswd", "x" * 300, "%zz"]
)
def test_paths_stay_inside(ada: Visitor, path: str) -> None:
    """No address of a page leads out of the volume."""
    answer = ada.get(f"/files/{path}")
    assert answer.status in {400, 404}
    assert "root:" not in answer.text


def test_files_of_others_are_theirs(ada: Visitor, bob: Visitor, volume: Path) -> None:
    """The same address is another file for another user."""
    assert bob.get("/files/notes.txt").status == 404
    assert "Your volume is empty" in bob.get("/files/").text


def multipart(token: str, files: dict[str, bytes]) -> tuple[bytes, str]:
    """Return the body of a form with files, and its type."""
    parts = [f'--mark\r\nContent-Disposition: form-data; name="token"\r\n\r\n{token}\r\n'.encode()]
    for name, content in files.items():
        head = f'--mark\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'
        parts.append(head.encode() + content + b"\r\n")
    return b"".join(parts) + b"--mark--\r\n", "multipart/form-data; boundary=mark"


def test_forms_upload_make_and_remove(bob: Visitor) -> None:
    """Without a script, forms upload files, make directories and remove both."""
    token = bob.token("/files/")
    assert (
        bob.post("/files/", {"token": token, "act": "mkdir", "name": "new"}).headers["location"] == "/files/?done=made"
    )
    body, kind = multipart(token, {"a.txt": b"content of a", "C:\\b & c.txt": b"b"})
    answer = bob.ask("POST", "/files/new", body, content_type=kind)
    assert answer.headers["location"] == "/files/new?done=uploaded"
    assert "content of a" in bob.get("/files/new/a.txt").text
    assert bob.get("/v1/files/new/b%20%26%20c.txt").text == "b"
    assert (
        bob.post("/files/new/a.txt", {"token": token, "act": "remove"}).headers["location"] == "/files/new?done=removed"
    )
    assert bob.get("/files/new/a.txt").status == 404
    assert bob.post("/files/new", {"token": token, "act": "remove"}).status == 409
    assert bob.post("/files/new", {"token": token, "act": "remove", "recursive": "yes"}).status == 303
    for name in ("..", "a/b", "", "a\0b", "n" * 300):
        assert bob.post("/files/", {"token": token, "act": "mkdir", "name": name}).status == 400, name
    assert bob.post("/files/", {"token": token, "act": "burn"}).status == 400


def test_uploads_need_token_and_bounds(bob: Visitor) -> None:
    """An upload without its token or with it behind a file, with a path as a name or cut off is refused; nothing is kept."""
    token = bob.token("/files/")
    for given, files, status in (
        ("", {"x": b"x"}, 403),
        (token, {"..": b"x"}, 400),
        (token, {}, 400),
        (token, {"n" * 300: b"x"}, 400),
    ):
        body, kind = multipart(given, files)
        assert bob.ask("POST", "/files/", body, content_type=kind).status == status, files
    body, kind = multipart(token, {"x": b"x"})
    first, second = body.split(b"--mark\r\n")[1:]
    late = b"--mark\r\n" + second.removesuffix(b"--mark--\r\n") + b"--mark\r\n" + first + b"--mark--\r\n"
    assert bob.ask("POST", "/files/", late, content_type=kind).status == 403
    for torn in (body[:-20], b"", b"--mark\r\n", body.replace(b"mark", b"other"), b"\0" * 100):
        assert bob.ask("POST", "/files/", torn, content_type=kind).status in (400, 403), torn
    assert bob.ask("POST", "/files/", body, content_type="multipart/form-data").status in (400, 403)
    assert "Your volume is empty" in bob.get("/files/").text


def large_files(pid: int) -> list[str]:
    """Return the files without a name, of more than 1 MiB, that a process has open."""
    found = []
    for one in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            place, status = os.readlink(one), one.stat()
            if stat.S_ISREG(status.st_mode) and not status.st_nlink and status.st_size > 1 << 20:
                found.append(place)
    return found


def staged(page: PageServer) -> int:
    """Return the bytes of large files that are on their way into the volume of `bob`."""
    sizes = []
    for one in (page.home.path / "volumes" / "u-bob" / "staging").rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            sizes.append(one.lstat().st_size)
    return sum(size for size in sizes if size > 1 << 20)


def test_a_form_that_is_cut_off_leaves_nothing(page: PageServer, bob: Visitor) -> None:
    """What a form sends goes to its volume as it comes, and to no other file; cut off, it is gone."""
    body, kind = multipart(bob.token("/files/"), {"large": b"x" * (48 << 20)})
    cookies = "; ".join(f"{name}={value}" for name, value in bob.cookies.items())
    headers = {
        "Content-Type": kind,
        "Content-Length": str(len(body)),
        "Cookie": cookies,
        "Sec-Fetch-Site": "same-origin",
    }
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", page.server.port, timeout=60)) as connection:
        connection.request("POST", "/files/", body[: 40 << 20], headers)
        until(lambda: staged(page) > 16 << 20)
        assert not large_files(page.server.pid)
    until(lambda: not staged(page))
    assert "Your volume is empty" in bob.get("/files/").text


# --- keys, secrets, environments, usage, administration -----------------------------------------------------------------


def test_a_key_is_shown_once(page: PageServer) -> None:
    """A new key's secret is on the page that makes it and on no other; it works, and no more once it is revoked."""
    visitor = Visitor(page).log_in("bob")
    made = visitor.post("/keys", {"token": visitor.token("/keys"), "alias": EVIL[:60], "scope": "ADMIN"})
    found = re.search(r'<code id="made">([^<]+)</code>', made.text)
    assert found is not None
    key = found[1]
    assert "<script>document" not in made.text
    again = visitor.get("/keys").text
    assert key.partition(":")[0] in again
    assert key.partition(":")[2] not in again
    other = Visitor(page)
    assert other.post("/login", {"token": other.token("/login"), "key": key}).status == 303
    assert other.get("/").status == 200
    path = f"/keys/{key.partition(':')[0]}/revoke"
    assert visitor.post(path, {"token": visitor.token("/keys")}).headers["location"] == "/keys?done=revoked"
    assert other.get("/").status == 303
    assert other.post("/login", {"token": other.token("/login"), "key": key}).status == 401


def test_keys_of_others_cannot_be_revoked(page: PageServer, ada: Visitor, bob: Visitor) -> None:
    """A user revokes no key of another's, and is told nothing of it."""
    theirs = page.keys["ada"].partition(":")[0]
    assert bob.post(f"/keys/{theirs}/revoke", {"token": bob.token("/keys")}).status == 404
    assert ada.get("/").status == 200


def test_a_key_of_the_scope_api_handles_no_keys(page: PageServer) -> None:
    """A session that began with a key of the scope API shows and makes no keys."""
    eve = Visitor(page).log_in("eve")
    assert page.keys["eve"].partition(":")[0] not in eve.get("/keys").text
    assert eve.post("/keys", {"token": eve.token("/keys"), "scope": "ADMIN"}).status == 403
    assert not re.search("[\u202e]|<b>eve", eve.get("/").text)


def test_secrets_are_names(bob: Visitor, ada: Visitor) -> None:
    """A secret is set and deleted by forms; its value is on no page, and no other user sees its name."""
    token = bob.token("/secrets")
    assert bob.post("/secrets", {"token": token, "name": "WANDB_KEY", "value": "very-secret"}).status == 303
    text = bob.get("/secrets").text
    assert "WANDB_KEY" in text
    assert "very-secret" not in text
    assert "WANDB_KEY" not in ada.get("/secrets").text
    refused = bob.post("/secrets", {"token": token, "name": "LD_PRELOAD", "value": "very-secret"})
    assert refused.status == 400
    assert 'role="alert"' in refused.text
    assert "very-secret" not in refused.text
    assert bob.post("/secrets/delete", {"token": token, "name": "WANDB_KEY"}).status == 303
    assert "You have no secrets" in bob.get("/secrets").text


def test_environments_are_shown(ada: Visitor) -> None:
    """An environment has its size, requirements and log."""
    key = re.search(r'href="/environments/([0-9a-f.]+)"', ada.get("/environments").text)
    assert key is not None
    text = visible(ada.get(f"/environments/{key[1]}").text)
    assert "Build log" in text
    assert ada.get("/environments/0000").status == 404
    assert ada.get("/environments/..%2f..").status == 404


def test_usage_has_charts(ada: Visitor, bob: Visitor) -> None:
    """The figures are drawn here, with a text for those who do not see them."""
    text = ada.get("/usage").text
    assert text.count('<svg viewBox="0 0 560') >= 4
    assert 'aria-label="Calls by day from' in text
    assert "greet" in text
    assert "No calls in this time" in bob.get("/usage?since=7d").text


def test_the_server_is_for_operators(page: PageServer, ada: Visitor, bob: Visitor) -> None:
    """Users, machine and queue are for those who run the server; they add and remove users."""
    for answer in (
        bob.get("/admin"),
        bob.post("/admin/users", {"token": bob.token("/"), "name": "mallory"}),
        bob.post("/admin/users/remove", {"token": bob.token("/"), "name": "ada"}),
        bob.post("/admin/users/revoke", {"token": bob.token("/"), "name": "ada"}),
    ):
        assert answer.status == 403
    assert "/admin" not in bob.get("/").text
    made = ada.post("/admin/users", {"token": ada.token("/admin"), "name": "carol"})
    found = re.search(r'<code id="made">([^<]+)</code>', made.text)
    assert found is not None
    carol = Visitor(page)
    assert carol.post("/login", {"token": carol.token("/login"), "key": found[1]}).status == 303
    assert carol.get("/").status == 200
    answer = ada.post("/admin/users/revoke", {"token": ada.token("/admin"), "name": "carol"})
    assert answer.headers["location"] == "/admin?done=revoked"
    assert carol.get("/").status == 303
    assert carol.post("/login", {"token": carol.token("/login"), "key": found[1]}).status == 401
    assert ada.post("/admin/users/remove", {"token": ada.token("/admin"), "name": "carol"}).status == 303


def test_machines_are_shown_to_operators_who_drain_them(page: PageServer, ada: Visitor, bob: Visitor) -> None:
    """A server with several machines lists them: a machine that has joined and does not answer is away."""
    assert 'id="machines-title"' not in ada.get("/admin").text
    key = {"Authorization": f"Key {page.keys['ada']}"}
    status, made = page.server.ask("POST", "/v1/nodes/tokens", b"{}", key)
    assert status == 201
    joins = json.dumps({"token": made["token"], "name": "gpu-2"}).encode()
    assert page.server.ask("POST", "/v1/nodes/join", joins, {})[0] == 201
    try:
        text = visible(ada.get("/admin").text)
        assert "gpu-2" in text
        assert "away" in text
        drained = ada.post("/admin/machines/drain", {"token": ada.token("/admin"), "name": "gpu-2"})
        assert drained.headers["location"] == "/admin?done=drained"
        _, nodes = page.server.ask("GET", "/v1/nodes", None, key)
        assert {node["name"]: node["state"] for node in nodes["nodes"]} == {"local": "active", "gpu-2": "draining"}
        assert ada.post("/admin/machines/uncordon", {"token": ada.token("/admin"), "name": "gpu-2"}).status == 303
        for act in ("drain", "uncordon"):
            assert bob.post(f"/admin/machines/{act}", {"token": bob.token("/"), "name": "gpu-2"}).status == 403
    finally:
        page.server.ask("DELETE", "/v1/nodes/gpu-2", None, key)


# --- previews ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "size", "kind"),
    [
        ("a.txt", b"text", 4, "text"),
        ("a.txt", "ä".encode()[:1], 9, "text"),
        ("a", b"\xff\xfe\0", 3, "none"),
        ("a.txt", b"", 0, "none"),
        ("latin.txt", "é".encode("latin-1") * 10, 10, "text"),
        ("a.bin", bytes(range(1, 256)), 255, "none"),
        ("a.csv", b'a,b\n1,"2\n3"\n', 11, "table"),
        ("a.csv", b'"' + b"x" * 200_000, 200_001, "text"),
        ("a.csv", b"no end", 100, "text"),
    ],
)
def test_previews_of_contents(name: str, content: bytes, size: int, kind: str) -> None:
    """A preview is of the kind that the content has, whatever its name says."""
    assert previews.of_content(name, content, size).kind == kind
