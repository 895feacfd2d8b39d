"""Brief calls of code that does not name a process's state: after these, a short look at the state is enough.

A look at all parts costs as much time as a third of a warm call, since each part is a cold piece of memory. A call is
excused from that look when it took less than a millisecond, and neither its function with all that travels with it nor
its arguments name anything that leads to such state. Before a worker goes to another client, all parts are looked at.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

BRIEF_SECONDS = 0.001
MOST_BYTES = 16 << 10
"""Longer pickles are not searched."""

_WORDS = re.compile(
    rb"__\w*import__|__builtins__|__getattribute__|\b("
    rb"asyncio|atexit|atoll\.sdk|aiohttp|alarm|builtins|chdir|compile|concurrent|contextvars|ctypes|decimal|environb?|"
    rb"eval|exec|execv\w*|faulthandler|fcntl|fork\w*|gc|gettext|importlib|inspect|isolated|locale|logging|loky|joblib|"
    rb"multiprocessing|nice|os|pathlib|posix|psutil|pthread\w*|resource|sched_\w+|select|setattr|sched|shutil|"
    rb"signal|socket\w*|subprocess|sys|system|tempfile|thread\w*|_thread|Thread\w*|time|torch|trio|types|umask|"
    rb"unittest|vars|warnings"
    rb")\b"
)
"""Names in a pickle whose code may change, or lead to, state of the process; one too many costs a little time only."""
_STACK_GLOBAL = b"\x93"
"""The instruction without which a pickle of this protocol names nothing."""
_MOST_KNOWN = 64


class BriefCalls:
    """Remembers which functions name no state of the process."""

    def __init__(self) -> None:
        self._known: dict[str, bool] = {}

    def may_be(self, digest: str, buffers: Sequence[Any]) -> bool:
        """Return whether a call is excused if it turns out to be brief.

        Args:
            digest: of the function; empty for one that is not kept.
            buffers: its function and its arguments, pickled.
        """
        quiet = self._known.get(digest)
        if quiet is None:
            quiet = bool(digest) and _names_nothing(buffers[0])
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            self._known[digest] = quiet
        return quiet and (_STACK_GLOBAL not in buffers[1] or _names_nothing(buffers[1]))


def _names_nothing(pickled: Any) -> bool:
    return len(pickled) <= MOST_BYTES and _WORDS.search(pickled) is None
