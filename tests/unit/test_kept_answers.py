"""Answers that pages show: whose they are, how many there are, and for how long."""

from __future__ import annotations

import pytest

from atoll.server.pages.serving import kept


def test_answers_are_their_callers_and_go() -> None:
    """Nobody else gets one; the newest few are there, for a while."""
    now = [0.0]
    answers = kept.Answers(lambda: now[0])
    names = [answers.put("ada", "image/png", b"%d" % number) for number in range(kept.MOST_OF_USER + 2)]
    assert [answers.get("ada", name) is not None for name in names] == [False] * 2 + [True] * kept.MOST_OF_USER
    assert answers.get("bob", names[-1]) is None
    for number in range(kept.MOST_OF_ALL):
        answers.put(f"u{number}", "", b"")
    assert answers.get("ada", names[-1]) is None
    last = answers.put("ada", "image/png", b"x")
    now[0] = kept.KEPT_SECONDS
    assert answers.get("ada", last) is None


@pytest.mark.parametrize(
    ("kind", "shown"),
    [
        ("image/png", "image/png"),
        ("Image/PNG; a=b", "image/png"),
        ("text/html", ""),
        ("image/svg+xml", ""),
        ("application/pdf", ""),
        ("x\r\ny: z", ""),
    ],
)
def test_types_that_a_browser_shows(kind: str, shown: str) -> None:
    """Media alone have their type; others are files to save."""
    answers = kept.Answers()
    found = answers.get("ada", answers.put("ada", kind, b""))
    assert found is not None
    assert found.headers["Content-Type"] == (shown or "application/octet-stream")
    assert ("Content-Disposition" in found.headers) == (not shown)
    assert "sandbox" in found.headers["Content-Security-Policy"]
