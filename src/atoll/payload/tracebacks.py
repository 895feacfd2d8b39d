"""Tracebacks without Atoll's own frames, which tell the reader of a user's program nothing.

Theory of operation. A frame enters a traceback when an exception leaves it. A bare `raise` adds none: the frame has
been there since the exception came in. So the outermost function of Atoll catches the exception, takes all frames
above the user's from the traceback, its own included, and raises it again. From Python 3.11 on, none of Atoll's remain.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any

from atoll.errors import AtollError, call_id
from atoll.payload import private_cloudpickle

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_OWN = (_PACKAGE + os.sep, os.path.join(os.path.dirname(_PACKAGE), "fal_serverless") + os.sep)
_LIBRARY = os.path.join(os.path.dirname(os.__file__), "")
_FUTURES = os.path.join(_LIBRARY, "concurrent", "futures", "")
_PACKAGES = (os.sep + "site-packages" + os.sep, os.sep + "dist-packages" + os.sep)
_MOST_LINKED = 50


def is_own(file: str) -> bool:
    """Return whether this file is a part of Atoll."""
    return file.startswith(_OWN) or file == private_cloudpickle.own_file()


def hide(error: BaseException, *, is_report: bool = False) -> None:
    """Remove Atoll's frames above the user's from the traceback of an error, and from those that Atoll's errors name.

    An error that only a fault of Atoll can be keeps them, unless it is said to be a report of the user's mistake.
    """
    linked: list[BaseException] = [error]
    for one in linked:
        first, is_user = _first_of_user(one.__traceback__)
        if is_user or is_report or is_meant_for_user(one) or one is not error:
            BaseException.with_traceback(one, first)
        if isinstance(one, AtollError):
            others = (other for other in (one.__cause__, one.__context__) if other is not None)
            linked.extend([other for other in others if not any(other is known for known in linked)][:_MOST_LINKED])


def is_meant_for_user(error: BaseException) -> bool:
    """Return whether an error is none of Atoll's faults: its own report, an interrupt, or a function's."""
    if not isinstance(error, Exception) or isinstance(error, AtollError) or bool(call_id(error)):
        return True
    return "is_meant_for_user" in vars(type(error))  # the reader of the caller's own output has gone


def entries(traceback: TracebackType | None) -> Iterator[TracebackType]:
    """Yield the entries of a traceback, outermost first."""
    while traceback is not None:
        yield traceback
        traceback = traceback.tb_next


def _first_of_user(traceback: TracebackType | None) -> tuple[TracebackType | None, bool]:
    """Return the first entry below Atoll's own, and whether a frame is the user's.

    Frames of Python's library count as Atoll's where they lead to one of Atoll's, as those of a thread pool do.
    """
    first = traceback
    for entry in entries(traceback):
        file = entry.tb_frame.f_code.co_filename
        if is_own(file) or (first is entry and file.startswith(_FUTURES)):
            first = entry.tb_next
        elif not file.startswith(_LIBRARY) or any(part in file for part in _PACKAGES):
            return first, True
    return first, False


# --- frames of a worker -----------------------------------------------------------------------------------------


def own_entries(found: list[TracebackType], error: BaseException) -> list[int]:
    """Return the numbers of the entries that are Atoll's, and of the event loop's between it and an async function.

    The last ones of an error that only a fault of Atoll can be count as the user's.
    """
    own = []
    is_outermost = True
    is_fault = bool(found) and is_own(found[-1].tb_frame.f_code.co_filename) and not is_meant_for_user(error)
    for number, entry in enumerate(found):
        file = entry.tb_frame.f_code.co_filename
        is_outermost = is_outermost and (is_own(file) or file.startswith(_LIBRARY + "asyncio" + os.sep))
        if is_outermost or (is_own(file) and not is_fault):
            own.append(number)
    return own


def shown(frames: list[Any], own: Sequence[int]) -> list[Any]:
    """Return the frames to show of those that a worker sent, of which some are its own."""
    hidden = set(own)
    return [frame for number, frame in enumerate(frames) if number not in hidden]
