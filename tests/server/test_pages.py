"""The page without a browser: its walls, its sessions, whose data it shows, and texts of others as text alone."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from atoll.server.pages import guard, rendering

from ..waiting import until
from .page_client import EVIL, Lines, PageServer, Visitor, page_server, visible

PAGES = ("/", "/calls", "/files/", "/environments", "/usage", "/keys", "/secrets", "/admin")


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
