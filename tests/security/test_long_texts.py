"""Long texts of a client in one line: what reads them reads them once, so that nobody else waits for it.

A reader that goes over a text again for each of its characters takes hours for these, and the test's own limit ends it.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import atoll
from atoll.server.accounts.authentication import cookie_of, is_own
from atoll.server.files import conditions
from atoll.server.pages import rendering
from atoll.storage.files.tree import Status

LONG = 1 << 20
Pieces = tuple[str, ...]
STATUS = Status(kind="f", size=10, mtime_ns=1, ctime_ns=2, inode=3, mode=0o600)


def long(pieces: Pieces) -> str:
    """Return a text of pieces of which every second one stands there many times.

    Made by each test: as a parameter it would be held, and be the test's name, in each process of a run.
    """
    return "".join(piece * (LONG if place % 2 else 1) for place, piece in enumerate(pieces))


@pytest.mark.parametrize(
    "pieces", [("", " "), ("x", " ", "x"), ("", "\t"), ("", ", "), ("", '"'), ("", "W/"), ("", "x")], ids=repr
)
def test_tags_are_read_once(pieces: Pieces) -> None:
    """A list of tags holds those that are in it, whatever stands around them."""
    text = long(pieces)
    assert set(conditions.tags(f'{text},"a"') or ()) <= {"a", ""}
    assert set(conditions.strong_tags(f'"a",{text}') or ()) <= {"a", ""}


@pytest.mark.parametrize(
    "pieces",
    [("", " "), ("", "1"), ("", "-"), ("", "1-"), ("1", " ", "x"), ("", " ", "1-", " ", "x")],
    ids=repr,
)
def test_ranges_are_read_once(pieces: Pieces) -> None:
    """What is no range is answered with the whole file."""
    assert conditions.wanted_pieces({"range": f"bytes={long(pieces)}"}, STATUS) is None


@pytest.mark.parametrize("pieces", [("", "x"), ("", "\r"), ("", "x\r\n"), ("", "\x1b["), ("", "x", "\r")], ids=repr)
def test_output_is_read_once(pieces: Pieces) -> None:
    """A function prints what it likes."""
    text = long(pieces)
    assert len(rendering.output_text(text)) <= 4 * len(text)


def test_lines_that_were_overwritten_end_as_they_did() -> None:
    """The page shows what a terminal would."""
    assert rendering.output_text("10 %\r20 %\r30 %\nnext\r\n  1\r  2\r") == "30 %\nnext\n  2\n"


@pytest.mark.parametrize(
    "origin", ["http://[", "http://]", "https://a:b:c", "null", "//lab.example", "https://lab.example.evil"]
)
def test_an_odd_origin_is_another_site(origin: str) -> None:
    """A header that is no address of a site is refused as one of another, and is no fault of the server."""
    assert not is_own(origin, "lab.example")
    assert is_own("https://LAB.example", "lab.example")


@pytest.mark.parametrize("piece", ['\\"', '"', "\\012", ";", "a=b;", "atoll_form="])
@pytest.mark.parametrize("bytes_", [16_000, LONG])
def test_cookies_are_read_once(piece: str, bytes_: int) -> None:
    """Another program's cookie is no work for the server, and a quoted value is none that it has made."""
    text = long(("", piece))
    assert cookie_of(f'other="{text[:bytes_]}"; atoll_form=abc', "atoll_form") in ("abc", "")
    assert cookie_of(f'atoll_form="{text[:bytes_]}"', "atoll_form") == ""
    assert cookie_of("atoll_session=x; atoll_form=abc", "atoll_form") == "abc"


def test_pages_read_cookies_by_this_reader_alone() -> None:
    """Another reader, as that of `request.cookies`, takes seconds for the quoted value of a stranger."""
    readers = re.compile(r"\.cookies\b|http\.cookies|cookie_parser|SimpleCookie")
    modules = (Path(atoll.__file__).parent / "server").rglob("*.py")
    assert [path.name for path in modules if readers.search(path.read_text("utf-8"))] == []
