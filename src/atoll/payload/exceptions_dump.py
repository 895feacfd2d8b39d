"""Exceptions as data, on their way from the worker to the caller.

An exception and all that its chain reaches (`__cause__`, `__context__`, the members of groups) become nodes of a
list, the raised one first. Each node is pickled on its own, so that a failed one is replaced and the others arrive.
Plain data beside each pickle describes the exception to a caller that cannot unpickle it:

    {"exceptions": [{"type": name, "text": str(exc), "pickle": first buffer or -1, "buffers": count,
                     "refused": why it is not pickled, "frames": [[file, line, name, source, end, from, to, first], ...],
                     "own": [number of a frame of Atoll, ...], "lost": note on parts that were not sent,
                     "cut": whether the text is, "bases": [[module, name of a type above], ...], "errno": number or null,
                     "cause": node or -1, "context": node or -1, "suppress": bool, "notes": [...],
                     "members": [node, ...] or null}, ...]}

Errors that an exception's own methods raise never leave this module.
"""

from __future__ import annotations

import builtins
import contextlib
import itertools
import linecache
from types import TracebackType
from typing import Any

from atoll.errors import AtollError
from atoll.payload import install, pickling, tracebacks
from atoll.payload.exception_text import is_same, text_of
from atoll.payload.values import first_line, type_name

MOST_NODES = 500
MOST_PLAIN_NODES = 50
MOST_FRAMES = 200
"""Frames of one exception, from either end; a deeper recursion loses its middle."""
_MOST_TEXT = 20_000
_MOST_TOTAL = 1_000_000
"""Characters over all nodes; a frame's header is bounded at four times that in bytes."""


def dumps(exc: BaseException, plain: bool = False) -> tuple[dict[str, Any], list[Any]]:
    """Return the exception as JSON-compatible data and the buffers with its pickles.

    Args:
        plain: send the arguments of built-in and of Atoll's own exceptions as plain data in place of pickles;
            `plain` in a node is then its first buffer, or -1.
    """
    try:
        return _dumps(exc, plain)
    except BaseException as error:  # it refuses to be looked at: `__getattribute__`, `__class__` or `__dict__` fail
        frames = vars(BaseException)["__traceback__"].__get__(exc)
        header, _ = _dumps(Exception(text_of(exc)).with_traceback(frames), plain)
        reason = f"{type(error).__name__}: {first_line(error)}"
        header["exceptions"][0].update(type=type_name(type(exc)), pickle=-1, buffers=0, refused=reason)
        if plain:
            header["exceptions"][0]["plain"] = -1
        return header, []


def _dumps(exc: BaseException, plain: bool) -> tuple[dict[str, Any], list[Any]]:
    nodes, numbers, members = _reachable(exc, MOST_PLAIN_NODES if plain else MOST_NODES, apart=plain)
    room = [_MOST_TOTAL]
    buffers: list[Any] = []
    for node in nodes:  # all before the first is described: pickles of one may hold others
        _name_original(node)
    described = [_describe(nodes[at], numbers, inner, buffers, room, plain) for at, inner in enumerate(members)]
    return {"exceptions": described}, buffers


def _name_original(exc: BaseException) -> None:
    """Let an error in an import of the project's modules name the caller's file, as the frames do."""
    with contextlib.suppress(BaseException):  # a subclass may define the attributes in its own way
        if isinstance(exc, SyntaxError) and exc.filename:
            shown = install.original(exc.filename)
            if shown != exc.filename:
                exc.filename = shown
                message, (_, *place) = exc.args
                exc.args = message, (shown, *place)
        elif isinstance(exc, ImportError) and exc.path:
            shown = install.original(exc.path)
            if shown != exc.path:
                exc.msg = exc.msg.replace(exc.path, shown)
                exc.args = (exc.msg, *exc.args[1:])
                exc.path = shown


def _members(exc: BaseException) -> tuple[BaseException, ...] | None:
    """Return the members of a group; None for every other exception, and for a Python without groups."""
    group: Any = getattr(builtins, "BaseExceptionGroup", ())
    return exc.exceptions if isinstance(exc, group) else None


def _reachable(
    exc: BaseException, most: int, apart: bool
) -> tuple[list[BaseException], dict[int, int], list[list[int] | None]]:
    """Return the exceptions of the nodes, the number of each exception's first node, and the members of each node.

    Args:
        apart: each member of each group has a node of its own, which follows the group's; the receiver of plain data
            refuses shared ones, since groups of them are printed as often as paths lead to them.
    """
    found = [exc]
    numbers = {id(exc): 0}
    members: list[list[int] | None] = []
    joined: set[int] = set()
    for one in found:
        inner = _members(one)
        group: list[int] = []
        for other in inner or ():
            number = numbers.get(id(other), -1)
            if number < 0 or (apart and (number in joined or number <= len(members))):
                if len(found) == most:
                    continue
                number = len(found)
                found.append(other)
                numbers.setdefault(id(other), number)
            joined.add(number)
            group.append(number)
        members.append(None if inner is None else group)
        for link in (one.__cause__, one.__context__):
            if link is not None and id(link) not in numbers and len(found) < most:
                numbers[id(link)] = len(found)
                found.append(link)
    return found, numbers, members


