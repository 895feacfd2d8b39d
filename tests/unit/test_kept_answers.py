"""Answers that pages show: whose they are, how many there are, and for how long."""

from __future__ import annotations

import pytest

from atoll.server.pages.serving import kept


def collected(answers: kept.Answers, *pieces: bytes) -> kept.Collected:
    found = kept.Collected(answers)
    for piece in pieces:
        found.add(piece)
    return found


def test_answers_are_their_callers_and_go() -> None:
    """Nobody else gets one; the newest few are there, for a while."""
    now = [0.0]
    answers = kept.Answers(lambda: now[0])
    names = [
        answers.put("ada", "image/png", collected(answers, b"%d" % number)) for number in range(kept.MOST_OF_USER + 2)
    ]
    assert [answers.get("ada", name) is not None for name in names] == [False] * 2 + [True] * kept.MOST_OF_USER
    assert answers.get("bob", names[-1]) is None
    for number in range(kept.MOST_OF_ALL):
        answers.put(f"u{number}", "", collected(answers))
    assert answers.get("ada", names[-1]) is None
    last = answers.put("ada", "image/png", collected(answers, b"x"))
    now[0] = kept.KEPT_SECONDS
    assert answers.get("ada", last) is None


def test_bytes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large answer is forgotten; for others the oldest go, and those on their way count."""
    monkeypatch.setattr(kept, "MOST_BYTES", 10)
    monkeypatch.setattr(kept, "MOST_OF_ALL_BYTES", 25)
    answers = kept.Answers()
    assert collected(answers, b"x" * 6, b"x" * 6, b"x").size == 0
    first = answers.put("ada", "", collected(answers, b"x" * 5, b"x" * 5))
    second = answers.put("bob", "", collected(answers, b"x" * 10))
    coming = collected(answers, b"x" * 5)
    assert answers.get("ada", first) is not None
    coming.add(b"x" * 5)
    assert answers.get("ada", first) is None
    assert answers.get("bob", second) is not None
    others = [collected(answers, b"x" * 8) for _ in range(2)]
    assert [one.size for one in others] == [8, 0]
    for one in (coming, *others):
        one.drop()
    assert answers.collected == 0


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
    found = answers.get("ada", answers.put("ada", kind, collected(answers)))
    assert found is not None
    assert found.headers["Content-Type"] == (shown or "application/octet-stream")
    assert ("Content-Disposition" in found.headers) == (not shown)
    assert "sandbox" in found.headers["Content-Security-Policy"]
