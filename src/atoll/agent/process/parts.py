"""Parts of a process's state that a function may change: each can be read, compared and put back.

A warm call waits for the reading of all of them. So they are texts of one expression that is compiled once (`read`),
of functions of C wherever there is one. A list is read as the list itself, since it is compared with a copy.
"""

from __future__ import annotations

import _locale
import _signal  # type: ignore[import-not-found] # without the wrappers of `signal`, which cost 1 us each
import _socket
import _thread
import builtins
import contextlib
import functools
import gc
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any, NamedTuple

_UNSEEN = ("KILL", "STOP", "SEGV", "BUS", "FPE", "ILL", "TRAP", "SYS", "STKFLT", "URG", "CONT", "TTIN", "TTOU", "PWR")
"""Signals without a handler of a program's: nobody can have one, or they tell of faults (see `faulthandler`)."""
_SIGNALS = tuple(
    sorted(
        {number for number in _signal.valid_signals() if number < _signal.SIGRTMIN}
        - {getattr(_signal, f"SIG{name}", 0) for name in _UNSEEN}
    )
)
"""Each look costs 70 ns. Real-time signals have no meaning of their own."""
_LIMITS = ("AS", "CORE", "CPU", "DATA", "FSIZE", "NOFILE", "NPROC", "STACK")
"""Limits that programs set; reading all sixteen would cost 10 us."""


class Part(NamedTuple):
    """One part: its name, and how it is read and put back.

    Args:
        read: an expression over the names of this module.
        write: takes the value to have and the present one. It raises where that cannot be had again.
    """

    name: str
    read: str
    write: Callable[[Any, Any], None]


_start: dict[str, Any] = {}
"""Parts as they are in a process whose program has not imported the module that changes them."""


def _setter(set_value: Callable[[Any], Any]) -> Callable[[Any, Any], None]:
    return lambda saved, _now: set_value(saved) and None


def _value(name: str, read: str, set_value: Callable[[Any], Any]) -> Part:
    return Part(name, read, _setter(set_value))


def _names(module: ModuleType, *names: str) -> Part:
    """Return the part of a module's names that hold functions or plain values."""
    content = vars(module)
    return Part(
        f"names of {module.__name__}",
        f"({', '.join(f'{module.__name__}.{name}' for name in names)})",
        lambda saved, _now: content.update(zip(names, saved, strict=True)),
    )


def _list(module: ModuleType, name: str) -> Part:
    def write(saved: Any, now: Any) -> None:
        now[:] = saved
        setattr(module, name, now)

    return Part(f"{module.__name__}.{name}", f"{module.__name__}.{name}", write)


def _write_variables(saved: Any, _now: Any) -> None:
    os.environ.clear()
    os.environ.update({os.fsdecode(name): os.fsdecode(value) for name, value in saved.items()})
    time.tzset()


def _write_handlers(saved: Any, now: Any) -> None:
    for number, old, new in zip(_SIGNALS, saved, now, strict=True):
        if old is not new and old != new and old is not None:  # None: not set by Python
            signal.signal(number, old)


_NO_TIMER = (0.0, 0.0)
_PROFILING = ((signal.ITIMER_VIRTUAL, signal.SIGVTALRM), (signal.ITIMER_PROF, signal.SIGPROF))


def _timer() -> Any:
    """Return the timer of the clock, and of the others those whose signal has a handler: without one it ends a process."""
    found = _signal.getitimer(signal.ITIMER_REAL)
    for which, number in _PROFILING:
        if _signal.getsignal(number) and (other := _signal.getitimer(which)) != _NO_TIMER:
            return which, other
    return found


def _write_timer(saved: Any, _now: Any) -> None:
    if saved == _NO_TIMER:  # else it runs since before the call
        for which in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF):
            _signal.setitimer(which, 0)


def _write_filters(saved: Any, _now: Any) -> None:
    warnings.resetwarnings()  # which also forgets the warnings that were shown
    warnings.filters.extend(saved)  # type: ignore[attr-defined]


