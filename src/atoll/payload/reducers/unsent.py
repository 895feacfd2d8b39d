"""Stand-ins for parts of an exception that could not travel."""

from __future__ import annotations

from typing import Any

MOST_TEXT = 500


class Unsent:
    """A part of an exception that stayed in the worker: it looks like the part, and has none of its attributes.

    Args:
        kind: the qualified name of the part's type.
        shown: its `repr`.
        text: its `str`.
        reason: the cause, for whoever reads an attribute.
    """

    __slots__ = ("_kind", "_reason", "_shown", "_text")

    def __init__(self, kind: str, shown: str, text: str, reason: str) -> None:
        self._kind, self._shown, self._text, self._reason = kind, shown, text, reason

    def __repr__(self) -> str:
        return self._shown

    def __str__(self) -> str:
        return self._text

    def __reduce__(self) -> tuple[Any, ...]:
        return Unsent, (self._kind, self._shown, self._text, self._reason)

    def __getattr__(self, name: str) -> Any:
        if name in Unsent.__slots__:
            raise AttributeError(name)
        raise AttributeError(f"this `{self._kind}` did not come with its exception: {self._reason}", name=name)

    def close(self) -> None:
        """Do nothing: a file or a connection is not open here, and its owner may close it without a look."""


def absent(kind: str, reason: str) -> type[Unsent]:
    """Return a class that stands for one that cannot be imported, so that pickles of its objects can be read."""

    def make(cls: type[Unsent], *_: Any, **__: Any) -> Unsent:
        made = object.__new__(cls)
        Unsent.__init__(made, kind, f"<{kind} object>", f"<{kind} object>", reason)
        return made

    def ignore(*_: Any, **__: Any) -> None: ...

    writers = dict.fromkeys(("__init__", "__setstate__", "__setitem__", "append", "extend", "add"), ignore)
    return type("Unsent", (Unsent,), {"__slots__": (), "__new__": make, **writers})


def unsent(value: Any, kind: str, reason: str) -> Unsent:
    """Return the stand-in of a value, whatever its own methods do."""
    return Unsent(kind, _words(repr, value, kind), _words(str, value, kind), reason)


def _words(function: Any, value: Any, kind: str) -> str:
    try:
        text: str = function(value)
    except BaseException:
        return f"<{kind} object>"
    return text if len(text) <= MOST_TEXT else f"{text[:MOST_TEXT]}..."
