"""The queue of a server in front of real functions: submitted, looked at, answered."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from atoll import Host, isolated

from ..waiting import until
from .process import Server, running


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server with the endpoint `operator/hello`."""
    with running() as found, pytest.MonkeyPatch.context() as patch:
        for name, value in found.client_variables.items():
            patch.setenv(name, value)
        host = Host(found.url, key_id=found.key[0], key_secret=found.key[1], ca_file=str(found.ca_file))

        def hello(name: str, times: int = 1) -> str:
            print("greeting", name)
            if name == "nobody":
                raise ValueError(name)
            return f"hello {name}" * times

        isolated(host=host, serve=True)(hello).serve("hello")
        yield found


def _path(server: Server, url: str) -> str:
    assert url.startswith(server.url), url
    return url.removeprefix(server.url)


def _over(server: Server, url: str) -> Any:
    def over() -> Any:
        status, data = server.ask("GET", _path(server, url))
        assert status in (200, 202), (status, data)
        return data if status == 200 else None

    return until(over)


def test_a_request_is_queued_and_its_answer_fetched(server: Server) -> None:
    """What is submitted is answered by the function, and the answer waits for whoever asked."""
    body = json.dumps({"name": "ann"}).encode()
    headers = {**server.headers(), "content-type": "application/json"}
    status, submitted = server.ask("POST", "/queue/operator/hello", body, headers)
    assert status == 200, submitted
    assert submitted["status"] == "IN_QUEUE"
    assert submitted["status_url"].endswith(f"/queue/operator/hello/requests/{submitted['request_id']}/status")
    state = _over(server, submitted["status_url"])
    assert state["status"] == "COMPLETED"
    assert state["metrics"]["inference_time"] > 0
    assert "error" not in state
    status, answer = server.ask("GET", _path(server, submitted["response_url"]))
    assert (status, answer) == (200, "hello ann")

    def printed() -> bool:
        logs = server.ask("GET", _path(server, submitted["status_url"]) + "?logs=1")[1]["logs"]
        return any(one["message"] == "greeting ann" and one["source"] == "USER" for one in logs)

    until(printed)


def test_a_failure_of_the_function_is_its_answer(server: Server) -> None:
    """An error of the function is kept as the function has answered it, and the state names it."""
    status, submitted = server.ask("POST", "/operator/hello/fal/queue/submit/?name=nobody", b"")
    assert status == 200, submitted
    state = _over(server, submitted["status_url"])
    assert (state["status"], state["error"]) == ("COMPLETED", "Invalid status code: 500")
    status, _ = server.ask("GET", _path(server, submitted["response_url"]))
    assert status == 500
