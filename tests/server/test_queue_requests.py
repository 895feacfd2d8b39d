"""Requests of the queue in front of an app of the test's: order, ends, retries, callers, forms of addresses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from uuid import uuid4

import pytest

from ..waiting import until
from .queue_app import Front, front


@pytest.fixture(scope="module")
def made() -> Iterator[Front]:
    """A server in front of an app."""
    with front("--trusted-proxy", "127.0.0.1") as found:
        yield found


def test_requests_run_by_priority_and_then_as_they_came(made: Front) -> None:
    """A request of normal priority goes before one of low priority that came first; positions say so."""
    path = made.serve("order", max_concurrency=1)
    made.app.hold()
    first = made.submit(path + "/wait", b"1")
    until(lambda: made.status(path, first)["status"] == "IN_PROGRESS")
    low = made.submit(path + "/echo", b"2", x_fal_queue_priority="low")
    normal = made.submit(path + "/echo", b"3")
    assert made.status(path, normal)["queue_position"] == 0
    assert made.status(path, low)["queue_position"] == 1
    assert made.ask("GET", "/applications/operator/order/queue")[1] == {"size": 2}
    made.app.release()
    assert made.result(path, low) == (200, 2)
    assert made.app.order[-3:] == [b"1", b"3", b"2"]


def test_a_request_that_waits_is_cancelled_and_never_runs(made: Front) -> None:
    """A cancelled request is over with 499; its cancellation afterwards is refused, and no answer is a 409."""
    path = made.serve("cancelled", max_concurrency=1)
    made.app.hold()
    first = made.submit(path + "/wait")
    until(lambda: made.status(path, first)["status"] == "IN_PROGRESS")
    second = made.submit(path + "/echo")
    assert made.ask("GET", f"{path}/requests/{second}")[0] == 400
    assert made.ask("PUT", f"{path}/requests/{second}/cancel") == (202, {"status": "CANCELLATION_REQUESTED"})
    assert made.over(path, second)["error_type"] == "client_cancelled"
    assert made.result(path, second)[0] == 499
    assert made.ask("PUT", f"{path}/requests/{second}/cancel")[0] == 400
    assert made.ask("PUT", f"{path}/requests/{uuid4()}/cancel")[0] == 404
    made.app.release()
    assert made.result(path, first)[0] == 200
    assert not made.app.count(second)


def test_a_request_that_runs_is_cancelled_with_its_function(made: Front) -> None:
    """The function is told of the cancellation of a request that runs, under the same id."""
    path = made.serve("stopped")
    made.app.hold()
    one = made.submit(path + "/wait")
    until(lambda: made.app.count(one))
    assert made.ask("PUT", f"{path}/requests/{one}/cancel/")[0] == 202
    assert made.result(path, one)[0] == 499
    assert made.app.count(one, "/wait/cancel") == 1


def test_lost_runners_and_busy_ones_are_asked_again_and_failures_are_not(made: Front) -> None:
    """503, 504, 429 and closed connections are repeated; 500 and 422 are answers; `x-fal-no-retry` asks for one attempt."""
    path = made.serve("again", max_concurrency=8)
    cases = {"503": 2, "504": 1, "429": 1}
    again = [made.submit(f"{path}/failing?code={code}&times={times}") for code, times in cases.items()]
    dropped = made.submit(f"{path}/drop")
    answers = [made.submit(f"{path}/failing?code={code}") for code in ("500", "502", "422")]
    single = made.submit(f"{path}/failing?code=503", x_fal_no_retry="1")
    for one, times in zip(again, cases.values(), strict=True):
        assert made.result(path, one)[0] == 200
        assert made.app.count(one) == times + 1
    assert made.result(path, dropped)[0] == 200
    for one, code in zip(answers, (500, 502, 422), strict=True):
        assert made.result(path, one) == (code, {"detail": "no"})
        assert made.over(path, one)["error"] == f"Invalid status code: {code}"
        assert made.app.count(one) == 1
    assert made.result(path, single)[0] == 503
    assert made.app.count(single) == 1


def test_a_request_that_has_not_started_in_time_is_over(made: Front) -> None:
    """`X-Fal-Request-Timeout` bounds the wait for the start, and the answer says whose bound it was."""
    path = made.serve("deadline", max_concurrency=1)
    made.app.hold()
    first = made.submit(path + "/wait", x_fal_request_timeout="600")
    until(lambda: made.status(path, first)["status"] == "IN_PROGRESS")
    late = made.submit(path + "/echo", x_fal_request_timeout="0.1")
    assert made.over(path, late)["error_type"] == "request_timeout"
    connection = made.server.connection()
    connection.request("GET", f"{path}/requests/{late}", headers=made.user("operator"))
    answer = connection.getresponse()
    assert (answer.status, answer.getheader("x-fal-request-timeout-type")) == (504, "user")
    assert answer.getheader("x-fal-request-id") == late
    connection.close()
    made.app.release()
    assert made.result(path, first)[0] == 200
    assert made.ask("POST", path, b"", x_fal_request_timeout="soon")[0] == 400


def test_an_idempotency_key_names_one_request_of_one_caller(made: Front) -> None:
    """The same key with the same body is the same request; another body is refused, and another caller has its own."""
    path = made.serve("idempotent", auth="shared")
    first = made.submit(path + "/echo", b"1", idempotency_key="k")
    assert made.submit(path + "/echo", b"1", idempotency_key="k") == first
    assert made.ask("POST", path + "/echo", b"2", idempotency_key="k")[0] == 422
    assert made.submit(path + "/echo", b"1", idempotency_key="k", user="ann") != first
    assert made.result(path, first)[0] == 200
    assert made.submit(path + "/echo", b"1", idempotency_key="k") == first
    assert made.app.count(first) == 1


def test_a_request_is_its_callers_alone(made: Front) -> None:
    """To others a request looks like one that there is not, also to the endpoint's owner; without a key nobody asks."""
    path = made.serve("callers", auth="shared", max_concurrency=1)
    one = made.submit(path + "/echo", b'"mine"', user="ann")
    assert made.result(path, one, user="ann") == (200, "mine")
    for user in ("bob", "operator"):
        for method, rest in (("GET", ""), ("GET", "/status"), ("GET", "/status/stream"), ("PUT", "/cancel")):
            status, data = made.ask(method, f"{path}/requests/{one}{rest}", user=user)
            assert status == 404, rest
            assert data == made.ask(method, f"{path}/requests/{uuid4()}{rest}", user=user)[1]
    assert made.ask("GET", f"{path}/requests/{one}/status", user=None)[0] == 401
    other = made.serve("elsewhere", auth="public")
    assert made.ask("GET", f"{other}/requests/{one}", user="ann")[0] == 404
    for name in ("x", "../..", "%00", one.upper(), one + "0"):
        assert made.ask("GET", f"{path}/requests/{name}", user="ann")[0] == 404, name
    assert made.ask("GET", "/applications/operator/callers/queue", user="ann")[0] == 404
    assert made.ask("DELETE", "/applications/operator/callers/queue", user="ann")[0] == 404
    private = made.serve("private")
    assert made.ask("POST", private, b"", user="ann")[0] == 404


