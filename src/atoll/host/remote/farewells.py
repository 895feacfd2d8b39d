"""Functions for the end of a program, after its calls have been waited for: connections to servers are closed in order."""

from __future__ import annotations

import atexit
from collections.abc import Callable

_functions: list[Callable[[], object]] = []


def add(function: Callable[[], object]) -> None:
    """Have a function run at the program's end."""
    if function not in _functions:
        _functions.append(function)
    install()


def install() -> None:
    """Have them run before what was registered with `atexit` until now, and after what is registered later."""
    if not _installed:
        _installed.append(True)
        atexit.register(_run)


_installed: list[bool] = []


def _run() -> None:
    for function in _functions:
        function()
