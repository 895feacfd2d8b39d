"""The page in Debian's Chromium: logging in, live output, cancelling, files, keys, access by keyboard, and what no page may do.

Skipped where there is no Chromium. `SHOTS=DIRECTORY` keeps the screenshots.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ..conftest import needs_outbound
from .page_browser import Tab, browser, needs_chromium, problems_of, sync_api
from .page_client import EVIL, PageServer, page_server

__all__ = ["browser"]

pytestmark = [needs_chromium, needs_outbound]

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
EVIL_NAME = "<img src=x onerror=document.title='evil'>.txt"
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c4890000000d49444154789c6360f8cf500f0003860180"
    "5a347d6b0000000049454e44ae426082"
)


@pytest.fixture(scope="module")
def page_of() -> Iterator[PageServer]:
    """A server whose user `ada` has calls and files, some with hostile names."""
    with page_server() as server:
        files = {EVIL_NAME: b"x", "\u202egnp.txt": b"x", "n" * 200: b"x", "table.csv": b"a,b\n1,2\n", "dot.png": PNG}
        server.call(f"for name in 'ab': greet(name)\ntry: fail()\nexcept ValueError: pass\nwrite({files!r})")
        yield server


@pytest.fixture
def tab(browser: Any, page_of: PageServer) -> Iterator[Tab]:
    """A tab that has done nothing wrong at the end."""
    found = Tab(browser, page_of)
    yield found
    found.close()


def test_live_output_and_cancellation(tab: Tab, page_of: PageServer) -> None:
    """A call that runs appears by itself, its output comes as it is printed, and a button cancels it."""
    page = tab.log_in()
    process = page_of.start("wait()")
    try:
        page.get_by_role("region", name="Running").get_by_role("link", name=re.compile("wait")).click()
        output = page.locator("#output")
        sync_api.expect(output).to_contain_text("step 2 <script>")
        sync_api.expect(page.locator(".live")).to_have_text("live")
        page.get_by_role("button", name="Cancel the call").click()
        sync_api.expect(page.locator("#facts")).to_contain_text("cancelled")
        sync_api.expect(page.get_by_role("button", name="Cancel the call")).to_have_count(0)
        assert "step 0" in page.locator("#output").inner_text()
    finally:
        process.kill()
        process.communicate()


def test_output_goes_on_to_the_end(tab: Tab, page_of: PageServer) -> None:
    """The page of a call shows the rest of its output and its outcome when it ends."""
    page = tab.log_in()
    process = page_of.start("wait()")
    try:
        page.get_by_role("region", name="Running").get_by_role("link", name=re.compile("wait")).click()
        sync_api.expect(page.locator("#output")).to_contain_text("step 2")
        page_of.call("write({'go-on': b''})")
        sync_api.expect(page.locator("#output")).to_contain_text("went on")
        sync_api.expect(page.locator("#facts .state")).to_have_text("ok")
    finally:
        process.kill()
        process.communicate()


def test_files(tab: Tab, tmp_path: Path) -> None:
    """Files are uploaded with names of any kind, previewed, downloaded and removed."""
    page = tab.log_in()
    hostile = tmp_path / EVIL_NAME.replace("/", "")
    hostile.write_text("uploaded " + EVIL)
    plain = tmp_path / "ä & b.txt"
    plain.write_text("plain")
    page.goto("/files/")
    page.get_by_label("New directory").fill("uploads")
    page.get_by_role("button", name="Make").click()
    page.get_by_role("link", name="uploads").click()
    page.get_by_label("Upload files").set_input_files([hostile, plain])
    page.get_by_role("button", name="Upload", exact=True).click()
    sync_api.expect(page.get_by_text("The files are there.")).to_be_visible()
    with page.expect_download() as download:
        page.get_by_role("link", name="Download ä & b.txt").click()
    assert Path(download.value.path()).read_text() == "plain"
    page.get_by_role("link", name=EVIL_NAME, exact=True).click()
    assert "uploaded <script>" in page.locator("pre").inner_text()
    page.get_by_text("Remove", exact=True).click()
    page.get_by_role("button", name="Remove for good").click()
    sync_api.expect(page.get_by_text("It is removed.")).to_be_visible()
    assert page.get_by_role("link", name=EVIL_NAME, exact=True).count() == 0
    page.goto("/files/table.csv")
    assert page.get_by_role("cell").all_inner_texts() == ["1", "2"]
    page.goto("/files/dot.png")
    assert page.evaluate("document.querySelector('main img').naturalWidth") == 1


def test_a_key_is_shown_once(tab: Tab) -> None:
    """A new key is on the page once, and gone after a reload of the list."""
    page = tab.log_in("bob")
    page.goto("/keys")
    page.get_by_label("Name, for yourself").fill("laptop")
    page.get_by_role("button", name="Make").click()
    key = page.locator("#made").inner_text()
    assert ":" in key
    page.goto("/keys")
    assert key.partition(":")[2] not in page.content()
    page.get_by_label("Revoke the key laptop").click()
    page.get_by_role("button", name="Revoke for good").click()
    sync_api.expect(page.get_by_text("The key is revoked")).to_be_visible()


def test_keyboard_alone(tab: Tab) -> None:
    """Logging in, skipping to the content, and opening a call need no mouse, and focus can be seen."""
    page = tab.page
    page.goto("/login")
    page.keyboard.type(tab.server.keys["ada"])
    page.keyboard.press("Enter")
    page.wait_for_url(tab.server.url + "/")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to content"
    assert page.evaluate("document.activeElement.getBoundingClientRect().top") >= 0
    page.keyboard.press("Enter")
    for _ in range(8):
        page.keyboard.press("Tab")
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
        if "/calls/" in str(page.evaluate("document.activeElement.getAttribute('href')")):
            break
    page.keyboard.press("Enter")
    page.wait_for_url("**/calls/**")
    assert page.locator("h1").inner_text() in {"write", "fail", "greet", "wait"}


def test_without_scripts(browser: Any, page_of: PageServer) -> None:
    """Everything can be read, and forms work, without JavaScript."""
    tab = Tab(browser, page_of, java_script_enabled=False)
    page = tab.log_in()
    for path in PAGES:
        page.goto(path)
        assert page.locator("h1").count() == 1
    page.goto("/files/")
    page.get_by_label("Upload files").set_input_files(
        {"name": "form.txt", "mimeType": "text/plain", "buffer": b"by a form"}
    )
    page.get_by_role("button", name="Upload", exact=True).click()
    page.get_by_role("link", name="form.txt", exact=True).click()
    assert "by a form" in page.locator("pre").inner_text()
    page.get_by_role("button", name="Log out").click()
    page.wait_for_url("**/login")
    tab.close()


def test_every_page_is_readable(browser: Any, page_of: PageServer) -> None:
    """In light and dark, on a telephone and a large screen: no page scrolls sideways, texts have contrast, controls have
    names, headings and landmarks are in order."""
    tab = Tab(browser, page_of)
    page = tab.log_in()
    calls = page.get_by_role("region", name="Recent calls")
    call = calls.get_by_role("link", name=re.compile("fail")).get_attribute("href")
    problems: dict[tuple[str, str, int], list[str]] = {}
    for path in (*PAGES, call, "/files/table.csv", "/files/dot.png", "/login"):
        if path == "/login":
            tab.context.clear_cookies()
        page.goto(path)
        problems |= problems_of(page, path)
    tab.close()
    assert problems == {}
