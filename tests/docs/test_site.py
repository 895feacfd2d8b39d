"""The docs as a site: it builds, its links lead somewhere, its search knows the pages, and it asks the network nothing."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ..conftest import ROOT

sys.path.insert(0, str(ROOT / "docs" / "site"))
if TYPE_CHECKING:
    links: Any
    reference: Any
    build: Any
else:
    import build
    import links
    import reference


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    target = tmp_path_factory.mktemp("site") / "site"
    program = str(ROOT / "docs" / "site" / "build.py")
    done = subprocess.run([sys.executable, program, str(target)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return target


def test_every_link_of_the_site_leads_somewhere(site: Path) -> None:
    """Files and anchors that pages link to exist."""
    assert links.broken(site) == []


def test_the_site_asks_the_network_for_nothing(site: Path) -> None:
    """No script, style sheet, font or image comes from elsewhere."""
    assert links.outside(site) == []
    assert "unpkg" not in (site / "index.html").read_text()


def test_the_search_knows_the_pages(site: Path) -> None:
    """The index, in the form for servers and in that for files, has a word of a hand-written and of a made page."""
    found = json.loads((site / "search.json").read_text())
    for word, page in (("sync_dir", "guide/sync.html"), ("worker_processes", "reference/settings.html")):
        assert any(item["location"].startswith(page) and word in item["text"] for item in found["items"]), word
    assert "worker_processes" in (site / "search.js").read_text()


def test_made_pages_name_everything(site: Path) -> None:
    """Each public name, setting, command, example and decision is on its page."""
    import atoll
    from atoll import settings
    from atoll.cli.main import _COMMANDS

    names = (site / "reference" / "python.html").read_text()
    assert [name for name in atoll.__all__ if f"<code>{name}</code>" not in names] == ["__version__", "errors"]
    options = (site / "reference" / "settings.html").read_text()
    groups = [group for group in dataclasses.fields(settings.Settings) if isinstance(group.default_factory, type)]
    assert len(groups) > 4
    for group in groups:
        assert isinstance(group.default_factory, type)
        for option in dataclasses.fields(group.default_factory):
            assert f"<code>{group.name}.{option.name}</code>" in options
    commands = (site / "reference" / "command-line.html").read_text()
    assert [name for name, *_ in _COMMANDS if f"<code>atoll {name}</code>" not in commands] == []
    examples = (site / "examples.html").read_text()
    assert [path.name for path in (ROOT / "examples").glob("*.py") if path.name not in examples] == []
    decisions = (site / "decisions" / "index.html").read_text()
    assert [path.stem for path in (ROOT / "docs" / "decisions").glob("*.md") if path.stem not in decisions] == []


def test_every_page_has_its_place_in_the_navigation() -> None:
    """No page can be reached by search alone, except the decisions, which have a page that lists them."""
    import tomllib

    text = (ROOT / "docs" / "site" / "zensical.toml").read_text()

    def leaves(entry: Any) -> Iterator[str]:
        if isinstance(entry, str):
            yield entry
        else:
            for one in entry.values() if isinstance(entry, dict) else entry:
                yield from leaves(one)

    pages = {page for page in [*build.sources().values(), *build.MADE_PAGES] if not page.startswith("decisions/0")}
    assert set(leaves(tomllib.loads(text)["project"]["nav"])) == pages


@pytest.mark.parametrize(
    ("html", "expected"),
    [
        ('<script src="https://x.org/a.js"></script>', ["index.html: https://x.org/a.js"]),
        ('<link rel="stylesheet" href="//x.org/a.css">', ["index.html: //x.org/a.css"]),
        ('<link rel="canonical" href="https://x.org/"><a href="https://x.org/">elsewhere</a>', []),
    ],
)
def test_requests_to_the_network_are_found(tmp_path: Path, html: str, expected: list[str]) -> None:
    """What a browser fetches by itself counts; what a reader may click does not."""
    (tmp_path / "index.html").write_text(html)
    assert links.outside(tmp_path) == expected


def test_broken_links_are_found(tmp_path: Path) -> None:
    """A missing file and a missing anchor are named with their page."""
    (tmp_path / "a.html").write_text('<a href="b.html#here">b</a><a href="c.html">c</a><a href="b.html#there">b</a>')
    (tmp_path / "b.html").write_text('<p id="here">')
    assert links.broken(tmp_path) == ["a.html: no file `c.html`", "a.html: no anchor `b.html#there`"]


def test_links_to_files_become_links_to_pages() -> None:
    """A link of the repository leads to the page that shows the file; one without a page is an error."""
    pages = {"SECURITY.md": "security.md", "examples/a.py": "examples.md#a", "docs/guide/x.md": "guide/x.md"}
    text = (
        "[s](../../SECURITY.md#parties) [a](../../examples/a.py) [w](https://x.org) [x](#y)\n```\n[n](gone.md)\n```\n"
    )
    assert links.rewrite(text, "docs/guide/x.md", "guide/x.md", pages) == (
        "[s](../security.md#parties) [a](../examples.md#a) [w](https://x.org) [x](#y)\n```\n[n](gone.md)\n```\n"
    )
    with pytest.raises(LookupError, match=r"docs/guide/x\.md: no page shows `gone\.md`"):
        links.rewrite("[n](gone.md)", "docs/guide/x.md", "guide/x.md", pages)


def test_sections_of_docstrings_are_read() -> None:
    """Names of a section keep their texts, also over several lines."""
    text, parts = reference.sections("Do it.\n\nMore.\n\nArgs:\n    a, b: first\n        second.\n    c: third.\n")
    assert text == "Do it.\n\nMore."
    assert reference.entries(parts["Args"]) == {"a, b": "first second.", "c": "third."}
