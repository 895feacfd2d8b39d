"""Pages of endpoints, queued requests and schedules, without a browser: whose they are, forms, figures, and answers as text."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator

import pytest

from atoll import Host, isolated
from atoll.sdk.apps import scheduling
from atoll.server.pages import guard

from ..conftest import needs_outbound
from ..waiting import until
from .page_app import PNG, Served, served
from .page_client import EVIL, Lines, Visitor, visible

pytestmark = needs_outbound


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    """A server whose endpoints are an app of the test's."""
    with served() as found:
        found.first = found.serve("hello")
        yield found


@pytest.fixture(scope="module")
def ada(server: Served) -> Visitor:
    """The owner of the endpoints."""
    return Visitor(server.page).log_in("ada")


@pytest.fixture(scope="module")
def bob(server: Served) -> Visitor:
    """Another user."""
    return Visitor(server.page).log_in("bob")


def call(visitor: Visitor, path: str, fields: dict[str, str], name: str = "hello") -> list[dict[str, object]]:
    """Call an endpoint as the page's script does; return the events."""
    given = {"token": visitor.token(f"/endpoints/{name}"), "operation": "json", "path": path, **fields}
    answer = visitor.post(f"/endpoints/{name}/call", given, accept="application/x-ndjson")
    assert answer.headers["content-security-policy"] == guard.POLICY
    assert answer.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in answer.text.splitlines() if line]


# --- endpoints --------------------------------------------------------------------------------------------------------


def test_endpoints_are_the_users_own(server: Served, ada: Visitor, bob: Visitor) -> None:
    """A user sees the own endpoints with their addresses; for others they do not exist, on no page and for no form."""
    text = visible(ada.get("/endpoints").text)
    assert f"{server.page.url}/ada/hello" in text
    assert "You have no endpoints" in Visitor(server.page).log_in("dan").get("/endpoints").text
    assert "ada/hello" not in bob.get("/endpoints").text
    token = bob.token("/")
    for name in ("hello", server.first, "none", "%00", "<b>"):
        assert bob.get(f"/endpoints/{name}").status == 404, name
        assert bob.get(f"/live/endpoints/{name}").status == 404, name
        for act in ("call", "describe", "point", "delete"):
            assert bob.post(f"/endpoints/{name}/{act}", {"token": token}).status in {400, 404}, (name, act)
    assert "hello" in visible(ada.get("/endpoints").text)


def test_calls_need_the_forms_token(server: Served, ada: Visitor) -> None:
    """Another site calls no endpoint in the name of who has logged in."""
    count = len(server.app.seen)
    for fields, headers in (({}, {}), ({"token": "x"}, {}), ({}, {"sec_fetch_site": "cross-site"})):
        for accept in ("text/html", "application/x-ndjson"):
            assert ada.post("/endpoints/hello/call", fields, accept=accept, **headers).status == 403
    assert len(server.app.seen) == count


def test_a_call_shows_status_time_and_text(server: Served, ada: Visitor) -> None:
    """The function gets the request in its owner's name, without the page's cookie; its answer comes in lines of JSON."""
    head, text, end = call(ada, "/any/where?a=b c", {"body": '{"x": 1}'})
    assert (head["event"], head["status"], head["type"]) == ("head", 200, "application/json")
    assert json.loads(str(text["text"])) == {"path": "/any/where?a=b%20c", "body": '{"x": 1}'}
    assert end["event"] == "end"
    headers = server.app.headers[-1]
    assert headers["x-fal-caller-user-id"] == "u-ada"
    assert headers["content-type"] == "application/json"
    assert not {"cookie", "authorization", "origin"} & headers.keys()


def test_answers_are_text(ada: Visitor) -> None:
    """A page of a function's is shown as text, with and without the script; of an image there is its size."""
    events = call(ada, "/page", {})
    assert EVIL in str(events[1]["text"])
    assert "\\u202e" in str(events[1]["text"])
    fields = {"token": ada.token("/endpoints/hello"), "operation": "json", "path": "/page", "body": "{}"}
    answer = ada.post("/endpoints/hello/call", fields)
    assert answer.headers["content-security-policy"] == guard.POLICY
    assert "<script>document" not in answer.text
    assert f"<h1>mine</h1>{EVIL}" in visible(answer.text)
    cut = call(ada, "/large", {"method": "GET"})
    assert "only the first" in str(cut[-1]["note"])
    assert sum(len(str(one.get("text", ""))) for one in cut) < 2 << 20


