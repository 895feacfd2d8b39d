"""The terminal of a lease: a pseudo terminal of the caller's, on descriptors 1 and 2 while a call has it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

NO_KEYS = {"PAGER": "cat"}
"""Variables of a terminal that nobody types at: a pager would wait for a key."""

_descriptor = -1
_modes: Any = None
replaced: list[str] = []
"""Variables of the terminal that are set now."""


def take(descriptor: int) -> None:
    """Take a lease's terminal, which is this module's from here on."""
    global _descriptor, _modes
    import termios  # for calls on a terminal

    close()
    _descriptor, _modes = descriptor, termios.tcgetattr(descriptor)


def close() -> None:
    """Close the terminal: its lease is over."""
    global _descriptor
    if _descriptor >= 0:
        with contextlib.suppress(OSError):  # the function may have closed it
            os.close(_descriptor)
        _descriptor = -1


def enter(variables: Mapping[str, str]) -> bool:
    """Put the terminal on descriptors 1 and 2, as the lease's first call has found it; return whether there is one."""
    if _descriptor < 0:
        return False
    import termios  # as above

    try:
        termios.tcflow(_descriptor, termios.TCOON)  # an earlier call may have held it
        if termios.tcgetattr(_descriptor) != _modes:
            termios.tcsetattr(_descriptor, termios.TCSANOW, _modes)
        os.dup2(_descriptor, 1)
        os.dup2(_descriptor, 2)
    except (OSError, termios.error):  # the function has closed it
        return False
    for name, value in {**NO_KEYS, **variables}.items():
        if name not in os.environ:  # the function's own `env` has it
            os.environ[name] = value
            replaced.append(name)
    return True


def leave() -> None:
    """Unset the variables of the terminal."""
    for name in replaced:
        os.environ.pop(name, None)
    replaced.clear()


@contextlib.contextmanager
def without_variables() -> Iterator[None]:
    """Unset the variables of the terminal while the context is open."""
    shown = {name: os.environ[name] for name in replaced if name in os.environ}
    for name in shown:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(shown)
