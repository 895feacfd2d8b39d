"""The text of an exception, which stays as it was where the exception was raised.

A type may make its text of parts that did not travel, or of the machine that it is on. The received text is then shown
by a class that differs from the exception's own in `str` alone: it has its name, and is caught wherever that is.
"""

from __future__ import annotations

import re
from typing import Any

from atoll.payload.reducers.exceptions import rebuild_exception, reduce_exception, restore_exception

_ADDRESS = re.compile(r"\b0x[0-9a-fA-F]+")
"""An object's place in memory, in its default `repr`; it says nothing on another machine."""


FAILED = "<exception str() failed>"


def text_of(exc: BaseException) -> str:
    """Return `str(exc)`, or words in its place."""
    try:
        return str(exc)
    except BaseException:
        return FAILED


def is_same(one: str, other: str) -> bool:
    """Return whether two texts say the same, but for addresses in memory."""
    return one == other or ("0x" in one and _ADDRESS.sub("0x", one) == _ADDRESS.sub("0x", other))


def with_text(exc: BaseException, text: str) -> BaseException:
    """Return the exception with this text: the same object, or for a built-in type a copy.

    Where its type allows no class below it, a note has the text.
    """
    cls = type(exc)
    try:
        shown = _shown_class(cls, text)
        try:
            exc.__class__ = shown
            return exc
        except TypeError:  # a type in C is fixed for an object
            made: BaseException = shown.__new__(shown, *exc.args)
            reduced: Any = cls.__reduce__(exc)
            cls.__init__(made, *reduced[1])
            vars(made).update(vars(exc))
            return made
    except Exception:
        add_note(exc, f"atoll: its text in the worker was: {text}")
        return exc


def add_note(exc: BaseException, note: str) -> None:
    """Add a note, once, whatever the type's own methods are."""
    notes = vars(exc).get("__notes__")
    known = notes if isinstance(notes, list) else []
    if note not in known:
        vars(exc)["__notes__"] = [*known, note]


def _shown_class(cls: Any, text: str) -> Any:
    def __str__(_: Any) -> str:  # noqa: N807 - a method
        return text

    def __reduce_ex__(self: Any, protocol: Any) -> Any:  # noqa: N807 - as above
        """Reduce as the class above, so that no pickle names this one."""
        state: tuple[Any, ...] = ()
        make, args, *rest = reduce_exception(self, like=cls) or cls.__reduce_ex__(self, protocol)
        if make is rebuild_exception:  # any reader of pickles takes it so, `copy` included
            state, rest = (rest[0],), []
        args = tuple(cls if arg is shown else arg for arg in args)
        return rebuild_shown, (cls if make is shown else make, args, text, *state), *rest

    fields = {
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__,
        "__slots__": (),
        "__str__": __str__,
        "__reduce_ex__": __reduce_ex__,
    }
    shown: Any = type(cls)(cls.__name__, (cls,), fields)
    return shown


def rebuild_shown(make: Any, args: tuple[Any, ...], text: str, state: Any = None) -> BaseException:
    """Make the exception and show the text; pickles name this function."""
    exc = make(*args)
    if state is not None:
        restore_exception(exc, state)
    return with_text(exc, text)
