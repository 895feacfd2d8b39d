"""Variables that a program reads at its start only: a worker is forked, so that its sandbox must have them.

Loader, allocator, Python and locale read them before any code of a function runs. Calls with such variables share a
sandbox whose agent was started with them (`SandboxKey.start`); all others set theirs in the worker. They carry no
secrets: every process of the sandbox can read them.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterable

_PREFIXES = ("LD_", "GLIBC_TUNABLES", "MALLOC_", "TCMALLOC_", "MIMALLOC_", "PYTHON")
_NAMES = frozenset({"LANG", "LC_ALL", "LC_CTYPE"})
_LATER = frozenset(
    {
        "PYTHONASYNCIODEBUG",
        "PYTHONBREAKPOINT",
        "PYTHONINSPECT",
        "PYTHONSTARTUP",
        "PYTHONUSERBASE",
        "PYTHON_BASIC_REPL",
        "PYTHON_COLORS",
        "PYTHON_HISTORY",
    }
)
"""Names that begin like these and are read when they are needed, or in an interactive Python only."""

_LIBRARIES = ("OMP_", "OPENBLAS_", "GOTO_", "MKL_", "BLIS_", "NUMEXPR_", "VECLIB_", "KMP_")
"""Variables that a library reads when it is loaded: too late in the worker where `preload` has loaded it."""

_REFUSED = {
    "PYTHONHOME": "names the standard library of another Python, and the environment's own could not start",
    "PYTHONPLATLIBDIR": "names another directory of the standard library, and Python could not start",
    "PYTHONEXECUTABLE": "gives Python another path of its own, and it would not find its environment",
    "LD_TRACE_LOADED_OBJECTS": "has every program print its libraries instead of running",
}

_NAME = re.compile("[A-Z0-9_]+")


def _number(least: int, most: int) -> Callable[[str], bool]:
    return lambda value: bool(re.fullmatch(r"\d{1,10}", value)) and least <= int(value) <= most


def _is_encoding(value: str) -> bool:
    encoding, _, handler = value.partition(":")
    try:
        return bool(codecs.lookup(encoding or "utf-8") and codecs.lookup_error(handler or "strict"))
    except LookupError:
        return False


_ALLOCATORS = ("default", "malloc", "pymalloc", "mimalloc", "debug", "malloc_debug", "pymalloc_debug", "mimalloc_debug")
_VALUES: dict[str, tuple[Callable[[str], bool], str]] = {
    "PYTHONHASHSEED": (
        lambda value: value == "random" or _number(0, (1 << 32) - 1)(value),
        "`random` or a number from 0 to 4294967295",
    ),
    "PYTHONUTF8": (lambda value: value in ("0", "1"), "`0` or `1`"),
    "PYTHONMALLOC": (lambda value: value in _ALLOCATORS, f"one of {', '.join(_ALLOCATORS)}"),
    "PYTHONTRACEMALLOC": (_number(0, 65535), "a number of frames from 0 to 65535"),
    "PYTHONINTMAXSTRDIGITS": (
        lambda value: value == "0" or _number(640, (1 << 31) - 1)(value),
        "0 or a number of at least 640",
    ),
    "PYTHONIOENCODING": (_is_encoding, "an encoding and a handler for errors, such as `utf-8:replace`"),
}
"""Values with which Python does not start are refused here, by name."""


def check(name: str, value: str) -> None:
    """Refuse a variable with which no worker could start.

    Raises:
        ValueError: the reason.
    """
    if name in _REFUSED:
        raise ValueError(f"`env` cannot have `{name}`: it {_REFUSED[name]}")
    fits, what = _VALUES.get(name, (None, ""))
    if fits is not None and value and not fits(value):
        raise ValueError(f"`env` has `{name}={value}`, and Python would not start: it must be {what}")


def of(env: Iterable[tuple[str, str]], *, preloads: bool) -> tuple[tuple[str, str], ...]:
    """Return those of a function's variables that its sandbox must be started with.

    Args:
        preloads: the function names modules that are imported before its worker starts.
    """
    prefixes = (*_PREFIXES, *_LIBRARIES) if preloads else _PREFIXES
    return tuple(
        (name, value)
        for name, value in env
        if name in _NAMES or (name.startswith(prefixes) and name not in _LATER and _NAME.fullmatch(name))
    )
