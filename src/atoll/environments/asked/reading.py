"""Reading of long lists of requirements beside the event loop: in steps that others come between, and that can end.

Theory of operation. Reading takes 4 µs a character, all of it in Python: a list of 1 MiB would hold up every user. A
user's list is so read in a thread (`Readings`), one of each user at a time and few in all. The thread rests as long as
it works, and ends where nobody waits any more. What was read is known in the task that asked and in those that it
starts, so that the loop reads nothing again however many lists come between. Outside of a reading nothing of this costs
anything: the machine's owner waits for nobody.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import Any, TypeVar
from weakref import WeakValueDictionary

STEP_SECONDS = 0.001
"""Seconds of work after which a thread rests for as long: the loop waits for no more than a step."""
AT_A_TIME = 2
"""Lists that are read at a time, of all users."""

T = TypeVar("T")


class GivenUp(Exception):
    """Nobody waits for what is read."""


class _Reading:
    """What was read for one request.

    Args:
        known: values by the lists that they were read from.
    """

    def __init__(self) -> None:
        self.known: dict[Any, Any] = {}
        self.given_up = False
        self.in_thread = False

    def steps(self, entries: Iterable[str]) -> Iterator[str]:
        """Give the entries, with rests between them; see `in_steps`."""
        began = time.monotonic()
        for entry in entries:
            if self.given_up:
                raise GivenUp
            if (worked := time.monotonic() - began) > STEP_SECONDS:
                time.sleep(min(worked, 0.1))
                began = time.monotonic()
            yield entry


_reading: ContextVar[_Reading | None] = ContextVar("reading", default=None)


def known() -> dict[Any, Any]:
    """Return what this request has read, by list; a new dictionary outside of a reading."""
    here = _reading.get()
    return {} if here is None else here.known


def in_steps(entries: Iterable[str]) -> Iterable[str]:
    """Give entries one by one, in a thread of a reading with rests between them.

    Raises:
        GivenUp: nobody waits any more.
    """
    here = _reading.get()
    return here.steps(entries) if here is not None and here.in_thread else entries


class Readings:
    """Turns of users; for one event loop."""

    def __init__(self) -> None:
        self._turns: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._all = asyncio.Semaphore(AT_A_TIME)

    async def run(self, user: str, read: Callable[[], T]) -> T:
        """Return what a function reads in a thread, in the user's turn; the task knows it from then on.

        A task that is cancelled waits until the thread has ended, so that the turn is free when the thread is.
        """
        async with self._turns.setdefault(user, asyncio.Semaphore(1)), self._all:
            here = _Reading()
            here.in_thread = True
            _reading.set(here)
            work = asyncio.ensure_future(asyncio.to_thread(read))
            try:
                return await asyncio.shield(work)
            finally:
                here.given_up = not work.done()
                if here.given_up:
                    await asyncio.wait([work])
                    work.exception()
                here.in_thread = False  # what is not known yet is short
