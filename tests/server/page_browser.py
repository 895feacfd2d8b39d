"""Debian's Chromium for tests of the page: tabs that note everything that no page may do, and checks of what is shown.

`SHOTS=DIRECTORY` keeps screenshots of the pages that are checked.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ..conftest import find_tool
from .page_client import PageServer

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
CHROMIUM = find_tool("chromium")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium: `.ci/tools .venv` unpacks it")
SHAPES = [(mode, width) for mode in ("light", "dark") for width in (390, 1440)]
CHECKS = (Path(__file__).parent / "page_checks.js").read_text()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A browser without a window."""
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield found
        found.close()


class Tab:
    """A page of a fresh profile, with notes of everything that no page may do."""

    def __init__(self, browser: Any, server: PageServer, **options: Any) -> None:
        self.server = server
        self.context = browser.new_context(base_url=server.url, timezone_id="Europe/Berlin", locale="en-GB", **options)
        self.context.set_default_timeout(60_000)
        self.page = self.context.new_page()
        self.wrongs: list[str] = []
        self.page.on("console", lambda one: self.wrongs.append(one.text) if one.type in {"error", "warning"} else None)
        self.page.on("pageerror", lambda one: self.wrongs.append(str(one)))
        self.page.on("request", self._requested)

    def _requested(self, request: Any) -> None:
        if not request.url.startswith(self.server.url + "/"):
            self.wrongs.append(request.url)

    def log_in(self, name: str = "ada") -> Any:
        """Log in; return the page."""
        self.page.goto("/login")
        self.page.get_by_label("Key", exact=True).fill(self.server.keys[name])
        self.page.get_by_role("button", name="Log in").click()
        self.page.wait_for_url(self.server.url + "/")
        return self.page

    def close(self) -> None:
        """Close it; nothing wrong has happened."""
        title = self.page.title()
        self.context.close()
        assert title != "evil"
        assert self.wrongs == []


def problems_of(page: Any, name: str) -> dict[tuple[str, str, int], list[str]]:
    """Return what is wrong with the page that is shown, in light and dark, on a telephone and a large screen.

    Args:
        name: of the page, such as its path.
    """
    problems = {}
    for mode, width in SHAPES:
        page.emulate_media(color_scheme=mode)
        page.set_viewport_size({"width": width, "height": 900})
        if found := page.evaluate(CHECKS):
            problems[name, mode, width] = found
        if shots := os.environ.get("SHOTS", ""):
            file = name.strip("/").replace("/", "-") or "overview"
            shot = page.screenshot(full_page=True)  # playwright would write the file in a thread that it keeps
            Path(shots, f"{file}-{mode}-{width}.png").write_bytes(shot)
    return problems
