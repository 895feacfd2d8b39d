"""Pages of endpoints, requests and schedules in Debian's Chromium: an endpoint is called by its form, and each page is readable."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from ..conftest import needs_outbound
from .page_app import Served, served
from .page_browser import Tab, browser, needs_chromium, problems_of, sync_api
from .page_client import EVIL
from .test_page_serving import schedule, submit

__all__ = ["browser"]
pytestmark = [needs_chromium, needs_outbound]


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    """A server whose endpoints are an app of the test's."""
    with served() as found:
        found.first = found.serve("hello")
        found.serve("hello")
        yield found


def test_an_endpoint_is_called_by_its_form(browser: Any, server: Served) -> None:
    """Fields come from the description; the answer is shown as it comes, with status and time, and runs no script."""
    tab = Tab(browser, server.page)
    page = tab.log_in()
    page.get_by_role("link", name="Endpoints").click()
    page.get_by_role("link", name="hello").first.click()
    page.get_by_role("button", name="Read the fields").click()
    page.get_by_label("name").fill("ada " + EVIL)
    page.get_by_role("button", name="Call", exact=True).click()
    sync_api.expect(page.locator("#call-status")).to_have_text("200")
    sync_api.expect(page.locator("#call-answer")).to_contain_text("ada <script>")
    sync_api.expect(page.locator("#call-facts")).to_contain_text("application/json")
    page.get_by_label("times").fill("many")
    page.get_by_role("button", name="Call", exact=True).click()
    sync_api.expect(page.locator("#call-problem")).to_contain_text("`times` is no whole number")
    server.app.go.clear()
    page.get_by_label("Request", exact=True).select_option("POST /stream")
    sync_api.expect(page.locator("#call-form")).to_contain_text("It takes no values")
    page.get_by_role("button", name="Call", exact=True).click()
    answer = page.locator("#call-answer")
    sync_api.expect(answer).to_contain_text("piece 0 <script>")
    assert "piece 1" not in answer.inner_text()
    server.app.go.set()
    sync_api.expect(answer).to_contain_text("piece 2")
    sync_api.expect(page.locator("#call-facts")).to_contain_text("text/event-stream")
    server.app.go.clear()
    page.get_by_role("button", name="Call", exact=True).click()
    sync_api.expect(answer).to_contain_text("piece 0")
    page.get_by_role("button", name="Stop").click()
    sync_api.expect(page.locator("#call-problem")).to_have_text("stopped")
    server.app.go.set()
    tab.close()


def test_an_image_is_shown(browser: Any, server: Served) -> None:
    """An answer that is an image is shown beside the form, by the policy of the page."""
    tab = Tab(browser, server.page)
    page = tab.log_in()
    page.goto("/endpoints/hello?form=json")
    page.get_by_label("Path").fill("/image")
    page.get_by_label("Method").select_option("GET")
    page.get_by_role("button", name="Call", exact=True).click()
    image = page.get_by_alt_text("The answer")
    sync_api.expect(image).to_be_visible()
    page.wait_for_function("document.querySelector('#call-file img').naturalWidth === 1")
    with page.expect_download() as download:
        page.get_by_role("link", name="Save the answer").click()
    assert download.value.suggested_filename == "answer.png"
    page.get_by_label("Path").fill("/x")
    page.get_by_role("button", name="Call", exact=True).click()
    sync_api.expect(page.locator("#call-answer")).to_contain_text("/x")
    sync_api.expect(image).to_have_count(0)
    tab.close()


def test_without_scripts(browser: Any, server: Served) -> None:
    """A call works without JavaScript, too."""
    tab = Tab(browser, server.page, java_script_enabled=False)
    page = tab.log_in()
    page.goto("/endpoints/hello?form=json")
    page.get_by_label("Path").fill("/page")
    page.get_by_role("button", name="Call", exact=True).click()
    assert "<h1>mine</h1><script>" in page.locator("#call-answer").inner_text()
    assert page.locator("#call-status").inner_text() == "200"
    tab.close()


def test_every_page_is_readable(browser: Any, server: Served) -> None:
    """In light and dark, on a telephone and a large screen; see `page_checks.js`."""
    server.serve("an-endpoint-with-a-long-name-" + "x" * 30)
    for path in ("/", "/fail", "/a", "/b"):
        server.ask("GET", f"/ada/hello{path}")
    tab = Tab(browser, server.page)
    page = tab.log_in()
    problems: dict[tuple[str, str, int], list[str]] = {}
    page.goto("/endpoints/hello")
    if page.get_by_role("button", name="Read the fields").count():
        page.get_by_role("button", name="Read the fields").click()
    for function, cron in (("report", "30 7 * * *"), ("a_function_with_a_long_name_" + "x" * 40, "0 */2 * * 1-5")):
        schedule(server, function, cron, timezone="Europe/Berlin")
    server.app.go.clear()
    server.app.begun.clear()
    submit(server, "hello", "/wait")
    assert server.app.begun.wait(60)
    requests = [submit(server, "hello", path) for path in ("/", "/fail", "/page")]
    page.goto("/schedules")
    paths = [page.get_by_role("link", name="report").first.get_attribute("href"), f"/requests/{requests[0]}"]
    for path in ("/endpoints", "/endpoints/hello", "/endpoints/hello?form=json", "/requests", "/schedules", *paths):
        page.goto(path)
        problems |= problems_of(page, path)
    server.app.go.set()
    tab.close()
    assert problems == {}