def test_answers_that_are_no_text_are_files(server: Served, ada: Visitor, bob: Visitor) -> None:
    """An image is shown from an address that its caller alone has; a file of another type is saved, and never shown."""
    head, file, end = call(ada, "/image", {"method": "GET"})
    assert (head["type"], file["element"], end["bytes"]) == ("image/png", "img", len(PNG))
    found = ada.get(str(file["address"]))
    assert (found.status, found.headers["content-type"]) == (200, "image/png")
    assert found.headers["content-security-policy"] == "default-src 'none'; sandbox"
    assert bob.get(str(file["address"])).status == 404
    fields = {"token": ada.token("/endpoints/hello"), "operation": "json", "path": "/image", "method": "GET"}
    assert '<img src="/endpoints/hello/answers/' in ada.post("/endpoints/hello/call", fields).text
    _, file, _ = call(ada, "/file", {"method": "GET"})
    assert file["element"] == ""
    found = ada.get(str(file["address"]))
    assert found.headers["content-type"] == "application/octet-stream"
    assert found.headers["content-disposition"].startswith("attachment")
    assert [event["event"] for event in call(ada, "/huge", {"method": "GET"})] == ["head", "end"]


def test_wrong_fields_are_told(server: Served, ada: Visitor) -> None:
    """A body that is no JSON, a path that is none and an unknown method call nothing."""
    count = len(server.app.seen)
    for fields in ({"body": "{"}, {"path": "x"}, {"method": "BURN"}, {"path": "//evil\r\nx: y" + "a" * 5000}):
        (event,) = call(ada, "/", fields)
        assert event["event"] == "failed", fields
        token = ada.token("/endpoints/hello")
        answer = ada.post("/endpoints/hello/call", {"token": token, "operation": "json", "path": "/", **fields})
        assert answer.status == 400
        assert 'role="alert"' in answer.text
    assert len(server.app.seen) == count
    call(ada, "/a\r\nx-evil: 1", {})
    assert "x-evil" not in server.app.headers[-1]


def test_streamed_answers_come_as_they_are_made(server: Served, ada: Visitor) -> None:
    """The first piece is there before the function makes the second; who leaves gives the worker's place back."""
    server.serve("one", max_concurrency=1)
    app, fields = server.app, {"token": ada.token("/endpoints/one"), "operation": "json", "path": "/stream"}
    app.go.clear()
    lines = Lines(ada, "/endpoints/one/call", fields)
    assert "piece 0 <script>" in lines.until("piece 0")
    app.go.set()
    lines.until('"end"')
    lines.close()
    app.go.clear()
    lines = Lines(ada, "/endpoints/one/call", fields)
    lines.until("piece 0")
    lines.close()
    assert server.ask("GET", "/ada/one/after")[0] == 200
    app.go.set()


def test_a_call_ends_with_its_key(server: Served, ada: Visitor) -> None:
    """A call from the page ends when the key that its session began with is revoked."""
    server.serve("revoked", max_concurrency=1)
    made = re.search(r'<code id="made">([^<]+)', ada.post("/keys", {"token": ada.token("/keys"), "scope": "API"}).text)
    assert made is not None
    other = Visitor(server.page)
    other.post("/login", {"token": other.token("/login"), "key": made[1]})
    server.app.go.clear()
    fields = {"token": other.token("/endpoints/revoked"), "operation": "json", "path": "/stream"}
    lines = Lines(other, "/endpoints/revoked/call", fields)
    lines.until("piece 0")
    path = f"/keys/{made[1].partition(':')[0]}/revoke"
    assert ada.post(path, {"token": ada.token("/keys")}).status == 303
    lines.rest()
    lines.close()
    assert server.ask("GET", "/ada/revoked/after")[0] == 200
    server.app.go.set()


