"""State of a program: it goes on from call to call, and the next program does not find it.

Theory of operation. When another lease begins, which may be another program's, this state is made as the worker had it
before its first call, with the changes that imports and `setup_function` have made since. It is not looked at between the
calls of a lease, which costs a warm call nothing. Some changes cannot be undone: a worker with one of these takes no
other lease.
"""

from __future__ import annotations

import _thread
import codecs
import contextlib
import copyreg
import os
import sys
import threading
import time
from typing import Any

from atoll.agent.process import exit_functions
from atoll.agent.process.left_running import FINISH_SECONDS

_ATTRIBUTES = {"handlers": [], "filters": [], "level": 0, "propagate": True, "disabled": False}
"""Attributes of a logger, each with the value of a new one."""
_LOGGING = ("raiseExceptions", "lastResort", "_loggerClass", "_logRecordFactory", "_warnings_showwarning")
_MANAGER = ("disable", "loggerClass", "logRecordFactory")
_LEVELS = ("_levelToName", "_nameToLevel")
_CODEC_ERRORS = ("strict", "ignore", "replace", "xmlcharrefreplace", "backslashreplace", "namereplace")
_ABSENT: Any = object()


class ProgramState:
    """State that a program finds, and leaves for its own next calls."""

    def __init__(self) -> None:
        self._handlers, self._saved, self._system = _initial or _first()

    def keep(self) -> None:
        """Take the present state for the one that programs find."""
        exit_functions.keep_all()
        self._saved = read()
        self._system = _system_state()

    def adopt(self, before: dict[str, dict[Any, Any]]) -> None:
        """Take the changes since `before` for part of the state that programs find."""
        now = read()
        exit_functions.keep(now["exit functions"][""] - before["exit functions"][""])
        for kind, content in now.items():
            _merge(self._saved.setdefault(kind, {}), before.get(kind, {}), content)

    def lost(self) -> str:
        """Return the part that cannot be had again for another program, empty for none."""
        with contextlib.suppress(Exception):
            threads, scheduler, filters = self._system
            deadline = time.monotonic() + 25 * FINISH_SECONDS  # nobody waits for it, and a thread's end may be slow
            while _raw_threads() > threads:
                if time.monotonic() > deadline:
                    return "thread"
                time.sleep(FINISH_SECONDS / 10)
            if os.sched_getscheduler(0) != scheduler:
                return "scheduler"
            if _seccomp_filters() != filters:
                return "system call filter"
        return ""

    def begin(self) -> None:
        """Put back what another program has changed."""
        exit_functions.begin_program()
        for put_back in (self._put_back_modules, self._put_back_tables, self._put_back_logging):
            with contextlib.suppress(Exception):
                put_back()

    def _of(self, kind: str) -> dict[Any, Any]:
        return self._saved.get(kind, {})

    def _put_back_modules(self) -> None:
        """Put back modules of Python's own library that were replaced, hidden or removed."""
        saved = self._of("module")
        for name, module in saved.items():
            if _is_standard(name) and sys.modules.get(name, _ABSENT) is not module:
                sys.modules[name] = module
        for name in [name for name in sys.modules if _is_standard(name) and name not in saved]:
            spec = getattr(sys.modules[name], "__spec__", None)
            if spec is None or spec.name != name:  # no import has made it
                del sys.modules[name]

    def _put_back_tables(self) -> None:
        for name, handler in self._handlers.items():
            if codecs.lookup_error(name) is not handler:
                codecs.register_error(name, handler)
        _fill(copyreg.dispatch_table, self._of("reducer"))
        _fill(sys.path_importer_cache, self._of("importer"))

    def _put_back_logging(self) -> None:
        logging = sys.modules.get("logging")
        if logging is None:
            return
        loggers = self._of("logger")
        for name, logger in _loggers(logging):
            for attribute, default in _ATTRIBUTES.items():
                value = loggers.get((name, attribute), default)
                if type(value) is list:
                    getattr(logger, attribute)[:] = value
                else:
                    setattr(logger, attribute, value)
        vars(logging).update(self._of("logging"))
        for name, value in self._of("manager").items():
            setattr(logging.root.manager, name, value)
        for name in _LEVELS:
            _fill(getattr(logging, name), self._of(name))
        logging.root.manager._clear_cache()


def read() -> dict[str, dict[Any, Any]]:
    """Return the state that is put back, by kind and name: copies, since each outermost import waits for two of them."""
    found: dict[str, dict[Any, Any]] = {
        "module": dict(sys.modules),
        "reducer": dict(copyreg.dispatch_table),
        "importer": dict(sys.path_importer_cache),
        "exit functions": {"": exit_functions.count()},
    }
    logging = sys.modules.get("logging")
    if logging is None or not hasattr(logging, "root"):
        return found
    found["logger"] = loggers = {}
    for name, logger in _loggers(logging):
        for attribute in _ATTRIBUTES:
            value = getattr(logger, attribute)
            loggers[name, attribute] = list(value) if type(value) is list else value
    found["logging"] = {name: getattr(logging, name) for name in _LOGGING if hasattr(logging, name)}
    found["manager"] = {name: getattr(logging.root.manager, name) for name in _MANAGER}
    found.update({kind: dict(getattr(logging, kind)) for kind in _LEVELS})
    return found


def _merge(saved: dict[Any, Any], before: dict[Any, Any], now: dict[Any, Any]) -> None:
    """Make in one dictionary the changes from `before` to `now`."""
    for key in before.keys() - now.keys():
        saved.pop(key, None)
    for key, value in now.items():
        old = before.get(key, _ABSENT)
        if value is not old and not _same(value, old):
            if type(value) is list and type(old) is list and key in saved:  # without what calls have added
                value = [one for one in value if one in saved[key] or one not in old]
            saved[key] = value


def _loggers(logging: Any) -> list[tuple[str, Any]]:
    root = logging.root
    named = root.manager.loggerDict.items()
    return [("", root), *((name, one) for name, one in list(named) if isinstance(one, logging.Logger))]


def _is_standard(name: str) -> bool:
    return name.partition(".")[0] in sys.stdlib_module_names and name != "__main__"


def _same(value: Any, other: Any) -> bool:
    plain = type(value) in (list, int, str, bool) and type(value) is type(other)
    return value is other or (plain and bool(value == other))


def _fill(table: Any, content: dict[Any, Any]) -> None:
    for key in [key for key in table if key not in content]:
        del table[key]
    table.update(content)


def _raw_threads() -> int:
    """Return how many threads were started below `threading`, which does not know them."""
    if not _thread._count():
        return 0
    known = [one for one in threading.enumerate() if not isinstance(one, threading._DummyThread)]
    return _thread._count() + 1 - len(known)


_Initial = tuple[dict[str, Any], dict[str, dict[Any, Any]], tuple[int, int, object]]
_initial: _Initial | None = None


def prepare() -> None:
    """Read, before any fork, the state that each worker begins with: in a child the copies of its pages cost 0.5 ms."""
    global _initial
    _initial = _first()


def _first() -> _Initial:
    exit_functions.keep_all()
    return {name: codecs.lookup_error(name) for name in _CODEC_ERRORS}, read(), _system_state()


def _system_state() -> tuple[int, int, object]:
    return _raw_threads(), os.sched_getscheduler(0), _seccomp_filters()


def _seccomp_filters() -> bytes:
    """Return how many filters of system calls this process has, as the kernel writes it."""
    with open("/proc/self/status", "rb") as file:
        return file.read().partition(b"\nSeccomp_filters:")[2].partition(b"\n")[0]