def _describe(
    exc: BaseException,
    numbers: dict[int, int],
    members: list[int] | None,
    buffers: list[Any],
    room: list[int],
    plain: bool,
) -> dict[str, Any]:
    text = text_of(exc)
    frames, own = _frames(exc, room)
    node: dict[str, Any] = {
        "type": type_name(exc),
        "text": _clip(text, room),
        "cut": False,
        "frames": frames,
        "own": own,
        "cause": numbers.get(id(exc.__cause__), -1),
        "context": numbers.get(id(exc.__context__), -1),
        "suppress": exc.__suppress_context__,
        "notes": _notes(exc, room),
        "members": members,
        "pickle": -1,
        "buffers": 0,
        "refused": "",
        "lost": "",
        "bases": _bases(type(exc)),
        "errno": _errno(exc),
    }
    node["cut"] = node["text"] != text
    if plain:
        node["plain"] = -1
        with contextlib.suppress(Exception):  # the caller then has its name and text
            pieces = _plain_parts(exc)
            node["plain"], node["buffers"] = len(buffers), len(pieces)
            buffers.extend(pieces)
        return node
    pickled, node["refused"] = _pickled(exc, members is not None)
    if pickled is not None:
        data, pieces, missing = pickled
        node["lost"] = _clip(missing, room)
        node["pickle"], node["buffers"] = len(buffers), 1 + len(pieces)
        buffers.extend((data, *pieces))
    return node


def _pickled(exc: BaseException, is_group: bool) -> tuple[tuple[Any, list[Any], str] | None, str]:
    """Return pickle, buffers and a note of the lost parts; or None and the reason, if even the type cannot be."""
    cls, text = type(exc), text_of(exc)
    whole: Any = None
    try:
        if is_group:  # the members are nodes of their own
            return (*pickling.dumps((cls, exc.message, dict(vars(exc)))), ""), ""  # type: ignore[attr-defined]
        data, pieces = pickling.dumps(exc)
        data = pickling.whole(data)
        if cls.__module__ == "builtins" and not vars(exc) and pickling.is_plain(exc.args):
            return (data, pieces, ""), ""
        # a `__reduce__` of its own may return another type, lose its text, or fail only when it is loaded
        loaded = pickling.loads(data, pieces)
        if type(loaded) is not cls:
            raise TypeError("it does not come back as its own type")
        if is_same(text_of(loaded), text):
            return (data, pieces, ""), ""
        whole, reason = (data, pieces, ""), ""
    except BaseException as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
    from atoll.payload import salvage  # for few exceptions

    def is_right(found: Any) -> bool:
        if is_group:
            return found[0] is cls
        return type(found) is cls and (whole is None or is_same(text_of(found), text))

    saved = salvage.dumps(exc, is_right, is_group=is_group)
    return (whole, reason) if saved is None else ((saved[0], [], salvage.note(saved[1])), "")


def _bases(cls: type) -> list[list[str]]:
    """Return the names of a type and those above it, nearest first: a caller without the type may know them."""
    common = (Exception, BaseException, object)
    return [[one.__module__, one.__qualname__] for one in cls.__mro__ if one not in common][:_MOST_BASES]


_MOST_BASES = 30


def _errno(exc: BaseException) -> int | None:
    number = getattr(exc, "errno", None) if isinstance(exc, OSError) else None
    return number if type(number) is int else None


def _plain_parts(exc: BaseException) -> list[Any]:
    """Return the arguments of an exception whose type both sides know, as plain data."""
    from atoll.payload.plain.encode import dumps
    from atoll.payload.plain.format import NotPlainError

    cls = type(exc)
    if cls.__module__ == AtollError.__module__:
        return dumps(exc.to_data())  # type: ignore[attr-defined]
    if cls.__module__ != "builtins":
        raise NotPlainError("it", "an exception of another package")
    if _members(exc) is not None:
        return dumps([exc.message])  # type: ignore[attr-defined]
    return dumps(list(exc.__reduce__()[1]))


def _clip(text: str, room: list[int]) -> str:
    most = max(min(_MOST_TEXT, room[0]), 200)
    room[0] -= min(len(text), most)
    return text if len(text) <= most else text[:most] + f"... ({len(text)} characters)"


def _notes(exc: BaseException, room: list[int]) -> list[str]:
    notes = vars(exc).get("__notes__")  # past a `__getattr__` of its own
    return [_clip(note, room) for note in notes[:100] if isinstance(note, str)] if isinstance(notes, list) else []


# --- frames -----------------------------------------------------------------------------------------------------


def _frames(exc: BaseException, room: list[int]) -> tuple[list[list[Any]], list[int]]:
    """Return the frames of an exception, and the numbers of those that are Atoll's own."""
    entries = list(tracebacks.entries(exc.__traceback__))
    if len(entries) > 2 * MOST_FRAMES:
        entries = entries[:MOST_FRAMES] + entries[-MOST_FRAMES:]
    own = tracebacks.own_entries(entries, exc)
    return [_frame(entry, room, number in own) for number, entry in enumerate(entries)], own


def _frame(entry: TracebackType, room: list[int], is_own: bool) -> list[Any]:
    code = entry.tb_frame.f_code
    line = entry.tb_lineno
    end, start, stop = _columns(code, entry.tb_lasti, line)
    file = code.co_filename
    source = linecache.getline(file, line, entry.tb_frame.f_globals) if line and not is_own else ""
    return [
        _clip(install.original(file), room),
        line,
        code.co_name[:500],
        _clip(source.rstrip("\n"), room),
        end,
        start,
        stop,
        code.co_firstlineno,
    ]


def _columns(code: Any, instruction: int, line: int) -> tuple[Any, Any, Any]:
    """Return the last line and the columns of the raising expression; None for each before Python 3.11."""
    positions = code.co_positions() if hasattr(code, "co_positions") else ()
    first, end, start, stop = next(itertools.islice(positions, instruction // 2, None), (None, None, None, None))
    return (end, start, stop) if first == line else (None, None, None)