def test_forms_from_the_description(server: Served, ada: Visitor) -> None:
    """An app's description becomes fields; their values become path, query and body, and hostile texts stay texts."""
    token = ada.token("/endpoints/hello")
    assert ada.post("/endpoints/hello/describe", {"token": token}).status == 303
    text = ada.get("/endpoints/hello").text
    assert "<script>document" not in text
    names = re.findall(r'name="(body\.[^"]+)"', text)
    assert names == ["body.name", "body.times", "body.loud", "body.tone", "body.options"]
    assert 'value="2"' in text
    fields = {"token": token, "operation": "POST /", "body.name": "ada", "body.times": "3", "body.options": '{"b": 2}'}
    assert call(ada, "", {**fields, "body.loud": "true", "body.tone": ""})[0]["status"] == 200
    assert json.loads(server.app.seen[-1][2]) == {"name": "ada", "times": 3, "loud": True, "options": {"b": 2}}
    for wrong in ({"body.times": "many"}, {"body.options": "{"}, {"body.options": ""}, {"body.times": "true"}):
        assert call(ada, "", {**fields, **wrong})[0]["event"] == "failed", wrong
    item = ada.get("/endpoints/hello?operation=GET+/items/{item}").text
    assert re.findall(r'name="((?:path|query)\.[^"]+)"', item) == ["path.item", "query.most"]
    call(ada, "", {"operation": "GET /items/{item}", "path.item": "a/b?c", "query.most": "5"})
    assert server.app.seen[-1][:2] == ("GET", "/items/a%2Fb%3Fc?most=5")
    assert 'id="call-body"' in ada.get("/endpoints/hello?form=json").text


def counts(server: Served) -> Counter[str]:
    """Return how many requests there were by status, as Prometheus is told."""
    _, metrics = server.ask("GET", "/metrics")
    found = re.findall(r'atoll_endpoint_requests_total\{status="(\w+)"\} (\d+)', metrics.decode())
    return Counter({status: int(count) for status, count in found})


def test_figures_are_counted(server: Served, ada: Visitor) -> None:
    """Requests by key and by the form are in the charts, failed ones among them."""
    server.serve("counted")
    start = counts(server)
    before = ada.get("/endpoints/counted").text
    assert "requests a second: 0<" in before
    for path in ("/", "/fail"):
        server.ask("GET", f"/ada/counted{path}")
    assert server.ask("POST", "/ada/counted/large-body", b"x" * (1 << 20))[0] == 200
    call(ada, "/", {}, "counted")
    text = ada.get("/endpoints/counted").text
    assert not re.search("requests a second: 0<|failed: 0<|median: none", text)
    assert text.count('<svg viewBox="0 0 560') == 3
    assert counts(server) - start == Counter({"2xx": 3, "5xx": 1})
    _, metrics = server.ask("GET", "/metrics")
    assert b'atoll_endpoint_request_seconds_bucket{le="+Inf"}' in metrics
    assert b"counted" not in metrics
    lines = Lines(ada, "/live/endpoints/counted")
    try:
        assert "requests a second" in lines.until("data: ")
    finally:
        lines.close()


def test_aliases_are_pointed_and_deleted(server: Served, ada: Visitor) -> None:
    """An alias is pointed to another revision, rolled back and deleted by forms, with a key of the scope ADMIN."""
    first = server.serve("moved")
    second = server.serve("moved")

    def present() -> str:
        found = re.search(r"<dt>Revision</dt><dd><code>([^<]+)", ada.get("/endpoints/moved").text)
        assert found is not None
        return found[1]

    token = ada.token("/endpoints/moved")
    assert present() == second
    for fields, wanted in (({"revision": first}, first), ({}, second)):
        answer = ada.post("/endpoints/moved/point", {"token": token, **fields})
        assert answer.headers["location"] == "/endpoints/moved?done=pointed"
        assert present() == wanted
    assert ada.post("/endpoints/moved/point", {"token": token, "revision": "none"}).status == 404
    assert ada.post("/endpoints/moved/delete", {"token": token}).headers["location"] == "/endpoints?done=deleted"
    assert ada.get("/endpoints/moved").status == 404
    assert ada.get(f"/endpoints/{second}").status == 200
    dan = Visitor(server.page).log_in("dan")
    assert dan.post("/endpoints/hello/point", {"token": dan.token("/")}).status == 403
    assert dan.post("/endpoints/hello/delete", {"token": dan.token("/")}).status == 403


