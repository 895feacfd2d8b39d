"""Results and exceptions of `results="data"`, read without running code that the worker names.

The worker counts as hostile here. Exceptions become built-in types of a fixed list, Atoll's own, or `RemoteError`.
Frames keep a file name only if it is a module of this program. Printing a traceback opens the files in it, and a
worker could name a device or a pipe. The interpreter prints frames as they are, so nothing in them acts on a terminal.
"""

from __future__ import annotations

import builtins
import sys
from collections.abc import Sequence
from typing import Any

from atoll import errors
from atoll.errors import AtollError, SerializationError
from atoll.payload import exceptions_load, tracebacks
from atoll.payload.plain import decode
from atoll.payload.stand_ins import stand_in
from atoll.terminal_text import printable

MOST_NODES = 50
MOST_FRAMES = 2000
"""Of all exceptions of a chain together."""
_MEASURED_BYTES = 1 << 20
"""Values up to this size take little memory, with any contents."""
_MOST_LINE = (1 << 31) - 1

_BUILT_IN = frozenset(
    """
    ArithmeticError AssertionError AttributeError BlockingIOError BrokenPipeError BufferError ChildProcessError
    ConnectionAbortedError ConnectionError ConnectionRefusedError ConnectionResetError EOFError Exception
    FileExistsError FileNotFoundError FloatingPointError ImportError IndexError InterruptedError IsADirectoryError
    KeyError LookupError MemoryError ModuleNotFoundError NameError NotADirectoryError NotImplementedError OSError
    OverflowError PermissionError ProcessLookupError RecursionError ReferenceError RuntimeError RuntimeWarning
    TimeoutError TypeError UnboundLocalError UnicodeDecodeError UnicodeEncodeError UnicodeError UnicodeTranslateError
    UserWarning ValueError Warning ZeroDivisionError
    """.split()  # noqa: SIM905 - one name a line is no clearer
)
"""Left out: exceptions that end a program or an iteration, and `SyntaxError`, whose printing reads a file."""


def loads(buffers: Sequence[Any]) -> Any:
    """Return the value that the worker sent as plain data.

    Raises:
        SerializationError: it needs a library that is not installed here, or more memory than there is.
        ValueError: the buffers are not plain data.
    """
    try:
        return decode.loads(buffers, _room(buffers))
    except ModuleNotFoundError as error:
        raise SerializationError(
            f"the result holds data of `{error.name}`, which is not installed here",
            hint=f"install `{error.name}` in this environment, or return other data",
            module=error.name,
        ) from error
    except MemoryError as error:
        raise SerializationError(
            "the result takes more memory than this machine has free",
            hint="return it in parts, or write it to `/data` and return the path",
        ) from error
    except RecursionError as error:
        raise SerializationError(
            "the result cannot be read: this program's stack has no room for it", hint="return data of less depth"
        ) from error


def _room(buffers: Sequence[Any]) -> int | None:
    if sum(map(len, buffers)) <= _MEASURED_BYTES:
        return None
    from atoll.wire.payload_channel import free_bytes

    return free_bytes()


def loads_exception(described: Any, buffers: Sequence[Any], *, all_frames: bool = False) -> BaseException:
    """Return the exception that the worker described, ready to be raised.

    Args:
        all_frames: show Atoll's own frames, too.

    Raises:
        ValueError: the description is not of the form of `payload.exceptions_dump`.
    """
    nodes = _checked(described, all_frames)
    rebuilt: list[BaseException | None] = [None] * len(nodes)
    for number in reversed(range(len(nodes))):  # members of a group follow it in the list
        exc = _rebuilt(number, nodes, buffers, rebuilt)
        if exc is None:
            exc = stand_in(number, nodes)
        else:
            for note in nodes[number]["notes"]:
                exc.add_note(note)
        rebuilt[number] = exc
    return exceptions_load.linked(nodes, rebuilt)