def test_an_owner_empties_a_line(made: Front) -> None:
    """Flushed requests are cancelled; those of one caller alone where that is asked."""
    path = made.serve("flushed", auth="shared", max_concurrency=1)
    made.app.hold()
    first = made.submit(path + "/wait")
    until(lambda: made.status(path, first)["status"] == "IN_PROGRESS")
    mine, hers = made.submit(path + "/echo"), made.submit(path + "/echo", user="ann")
    assert made.ask("POST", path + "/echo?fal_max_queue_length=2", b"")[0] == 429
    user = made.server.ask("GET", "/v1/whoami", None, made.user("ann"))[1]["user"]
    status, data = made.ask("DELETE", f"/applications/operator/flushed/queue?caller_user_id={user}")
    assert (status, data) == (200, {"size": 1, "cancelled": 1})
    assert made.over(path, hers, user="ann")["error_type"] == "client_cancelled"
    assert made.ask("DELETE", "/applications/operator/flushed/queue/")[1] == {"size": 0, "cancelled": 1}
    assert made.over(path, mine)["error_type"] == "client_cancelled"
    made.app.release()
    assert made.result(path, first)[0] == 200


def test_what_is_large_goes_by_files_that_go_again(made: Front) -> None:
    """A body and an answer of a megabyte come whole; the body's file is gone when the request is over."""
    path = made.serve("large")
    body = json.dumps("y" * (1 << 20)).encode()
    one, two = made.submit(path + "/echo", body), made.submit(f"{path}/large?bytes=3000000")
    assert made.result(path, one) == (200, "y" * (1 << 20))
    made.over(path, two)
    connection = made.server.connection()
    connection.request("GET", f"{path}/requests/{two}", headers=made.user("operator"))
    answer = connection.getresponse()
    assert answer.read() == b"x" * 3_000_000
    assert answer.getheader("x-own") == "kept"
    assert answer.getheader("set-cookie") is None
    connection.close()
    names = {one.name for one in (made.server.home.path / "server" / "queue").iterdir()}
    assert names >= {f"{one}.answer", f"{two}.answer"}
    assert f"{one}.body" not in names


