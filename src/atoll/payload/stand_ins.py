"""Stand-ins for exceptions whose type this process lacks, or that could not be sent: a `RemoteError` with their words."""

from __future__ import annotations

import contextlib
import sys
import traceback
from functools import cache
from typing import Any

from atoll.errors import RemoteError
from atoll.payload.exception_text import add_note


def stand_in(number: int, nodes: list[dict[str, Any]], error: Exception | None = None) -> RemoteError:
    """Return a `RemoteError` in place of an exception that cannot be made here."""
    node = nodes[number]
    name = node["type"]
    hint = f"install what defines `{name}` here to catch it by its type" if node["pickle"] >= 0 else ""
    cls = _class_below(tuple(map(tuple, node["bases"])))
    exc = cls(
        f"{name}: {node['text']}" if node["text"] else name,
        hint=hint,
        type_name=name,
        text=node["text"],
        traceback_text="".join(_format(number, nodes, set())),
        reason=node["refused"] or f"{type(error).__name__}: {error}",
    )
    for note in node["notes"]:
        add_note(exc, note)
    if isinstance(exc, OSError) and node["errno"] is not None:
        exc.errno = node["errno"]
    return exc


# --- types ------------------------------------------------------------------------------------------------------

_NOT_STOOD_FOR = (StopIteration, StopAsyncIteration, SyntaxError, RemoteError)
"""Types that end an iteration, or whose printing needs more than a text."""


def _class_below(names: tuple[tuple[str, str], ...]) -> type[RemoteError]:
    """Return a `RemoteError` that the exceptions of these names catch, too, as they would catch the missing type.

    A program that names a type in `except` has imported it: others are not looked for, and nothing is imported.
    """
    found = []
    for module, name in names:
        one: Any = sys.modules.get(module)
        for part in name.split("."):
            one = getattr(one, part, None)
        if isinstance(one, type) and issubclass(one, Exception) and not issubclass(one, _NOT_STOOD_FOR):
            found.append((module, name, one))
    return _remote_class(tuple(found)) if found else RemoteError


@cache
def _remote_class(bases: tuple[tuple[str, str, type[Exception]], ...]) -> type[RemoteError]:
    names = tuple((module, name) for module, name, _ in bases)

    def __reduce__(self: RemoteError) -> tuple[Any, ...]:  # noqa: N807 - a method
        return rebuild_remote, (names, self.message, self.hint, self.details, dict(vars(self)))

    made: type[RemoteError] = RemoteError
    fields = {
        "__module__": RemoteError.__module__,
        "__qualname__": RemoteError.__qualname__,
        "__doc__": RemoteError.__doc__,
        "__str__": RemoteError.__str__,
        "__reduce__": __reduce__,
    }
    for *_, base in bases:
        if not issubclass(made, base):
            with contextlib.suppress(Exception):  # its `__init__` wants more, or its layout fits no other
                below: type[RemoteError] = type(RemoteError.__name__, (made, base), fields)
                str(below("trial", hint=""))
                made = below
    return made


def rebuild_remote(
    names: tuple[tuple[str, str], ...], message: str, hint: str, details: dict[str, Any], state: dict[str, Any]
) -> RemoteError:
    """Make a `RemoteError` again; pickles name this function."""
    exc = _class_below(names)(message, hint=hint, **details)
    vars(exc).update(state)
    return exc


# --- text -------------------------------------------------------------------------------------------------------


def _format(number: int, nodes: list[dict[str, Any]], seen: set[int]) -> list[str]:
    """Format a node with its causes and contexts, as the interpreter would."""
    lines: list[str] = []
    chain: list[tuple[int, str]] = [(number, "")]
    while True:  # from the raised one down to its first cause; printed in the opposite order
        current = chain[-1][0]
        seen.add(current)
        node = nodes[current]
        if 0 <= node["cause"] < len(nodes) and node["cause"] not in seen:
            chain.append((node["cause"], _CAUSE))
        elif 0 <= node["context"] < len(nodes) and not node["suppress"] and node["context"] not in seen:
            chain.append((node["context"], _CONTEXT))
        else:
            break
    for current, link in reversed(chain):
        node = nodes[current]
        if node["frames"]:
            lines.append("Traceback (most recent call last):\n")
            lines.extend(traceback.StackSummary.from_list([_summary(frame) for frame in node["frames"]]).format())
        lines.append(f"{node['type']}: {node['text']}\n" if node["text"] else f"{node['type']}\n")
        lines.extend(f"{note}\n" for note in node["notes"])
        for member in node["members"] or ():
            if member not in seen:
                lines.extend("  | " + line for line in "".join(_format(member, nodes, seen)).splitlines(keepends=True))
        lines.append(link)
    return lines


_CAUSE = "\nThe above exception was the direct cause of the following exception:\n\n"
_CONTEXT = "\nDuring handling of the above exception, another exception occurred:\n\n"


def _summary(frame: list[Any]) -> traceback.FrameSummary:
    file, line, name, source, *_ = frame
    return traceback.FrameSummary(file, line, name, line=source or None)