def test_operators_see_and_change_nothing_of_others(server: Served, ada: Visitor, bob: Visitor) -> None:
    """Those who run the server see endpoints, requests and schedules of a user, without forms; other users ask in vain."""
    server.serve("bobs", user="bob", auth="shared")
    name = schedule(server, "bobs_report", "0 0 1 1 *", "bob")
    request = submit(server, "bobs", "/page", "bob", owner="bob")
    until(lambda: state_of(bob, request) == "ok")
    pages = ("/endpoints", "/endpoints/bobs", "/requests", f"/requests/{request}", "/schedules", f"/schedules/{name}")
    for path in pages:
        text = ada.get(f"{path}?user=u-bob").text
        assert "bob" in visible(text).replace("bob Log out", ""), path
        assert not re.search(r'<form method="post" action="/(?!logout)', text), path
        assert "<h1>mine" not in visible(text)
        assert "user=u-bob" in text
        assert bob.get(path).status == 200
        assert bob.get(f"{path}?user=u-ada").text.count('name="user"') == 0
    lines = Lines(ada, "/live/endpoints/bobs?user=u-bob")
    assert "requests a second" in lines.until("data: ")
    lines.close()
    for path in pages[1::2]:
        assert ada.get(path).status == 404
    assert ada.get("/endpoints?user=nobody").status == 404
    token = ada.token("/endpoints")
    for path in (
        "/endpoints/bobs/call",
        "/endpoints/bobs/delete",
        f"/requests/{request}/cancel",
        f"/schedules/{name}/pause",
    ):
        assert ada.post(f"{path}?user=u-bob", {"token": token}).status in {400, 404}, path
    assert "bobs" in visible(bob.get("/endpoints").text)


# --- queued requests --------------------------------------------------------------------------------------------------


def submit(server: Served, alias: str, path: str = "/", user: str = "ada", owner: str = "ada") -> str:
    """Queue a request; return its id."""
    status, data = server.ask("POST", f"/queue/{owner}/{alias}{path}", b'{"x": 1}', user)
    assert status == 200, data
    return str(data["request_id"])


def state_of(visitor: Visitor, request: str) -> str:
    """Return the state that a request's page shows."""
    found = re.search(r"<dt>State</dt><dd><span[^>]*>([a-z ]+)", visitor.get(f"/requests/{request}").text)
    assert found is not None
    return found[1]


def test_requests_are_listed_cancelled_and_shown(server: Served, ada: Visitor, bob: Visitor) -> None:
    """The queue's depth and newest requests are the owner's; a button cancels one, another all that wait."""
    app = server.app
    server.serve("slow", auth="shared", max_concurrency=1)
    app.go.clear()
    app.begun.clear()
    running = submit(server, "slow", "/wait")
    assert app.begun.wait(60)
    mine, theirs, last = submit(server, "slow"), submit(server, "slow", user="bob"), submit(server, "slow")
    text = ada.get("/requests?alias=slow").text
    assert [one in text for one in (running, mine, theirs, last)] == [True] * 4
    assert "3 wait for slow" in " ".join(visible(text).split())
    assert "3 wait" not in visible(bob.get("/requests").text)
    assert (state_of(ada, running), state_of(ada, mine)) == ("running", "waiting")
    until(lambda: "in the queue: 3" in ada.get("/requests").text)
    for answer in (bob.get(f"/requests/{mine}"), bob.post(f"/requests/{mine}/cancel", {"token": bob.token("/")})):
        assert answer.status == 404
    token = ada.token("/requests")
    assert bob.post("/requests/flush", {"token": bob.token("/"), "alias": "slow"}).status == 303
    assert state_of(ada, last) == "waiting"
    assert ada.post(f"/requests/{mine}/cancel", {"token": token}).headers["location"].endswith("done=cancelled")
    assert ada.post(f"/requests/{mine}/cancel", {"token": token}).headers["location"].endswith("done=over")
    assert state_of(ada, mine) == "cancelled"
    lines = Lines(ada, "/live/requests?alias=slow")
    try:
        assert running in lines.until("data: ")
        assert ada.post("/requests/flush", {"token": token, "alias": "slow"}).status == 303
        assert "cancelled" in lines.until("data: ")
    finally:
        lines.close()
    assert {state_of(ada, theirs), state_of(ada, last)} == {"cancelled"}
    app.go.set()
    until(lambda: state_of(ada, running) == "ok")
    assert mine not in ada.get("/requests?state=open").text
    assert running not in ada.get("/requests?state=failed").text
    assert running not in ada.get("/requests?alias=other").text