def _limits() -> tuple[Any, ...]:
    """Return the limits of resources, which are read only in a process whose modules have imported `resource`."""
    return _read_limits() if "resource" in sys.modules else _start["limits"]


def _read_limits() -> tuple[Any, ...]:
    module = _start["resource"]
    return tuple(module.getrlimit(getattr(module, f"RLIMIT_{name}")) for name in _LIMITS)


def _write_limits(saved: Any, now: Any) -> None:
    module = _start["resource"]
    for name, old, new in zip(_LIMITS, saved, now, strict=True):
        if old != new:
            module.setrlimit(getattr(module, f"RLIMIT_{name}"), old)  # fails where a hard limit was lowered


def _locale_now() -> str:
    """Return the locale, which a program changes by the module that it has imported for that."""
    return _locale.setlocale(_locale.LC_ALL) if "locale" in sys.modules else _start["locale"]


_builtins = vars(builtins)
BUILTINS = "builtins"


def put_builtins_back(saved: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """Put back the names that were replaced or removed; return all, with those that were added."""
    if now != saved:
        now.update(saved)
    return dict(now)


def forget_builtins(names: Iterable[str]) -> None:
    """Remove names that a program has added."""
    for name in names:
        _builtins.pop(name, None)


def _multiprocessing() -> Any:
    context = sys.modules.get("multiprocessing.context")
    return None if context is None else context._default_context._actual_context


def _write_multiprocessing(saved: Any, _now: Any) -> None:
    sys.modules["multiprocessing.context"]._default_context._actual_context = saved


def _temporary_directory() -> Any:
    module: Any = sys.modules.get("tempfile")
    found = None if module is None else module.tempdir
    return None if found == _start["temporary directory"] else found


def _write_temporary_directory(saved: Any, _now: Any) -> None:
    vars(sys.modules["tempfile"])["tempdir"] = saved


def _policy() -> Any:
    """Return the asyncio policy that was set; one that is made on demand counts as none."""
    events = sys.modules.get("asyncio.events")
    policy = None if events is None else events._event_loop_policy
    if policy is None or str(getattr(type(policy), "__module__", "")).startswith("asyncio."):
        loop = getattr(getattr(policy, "_local", None), "_loop", None)
        is_set = getattr(getattr(policy, "_local", None), "_set_called", False)
        return "closed" if is_set and (loop is None or loop.is_closed()) else None
    return policy


def _write_policy(saved: Any, _now: Any) -> None:
    """Put a policy back; a default one without a loop is made anew, so that the next call can have its own loop."""
    vars(sys.modules["asyncio.events"])["_event_loop_policy"] = None if saved == "closed" else saved


def _faulthandler() -> bool:
    module = sys.modules.get("faulthandler")
    if module is None:
        return False
    module.cancel_dump_traceback_later()
    return bool(module.is_enabled())


def _write_faulthandler(saved: Any, _now: Any) -> None:
    import faulthandler

    faulthandler.enable() if saved else faulthandler.disable()


def _tools() -> Any:
    return [*map(sys.monitoring.get_tool, range(6))]  # type: ignore[attr-defined]


def _write_tools(saved: Any, now: Any) -> None:
    for number, (old, new) in enumerate(zip(saved, now, strict=True)):
        if new is not None and old is None:
            with contextlib.suppress(ValueError):
                sys.monitoring.set_events(number, 0)  # type: ignore[attr-defined]
            sys.monitoring.free_tool_id(number)  # type: ignore[attr-defined]


own_builtins: dict[str, Any] = {}
"""The names of `builtins` as they were before the fork."""


def prepare() -> None:
    """Copy, once and before any fork, the part that is spread over most pages of memory."""
    own_builtins.clear()
    own_builtins.update(_builtins)


def begin() -> None:
    """Read, in a process that is about to serve calls, what most calls cannot have changed."""
    sys.modules.pop("resource", None)  # a program that imports it may change limits
    read_start()


def read_start() -> None:
    """Read the parts that are not read while their modules are not imported."""
    _start["limits"] = _read_limits()
    _start["locale"] = _locale.setlocale(_locale.LC_ALL)
    _start["temporary directory"] = os.environ.get("TMPDIR")


@functools.cache
def read() -> Callable[[], list[Any]]:
    """Return the function that reads all parts, in their order; called first before any fork, since it takes a while."""
    import resource  # Linux only, and this module is for every platform

    _start["resource"] = resource
    made: Callable[[], list[Any]] = eval(f"lambda: [{', '.join(part.read for part in parts())}]", globals())  # noqa: S307 - this module's texts
    return made


@functools.cache
def parts() -> tuple[Part, ...]:
    """Return the parts that are looked at after each call."""
    found = [
        Part("environment variables", "os.environ._data", _write_variables),
        _list(sys, "path"),
        _list(sys, "meta_path"),
        _list(sys, "path_hooks"),
        _list(sys, "argv"),
        _names(sys, "excepthook", "unraisablehook", "displayhook", "breakpointhook", "dont_write_bytecode"),
        _names(threading, "excepthook", "_trace_hook", "_profile_hook"),
        _names(warnings, "showwarning", "formatwarning"),
        Part("warning filters", "warnings.filters", _write_filters),
        Part("signal handlers", "(*map(_signal.getsignal, _SIGNALS),)", _write_handlers),
        _value(
            "signal mask",
            "_signal.pthread_sigmask(_signal.SIG_BLOCK, ())",
            functools.partial(signal.pthread_sigmask, signal.SIG_SETMASK),
        ),
        Part("timer", "_timer()", _write_timer),
        _value("garbage collection", "gc.isenabled()", lambda on: gc.enable() if on else gc.disable()),
        _value("thresholds of garbage collection", "gc.get_threshold()", lambda saved: gc.set_threshold(*saved)),
        _value("debugging of garbage collection", "gc.get_debug()", gc.set_debug),
        Part("callbacks of garbage collection", "gc.callbacks", lambda saved, now: now.__setitem__(slice(None), saved)),
        _value("trace function", "sys.gettrace()", sys.settrace),
        _value("profile function", "sys.getprofile()", sys.setprofile),
        _value("recursion limit", "sys.getrecursionlimit()", sys.setrecursionlimit),
        _value("switch interval", "sys.getswitchinterval()", sys.setswitchinterval),
        _value("digits of whole numbers", "sys.get_int_max_str_digits()", sys.set_int_max_str_digits),
        _value("flags of dlopen", "sys.getdlopenflags()", sys.setdlopenflags),
        _value("hooks of generators", "sys.get_asyncgen_hooks()", lambda saved: sys.set_asyncgen_hooks(*saved)),
        _value(
            "origins of coroutines",
            "sys.get_coroutine_origin_tracking_depth()",
            sys.set_coroutine_origin_tracking_depth,
        ),
        _value("stack size", "_thread.stack_size()", _thread.stack_size),
        _value("locale", "_locale_now()", functools.partial(_locale.setlocale, _locale.LC_ALL)),
        _value("priority", "os.getpriority(os.PRIO_PROCESS, 0)", lambda old: os.setpriority(os.PRIO_PROCESS, 0, old)),
        _value("processors", "os.sched_getaffinity(0)", lambda saved: os.sched_setaffinity(0, saved)),
        _value("timeout of sockets", "_socket.getdefaulttimeout()", _socket.setdefaulttimeout),
        Part(BUILTINS, "_builtins", _setter(_builtins.update)),
        Part("start method of multiprocessing", "_multiprocessing()", _write_multiprocessing),
        Part("directory of temporary files", "_temporary_directory()", _write_temporary_directory),
        Part("event loop policy", "_policy()", _write_policy),
        Part("faulthandler", "_faulthandler()", _write_faulthandler),
        Part("limits", "_limits()", _write_limits),
    ]
    if hasattr(sys, "monitoring"):
        found.append(Part("monitoring tools", "_tools()", _write_tools))
    return tuple(found)