def test_the_function_sees_the_request_without_credentials(made: Front) -> None:
    """Path, query and headers reach the function, but for those of the queue and the caller's key."""
    path = made.serve("seen")
    query = "?a=%2F&b=&fal_max_queue_length=5&fal_key_id=x"
    one = made.submit(f"{path}/deep%2Fer/x/{query}", b"", x_mine="1", cookie="a=b", x_fal_own="1")
    assert made.result(path, one) == (200, {"path": "/deep%2Fer/x/?a=%2F&b="})
    headers = made.app.headers[one]
    assert headers["x-mine"] == "1"
    assert not {"authorization", "cookie", "x-fal-own"} & set(headers)
    assert headers["x-fal-request-id"] == one


def test_states_are_streamed_until_the_end(made: Front) -> None:
    """The stream of states says that a request waits or runs, and ends with the one that is over."""
    path = made.serve("streamed")
    made.app.hold()
    one = made.submit(path + "/wait")
    connection = made.server.connection()
    connection.request("GET", f"{path}/requests/{one}/status/stream?logs=0", headers=made.user("operator"))
    answer = connection.getresponse()
    assert answer.getheader("content-type", "").startswith("text/event-stream")
    states: list[str] = []
    while line := answer.readline():
        if line.startswith(b"data: "):
            states.append(json.loads(line[6:])["status"])
            made.app.release()
    connection.close()
    assert states[-1] == "COMPLETED"
    assert set(states[:-1]) <= {"IN_QUEUE", "IN_PROGRESS"}
    assert len(states) > 1


def test_the_forms_of_2023_are_answered_in_the_endpoints_own_paths(made: Front) -> None:
    """Submit, state, answer and cancellation have addresses below `fal/queue`, with and without a slash at the end."""
    made.serve("older", max_concurrency=1)
    path = "/operator/older/fal/queue"
    made.app.hold()
    status, data = made.ask("POST", f"{path}/submit/wait?x=1", b"{}")
    one = data["request_id"]
    assert status == 200
    assert data["response_url"] == f"{made.server.url}{path}/requests/{one}/response"
    until(lambda: made.ask("GET", f"{path}/{one}/get")[1]["status"] == "IN_PROGRESS")
    two = made.ask("POST", f"{path}/submit", b"{}")[1]["request_id"]
    assert made.ask("GET", f"{path}/{two}/get/")[1]["queue_position"] == 0
    assert made.ask("PUT", f"{path}/{two}/cancel")[0] == 202
    made.app.release()
    until(lambda: made.ask("GET", f"{path}/requests/{one}/status/")[0] == 200)
    for form in (f"{one}/get", f"{one}/get/", f"requests/{one}/response", f"requests/{one}/response/"):
        assert made.ask("GET", f"{path}/{form}") == (200, {}), form
    assert made.ask("GET", f"{path}/nothing/such/here")[0] == 404


def test_addresses_are_those_that_the_client_has_used(made: Front) -> None:
    """Host, prefix and, behind a trusted proxy, scheme of the addresses are the client's."""
    path = made.serve("named")
    status, data = made.ask("POST", path, b"{}", host="queue.example:81", x_forwarded_proto="https")
    assert status == 200
    base = f"https://queue.example:81{path}/requests/{data['request_id']}"
    addresses = {name: data[name] for name in ("response_url", "status_url", "cancel_url")}
    assert addresses == {"response_url": base, "status_url": f"{base}/status", "cancel_url": f"{base}/cancel"}
    assert made.ask("POST", path, b"{}", host="a b")[0] == 400
    made.over(path, data["request_id"])
