"""Work in the background of a server."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from atoll.server.process import background
from atoll.server.process.background import in_background


def test_work_that_fails_begins_again(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """An error that the work did not expect is in the log, and the next look comes; it ends with its context."""
    monkeypatch.setattr(background, "AGAIN_SECONDS", 0.0)
    looks: list[int] = []

    async def serve() -> None:
        again, ended = asyncio.Event(), asyncio.Event()

        async def look() -> None:
            looks.append(len(looks))
            if len(looks) == 1:
                raise RuntimeError("the disk is gone")
            again.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        async with in_background(look):
            async with asyncio.timeout(60):
                await again.wait()
        assert ended.is_set()

    asyncio.run(serve())
    assert looks == [0, 1]
    assert [record.message for record in caplog.records] == ["background.failed"]
    assert "the disk is gone" in caplog.text


def test_the_servers_own_error_ends_it_too() -> None:
    """What the context raises is raised, with the work ended."""

    async def serve() -> None:
        with pytest.raises(ValueError, match="its own"):
            async with in_background(partial(asyncio.sleep, 3600)):
                raise ValueError("its own")

    asyncio.run(serve())
