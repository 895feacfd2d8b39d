"""Tracebacks of the caller's own mistakes and interrupts, without Atoll's frames."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest

from atoll import isolated
from atoll.sdk import aio


@pytest.mark.parametrize(
    "make",
    [
        lambda: isolated(nonsense=1),  # type: ignore[call-overload]
        lambda: isolated(lambda: 1).on(timeout=-1),
        lambda: isolated(lambda: 1).on(nonsense=1),  # type: ignore[call-arg]
    ],
    ids=["isolated", "value", "on"],
)
def test_a_wrong_option_shows_the_users_line_alone(make: Callable[[], object]) -> None:
    """A mistake of the caller is no fault of Atoll."""
    with pytest.raises((TypeError, ValueError)) as caught:
        make()
    assert {frame.filename for frame in traceback.extract_tb(caught.value.__traceback__)} == {__file__}


class Never:
    """A function whose calls are not answered."""

    def __init__(self) -> None:
        self.cancelled = list[Any]()

    def submit(self, *_: Any, **__: Any) -> Future[Any]:
        return Future()

    def cancel(self, future: Future[Any]) -> bool:
        self.cancelled.append(future)
        return True

    def _iterate(self, *_: Any) -> Any:
        raise NotImplementedError


def test_a_cancelled_call_from_asyncio_shows_no_frame_of_atoll() -> None:
    """The call is cancelled as well."""
    never = Never()

    async def main() -> list[str]:
        task = asyncio.create_task(aio.result(never, (), {}))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError) as caught:
            await task
        return [frame.filename for frame in traceback.extract_tb(caught.value.__traceback__)]

    assert aio.__file__ not in asyncio.run(main())
    assert len(never.cancelled) == 1
