"""Links of pages: from paths of the repository to paths of the site, and the check of the built pages."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

LINK = re.compile(r"\]\(([^)\s]+)\)")
REQUESTED = {
    "script": "src",
    "img": "src",
    "link": "href",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
}
"""Tags that make a browser fetch something by itself, with the attribute that names it."""
NEVER_FETCHED = {"canonical", "next", "prev", "alternate"}
"""Relations of `link` that a browser does not fetch."""


def rewrite(text: str, source: str, staged: str, pages: Mapping[str, str]) -> str:
    """Return a page's Markdown with its links to files of the repository as links to pages of the site.

    Args:
        text: Markdown.
        source: its path in the repository.
        staged: its path in the site's pages.
        pages: paths in the repository, and the pages (with an anchor, perhaps) that show them.

    Raises:
        LookupError: a link leads to a file that the site does not have.
    """

    def replaced(match: re.Match[str]) -> str:
        path, hash_, anchor = match[1].partition("#")
        if not path or "://" in path or path.startswith("mailto:"):
            return match[0]
        wanted = os.path.normpath(os.path.join(os.path.dirname(source), path))
        if wanted not in pages:
            raise LookupError(f"{source}: no page shows `{path}`")
        target, _, given = pages[wanted].partition("#")
        anchor = anchor or given
        relative = os.path.relpath(target, os.path.dirname(staged) or ".")
        return f"]({relative}{'#' if hash_ or given else ''}{anchor})"

    out, fenced = [], False
    for line in text.splitlines():
        fenced ^= line.lstrip().startswith("```")
        out.append(line if fenced else LINK.sub(replaced, line))
    return "\n".join(out) + "\n"


class _Page(HTMLParser):
    """Anchors, links and requests of one page."""

    def __init__(self) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.requests: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.anchors |= {found[name] for name in ("id", "name") if name in found}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        if (address := found.get(REQUESTED.get(tag, ""))) and found.get("rel") not in NEVER_FETCHED:
            self.requests.append(address)


def read(site: Path) -> dict[str, _Page]:
    """Read all pages of a built site, by their paths in it."""
    pages = {}
    for path in sorted(site.rglob("*.html")):
        page = _Page()
        page.feed(path.read_text("utf-8"))
        page.close()
        pages[str(path.relative_to(site))] = page
    return pages


def broken(site: Path) -> list[str]:
    """Return the links of a built site that lead to no file or no anchor of it."""
    pages = read(site)
    found = []
    for name, page in pages.items():
        if name == "404.html":
            continue  # served for any path, so that its links are absolute
        for link in [*page.links, *page.requests]:
            path, _, anchor = link.partition("#")
            if "://" in path or path.startswith(("mailto:", "data:", "javascript:")):
                continue
            target = os.path.normpath(os.path.join(os.path.dirname(name), unquote(path))) if path else name
            if not (site / target).is_file():
                found.append(f"{name}: no file `{link}`")
            elif anchor and target in pages and unquote(anchor) not in pages[target].anchors | {"__skip"}:
                found.append(f"{name}: no anchor `{link}`")
    return found


def outside(site: Path) -> list[str]:
    """Return the requests to the network that the pages and style sheets of a built site make by themselves."""
    found = [
        f"{name}: {address}"
        for name, page in read(site).items()
        for address in page.requests
        if re.match(r"(?:[a-z]+:)?//", address)
    ]
    for path in sorted(site.rglob("*.css")):
        text = path.read_text("utf-8")
        addresses = re.findall(r"url\(\s*[\"']?((?:https?:)?//[^)\"']+)|@import\s+[\"']((?:https?:)?//[^\"']+)", text)
        found += [f"{path.name}: {first or second}" for first, second in addresses]
    return found
