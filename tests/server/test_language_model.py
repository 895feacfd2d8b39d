"""A language model behind an endpoint on a CPU: its stream by curl, by OpenAI's Python package and on a page in Chromium.

The weights, of 93 MB, come with a package of the index.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from ..clients.published import python_of
from ..waiting import PATIENCE_SECONDS
from .example_programs import NAMES, Examples, needs_curl
from .page_browser import Tab, browser, needs_chromium, sync_api
from .page_client import PageServer
from .process import Server, running

__all__ = ["browser"]

MODEL = "smollm2"
STORY = {"messages": [{"role": "user", "content": "Tell me a story."}], "stream": True}
LONG = {**STORY, "ignore_eos": True, "max_tokens": 1900}
"""A request whose answer takes a minute or more."""
SHORT = {**STORY, "max_tokens": 3}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server whose endpoints have names below `localhost`, which browsers look up by themselves."""
    with running("--domain", "localhost", tls=False) as found:
        yield found


@pytest.fixture(scope="module", params=NAMES)
def examples(server: Server, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Examples:
    """The programs by the names of one generation."""
    return Examples(server, tmp_path_factory.mktemp("examples"), request.param)


@pytest.fixture(scope="module")
def answered(examples: Examples) -> list[str]:
    """The lines of the script that serves the model, and asks it."""
    return examples.run("chat.sh")


def pieces_of(lines: list[str]) -> list[str]:
    """Return the pieces of text in events."""
    events = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
    return [text for one in events for choice in one["choices"] if (text := choice["delta"].get("content"))]


@needs_curl
def test_the_model_answers(answered: list[str]) -> None:
    """The answer comes as events, a piece of text in each."""
    assert answered[-2] == "data: [DONE]" or answered[-1] == "data: [DONE]"
    assert len(pieces_of(answered)) > 1
    assert len("".join(pieces_of(answered)).split()) > 1


@needs_curl
def test_pieces_come_while_the_answer_is_made(examples: Examples, answered: list[str]) -> None:
    """Of an answer that would take long the first pieces are there; the model ends it with its client, and answers others."""
    url, (key_id, secret) = f"{examples.server.url}/operator/chat/v1/chat/completions", examples.server.key
    headers = ["-H", f"Authorization: Bearer {key_id}:{secret}", "-H", "Content-Type: application/json"]
    command = ["curl", "-sSN", "--fail-with-body", url, *headers, "-d", json.dumps(LONG)]
    lines: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as curl:
        assert curl.stdout is not None
        while len(pieces_of(lines)) < 5:
            line = curl.stdout.readline()
            assert line, lines
            lines.append(line.rstrip())
        curl.kill()
    assert not any('finish_reason":"' in line for line in lines)
    bearer = {"Authorization": f"Bearer {key_id}:{secret}", "Content-Type": "application/json"}
    short = json.dumps({**SHORT, "stream": False}).encode()
    status, found = examples.server.ask("POST", "/operator/chat/v1/chat/completions", short, bearer)
    assert status == 200, found
    assert found["choices"][0]["message"]["content"]


def test_the_package_of_openai_speaks_to_it(examples: Examples, answered: list[str]) -> None:
    """Its client lists the model and streams an answer, with the server's key as API key."""
    lines = examples.run("chat.py", f"{examples.server.url}/operator/chat", python=python_of("openai-3"))
    assert lines[0] == f"model: {MODEL}"
    count = re.fullmatch(r"pieces: (\d+)", lines[-1])
    assert count
    assert int(count[1]) > 1


@needs_chromium
def test_its_page_streams_in_chromium(examples: Examples, answered: list[str], browser: Any) -> None:
    """The page at the endpoint's own name asks with a short-lived token, and shows the answer as it grows."""
    server = examples.server
    owner = server.ask("GET", "/v1/whoami")[1]["user"]
    asked = b'{"allowed_apps": ["chat"], "token_expiration": 600}'
    token = server.ask("POST", "/v1/tokens", asked)[1]["token"]
    page = browser.new_page()
    page.set_default_timeout(1000 * PATIENCE_SECONDS)
    page.goto(f"http://{owner}-chat.gateway.localhost:{server.port}/?fal_jwt_token={token}")
    page.get_by_label("Question").fill("Tell me a story about a cat.")
    page.get_by_role("button", name="Ask").click()
    page.wait_for_function("(one => one.dataset.pieces > 1 && !one.dataset.state)(document.querySelector('#answer'))")
    sync_api.expect(page.locator("#answer")).to_have_attribute("data-state", "over", timeout=1000 * PATIENCE_SECONDS)
    assert len(page.locator("#answer").inner_text().split()) > 3
    page.close()


@needs_chromium
def test_the_form_of_the_servers_page_streams(examples: Examples, answered: list[str], browser: Any) -> None:
    """The form of the endpoint shows pieces of a long answer, which it stops, and then a short one to its end."""
    tab = Tab(browser, PageServer(examples.server, {"operator": ":".join(examples.server.key)}))
    page = tab.log_in("operator")
    page.goto("/endpoints/chat")
    page.get_by_label("Path").fill("/v1/chat/completions")
    for asked in (LONG, SHORT):
        page.get_by_label("Body, as JSON").fill(json.dumps(asked))
        page.get_by_role("button", name="Call", exact=True).click()
        answer = page.locator("#call-answer")
        sync_api.expect(answer).to_contain_text('"delta":{"content":', timeout=1000 * PATIENCE_SECONDS)
        if asked is LONG:
            assert "[DONE]" not in answer.inner_text()
            page.get_by_role("button", name="Stop").click()
            sync_api.expect(page.locator("#call-problem")).to_have_text("stopped")
    sync_api.expect(answer).to_contain_text("[DONE]", timeout=1000 * PATIENCE_SECONDS)
    sync_api.expect(page.locator("#call-status")).to_have_text("200")
    tab.close()