def _rebuilt(
    number: int, nodes: list[dict[str, Any]], buffers: Sequence[Any], rebuilt: list[BaseException | None]
) -> BaseException | None:
    """Return the exception of one node; None if only a stand-in can be made."""
    node = nodes[number]
    first = node["plain"]
    if first < 0:
        return None
    try:
        value = loads(buffers[first : first + node["buffers"]])
        name = node["type"]
        if name.startswith("atoll.errors."):
            found = errors.from_data(value)
            return found if isinstance(found, AtollError) and type(found).__name__ == name.rpartition(".")[2] else None
        if name == "ExceptionGroup":
            members = [rebuilt[member] for member in node["members"] or () if member > number]
            return ExceptionGroup(str(value[0]), [exc for exc in members if isinstance(exc, Exception)])
        if name in _BUILT_IN:
            exc = getattr(builtins, name)(*value)
            return exc if isinstance(exc, Exception) else None
    except Exception:
        return None
    return None


# --- checks of the worker's description -------------------------------------------------------------------------


def _checked(described: Any, all_frames: bool) -> list[dict[str, Any]]:
    """Return the nodes, each with every field of the right type and in bounds."""
    nodes = _of(described, dict).get("exceptions")
    count = len(_of(nodes, list))
    if not 0 < count <= MOST_NODES:
        raise ValueError("an exception has too many others around it, or is none")
    own = _own_files()
    checked = [_checked_node(_of(node, dict), count, own, all_frames) for node in nodes]
    if sum(len(node["frames"]) for node in checked) > MOST_FRAMES:
        raise ValueError("an exception has too many frames")
    members = [member for node in checked for member in node["members"] or ()]
    if len(members) > len(set(members)):  # shared groups would be printed as often as paths lead to them
        raise ValueError("an exception is a member of groups more than once")
    used = 0
    for node in checked:  # each buffer is read once
        if node["plain"] >= 0:
            if node["plain"] < used:
                raise ValueError("two exceptions share their data")
            used = node["plain"] + node["buffers"]
    return checked


def _checked_node(node: dict[str, Any], count: int, own: frozenset[str], all_frames: bool) -> dict[str, Any]:
    members = node["members"]
    frames = _of(node["frames"], list)
    checked = [_checked_frame(_of(frame, list), own) for frame in frames]
    hidden = [_number(number, 0, len(frames)) for number in _of(node.get("own", []), list)]
    return {
        "type": _of(node["type"], str),
        "text": _of(node["text"], str),
        "frames": tracebacks.shown(checked, () if all_frames else hidden),
        "cause": _number(node["cause"], -1, count),
        "context": _number(node["context"], -1, count),
        "suppress": _of(node["suppress"], bool),
        "notes": [_of(note, str) for note in _of(node["notes"], list)],
        "members": None if members is None else [_number(one, 0, count) for one in _of(members, list)],
        "plain": _number(node["plain"], -1, _MOST_LINE),
        "buffers": _number(node["buffers"], 0, _MOST_LINE),
        "pickle": -1,
        "refused": _of(node["refused"], str),
        "bases": [["builtins", name] for name in _checked_bases(node.get("bases", []))],
        "errno": _number(node["errno"], 0, _MOST_LINE) if node.get("errno") is not None else None,
    }


def _checked_bases(bases: Any) -> list[str]:
    """Return the names of the built-in types above the exception's own."""
    named = [[_of(part, str) for part in _of(base, list)] for base in _of(bases, list)[:_MOST_BASES]]
    return [base[1] for base in named if len(base) == 2 and base[0] == "builtins" and base[1] in _BUILT_IN]


_MOST_BASES = 50


def _checked_frame(frame: list[Any], own: frozenset[str]) -> list[Any]:
    file, line, name, source, *columns = frame
    _of(file, str)
    if len(columns) not in (3, 4) or not all(one is None or 0 <= _of(one, int) < _MOST_LINE for one in columns):
        raise ValueError("a frame has wrong columns")
    shown = file if file in own else f"<{printable(file)}>"  # no file's name: nothing is opened
    number = _number(line, 0, _MOST_LINE) if line is not None else 0
    text = "\t".join(map(printable, _of(source, str).split("\t")))
    return [shown, number, printable(_of(name, str)), text, *columns]


def _number(value: Any, least: int, end: int) -> int:
    if type(value) is not int or not least <= value < end:
        raise ValueError("an exception is described wrongly: a number is out of bounds")
    return value


def _of(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise ValueError(f"an exception is described wrongly: not a `{kind.__name__}`")
    return value


def _own_files() -> frozenset[str]:
    """Return the files of this program's modules."""
    files = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
    return frozenset(file for file in files if isinstance(file, str))