def test_answers_are_for_who_has_asked(server: Served, ada: Visitor) -> None:
    """The owner of an endpoint sees the own answers, as text, and none that are another user's."""
    server.serve("shared", auth="shared")
    own, page, theirs = (
        submit(server, "shared", path, user) for path, user in (("/", "ada"), ("/page", "ada"), ("/x", "bob"))
    )
    until(lambda: all(state_of(ada, one) == "ok" for one in (own, page, theirs)))
    assert '"body": "{\\"x\\": 1}"' in visible(ada.get(f"/requests/{own}").text)
    text = ada.get(f"/requests/{page}").text
    assert "<script>document" not in text
    assert "<h1>mine</h1>" in visible(text)
    other = visible(ada.get(f"/requests/{theirs}").text)
    assert "Answers are for who has asked" in other
    assert "/x" not in other.replace(server.page.url, "")
    assert ada.get("/requests/none").status == 404


# --- schedules --------------------------------------------------------------------------------------------------------


def schedule(server: Served, function: str, cron: str, user: str = "ada", **rule: str) -> str:
    """Schedule a function that never runs; return the schedule's id."""
    facts = {"function": function, "rule": {"cron": cron, **rule}}
    status, data = server.ask("POST", "/v1/schedules", json.dumps(facts).encode() + b"\nnothing", user)
    assert status == 201, data
    return str(data["id"])


def test_schedules_have_a_calendar(server: Served, ada: Visitor, bob: Visitor) -> None:
    """A month of runs to come in a zone, the next ones, and buttons that pause, resume and cancel; for their owner alone."""
    dan = Visitor(server.page).log_in("dan")
    assert "You have no schedules" in dan.get("/schedules").text
    name = schedule(server, "report", "30 7 * * *", timezone="Europe/Berlin")
    often = schedule(server, "often", "0 * * * * *")
    text = ada.get("/schedules?month=2030-02&zone=Europe/Berlin").text
    assert text.count("07:30") == 28 + 7
    assert "24+" in text
    assert "06:30" in ada.get("/schedules?month=2030-02&zone=UTC").text
    for query in ("month=x", "month=9999-99", "zone=Mars/Olympus", "month=0001-01", "month=2200-12"):
        assert ada.get(f"/schedules?{query}").status == 200, query
    token = ada.token("/schedules")
    assert name not in bob.get("/schedules").text
    assert bob.get(f"/schedules/{name}").status == 404
    assert bob.post(f"/schedules/{name}/pause", {"token": bob.token("/")}).status == 404
    for act, state in (("pause", "paused"), ("resume", "active"), ("cancel", "cancelled")):
        answer = ada.post(f"/schedules/{often}/{act}", {"token": token})
        assert answer.headers["location"].startswith(f"/schedules/{often}?done="), act
        shown = re.search(r"<dt>State</dt><dd><span[^>]*>([a-z]+)", ada.get(f"/schedules/{often}").text)
        assert shown is not None
        assert shown[1] == state
    assert ada.post(f"/schedules/{often}/burn", {"token": token}).status == 404
    assert ada.post(f"/schedules/{often}/resume", {"token": token}).status == 400
    assert ada.post(f"/schedules/{name}/pause", {}).status == 403
    assert dan.post(f"/schedules/{name}/pause", {"token": dan.token("/")}).status == 403
    assert "often" not in visible(ada.get("/schedules?month=2030-02").text).partition("Cancelled")[0]


def test_runs_have_state_and_output(server: Served, ada: Visitor, bob: Visitor) -> None:
    """A run is in the calendar and in its schedule's history, with a link to its output."""
    key_id, _, secret = server.page.keys["ada"].partition(":")
    host = Host(server.page.url, key_id=key_id, key_secret=secret)
    made = scheduling.schedule(isolated(host=host)(note), "* * * * * *")
    path = f"/schedules/{made['id']}"
    found = until(lambda: re.search(r'good">ok</span>.*?href="(/calls/[^"]+)"', ada.get(path).text, re.DOTALL))
    assert found is not None
    assert ada.post(f"{path}/cancel", {"token": ada.token(path)}).status == 303
    text = ada.get(found[1]).text
    assert f"noted {EVIL}" in visible(text)
    assert "<script>document" not in text
    assert bob.get(found[1]).status == 404
    assert re.search(r'class="run good"[^>]*><a href="' + path, ada.get("/schedules").text)


def note() -> None:
    print("noted <script>document.title='evil'</script>")
