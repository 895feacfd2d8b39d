"""A language model behind an endpoint on a CPU: its stream by curl, by OpenAI's Python package and on a page in Chromium.

The weights, of 93 MB, come with a package of the index.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator

import pytest

from ..clients.published import python_of
from ..conftest import find_tool
from .example_programs import NAMES, Examples, needs_curl
from .process import Server, running

MODEL = "smollm2"
CHROMIUM = find_tool("chromium")


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
    asked = {"messages": [{"role": "user", "content": "Tell me a story."}], "stream": True, "ignore_eos": True}
    url, (key_id, secret) = f"{examples.server.url}/operator/chat/v1/chat/completions", examples.server.key
    headers = ["-H", f"Authorization: Bearer {key_id}:{secret}", "-H", "Content-Type: application/json"]
    command = ["curl", "-sSN", "--fail-with-body", url, *headers, "-d", json.dumps({**asked, "max_tokens": 1900})]
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
    short = json.dumps({"messages": asked["messages"], "max_tokens": 3}).encode()
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


@pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium: `.ci/tools .venv chromium:chromium` unpacks it")
def test_its_page_streams_in_chromium(examples: Examples, answered: list[str]) -> None:
    """The page at the endpoint's own name asks with a short-lived token, and shows the answer as it grows."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    server = examples.server
    owner = server.ask("GET", "/v1/whoami")[1]["user"]
    asked = b'{"allowed_apps": ["chat"], "token_expiration": 600}'
    token = server.ask("POST", "/v1/tokens", asked)[1]["token"]
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        page = browser.new_page()
        page.set_default_timeout(120_000)
        page.goto(f"http://{owner}-chat.gateway.localhost:{server.port}/?fal_jwt_token={token}")
        page.get_by_label("Question").fill("Tell me a story about a cat.")
        page.get_by_role("button", name="Ask").click()
        page.wait_for_function(
            "(one => one.dataset.pieces > 1 && !one.dataset.state)(document.querySelector('#answer'))"
        )
        sync_api.expect(page.locator("#answer")).to_have_attribute("data-state", "over", timeout=120_000)
        assert len(page.locator("#answer").inner_text().split()) > 3
        browser.close()
