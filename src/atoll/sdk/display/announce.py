"""Notifications of calls that a program waits for: of long ones, when they are over."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

from atoll import errors, settings
from atoll.host.notifications import Ended, tell
from atoll.model.records import outcome_of
from atoll.sdk.display.output import CallerStreams
from atoll.wire import nested


@contextlib.contextmanager
def announced(host: Any, function: str, call: str) -> Iterator[None]:
    """Tell of a call when the context ends after `notifications.after_seconds`; not of one that was interrupted.

    The program goes on meanwhile; its end waits for the notification.
    """
    began, outcome, message = time.monotonic(), "ok", ""
    try:
        yield
    except (KeyboardInterrupt, GeneratorExit):  # somebody sits there
        outcome = ""
        raise
    except BaseException as error:
        outcome, message = outcome_of(error, "error"), f"{type(error).__name__}: {error}"
        raise
    finally:
        if outcome and not nested.inside():
            ended = Ended(call, function, outcome, message, time.monotonic() - began)
            with contextlib.suppress(RuntimeError):  # the interpreter ends and starts no thread
                threading.Thread(target=_tell, args=(host, ended), name="atoll-notification").start()


def announced_items(host: Any, function: str, items: Iterator[Any]) -> Iterator[Any]:
    """Give items of a `map`, and tell of it once when it is over."""
    with announced(host, f"map of {function}", ""):
        yield from items


def _tell(host: Any, ended: Ended) -> None:
    try:
        options = getattr(host, "settings", None) or settings.usable(settings.default_home())
        if ended.seconds < options.notifications.after_seconds:
            return
        problem = options.mistake or tell(options.notifications, ended)
    except errors.AtollError as error:
        problem = error.message
    except Exception as error:  # the call's result counts, not the notification
        problem = f"{type(error).__name__}: {error}"
    if problem:
        CallerStreams(ended.call, ended.function).notice(f"no notification: {problem}")
