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

_WORD = re.compile(rb"\w+")
_LEADS = frozenset(
    b"""
    __builtins__ __getattribute__ asyncio atexit aiohttp alarm builtins chdir compile concurrent contextvars ctypes decimal
    environ environb eval exec faulthandler fchdir fcntl gc gettext importlib inspect isolated locale logging loky joblib
    multiprocessing nice pathlib posix posix_spawn posix_spawnp psutil putenv register_at_fork resource sched select
    setattr setpriority shutil signal subprocess system tempfile torch trio types tzset umask unittest unsetenv unshare vars
    warnings
    """.split()
)
_BEGINNINGS = (b"exec", b"fork", b"popen", b"pthread", b"sched_", b"socket", b"spawn", b"thread", b"_thread", b"Thread")
"""Words, and beginnings of words, in a pickle whose code may change, or lead to, state of the process; one too many costs
a little time only. Of `os` and `time` these are the names of what changes such state: other functions of these
modules are in many brief calls."""
_OF_SYS = frozenset(b"argv breakpointhook displayhook excepthook meta_path modules monitoring path path_hooks".split())
_OF_SYS |= frozenset(b"_current_frames _getframe activate_stack_trampoline dont_write_bytecode unraisablehook".split())
"""Names of `sys` that lead to such state, where the code names `sys` too."""
_OF_CONTAINERS = frozenset({b"set", b"setdefault"})
"""Names that begin as those of functions of `os` and `sys` that set something."""
_MODULES = frozenset({b"os", b"sys", b"time"})
_INDIRECT = frozenset({b"__dict__", b"attrgetter", b"getattr", b"methodcaller", b"operator"})
"""Ways to a name of these modules that the code need not name."""
_STACK_GLOBAL = b"\x93"
"""The instruction without which a pickle of this protocol names nothing."""
_MOST_KNOWN = 64


class BriefCalls:
    """Remembers which functions name no state of the process."""

    def __init__(self) -> None:
        self._known: dict[str, bool] = {}

    @staticmethod
    def searched(buffers: Sequence[Any]) -> tuple[Any, bytes]:
        """Return of a call's function and arguments what `may_be` searches: large arguments are not held for that."""
        return buffers[0], bytes(buffers[1][: MOST_BYTES + 1]) if _STACK_GLOBAL in buffers[1] else b""

    def may_be(self, digest: str, pickles: tuple[Any, bytes]) -> bool:
        """Return whether a call that was brief is excused.

        Args:
            digest: of the function; empty for one that is not kept.
            pickles: from `searched`.
        """
        quiet = self._known.get(digest)
        if quiet is None:
            quiet = bool(digest) and _names_nothing(pickles[0])
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            self._known[digest] = quiet
        return quiet and _names_nothing(pickles[1])


def _names_nothing(pickled: Any) -> bool:
    if not pickled:
        return True
    if len(pickled) > MOST_BYTES or b"atoll.sdk" in pickled:
        return False
    words = set(_WORD.findall(pickled))
    if not words.isdisjoint(_LEADS) or any(
        word.startswith(_BEGINNINGS) or word.endswith(b"import__") for word in words
    ):
        return False
    if words.isdisjoint(_MODULES):
        return True
    sets = any(word.startswith(b"set") and word not in _OF_CONTAINERS for word in words)
    return not sets and words.isdisjoint(_INDIRECT) and (b"sys" not in words or words.isdisjoint(_OF_SYS))
