"""Exceptions that a worker sent, rebuilt here with their type, text, chain and frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from atoll.errors import RemoteError, SerializationError
from atoll.payload import remote_frames, tracebacks
from atoll.payload.exception_text import FAILED, add_note, is_same, text_of, with_text
from atoll.payload.functions import loads_by_value
from atoll.payload.reducers.unsent import absent
from atoll.payload.stand_ins import stand_in


def loads(header: dict[str, Any], buffers: Sequence[Any], *, all_frames: bool = False) -> BaseException:
    """Return the exception that `payload.exceptions_dump.dumps` described, ready to be raised.

    Args:
        all_frames: show Atoll's own frames, too.

    A type that cannot be imported here gives a `RemoteError` with its name, message and traceback text; one that
    could not be pickled a `SerializationError` whose `__cause__` is that `RemoteError`.
    """
    nodes = header["exceptions"]
    if not all_frames:
        nodes = [{**node, "frames": tracebacks.shown(node["frames"], node["own"])} for node in nodes]
    rebuilt: list[BaseException | None] = [None] * len(nodes)
    for number in reversed(range(len(nodes))):
        _rebuild(number, nodes, buffers, rebuilt)
    return linked(nodes, rebuilt)


def linked(nodes: list[dict[str, Any]], rebuilt: Sequence[BaseException | None]) -> BaseException:
    """Give the exceptions their frames, and the links between them that the nodes describe; return the raised one."""
    for node, exc in zip(nodes, rebuilt, strict=True):
        assert exc is not None
        frames = remote_frames.made(node["frames"])
        BaseException.with_traceback(exc, frames)
        if isinstance(exc.__cause__, RemoteError) and isinstance(exc, SerializationError) and node["refused"]:
            exc.__cause__.__traceback__ = frames
            exc = exc.__cause__
        for name in ("cause", "context"):
            _set(exc, f"__{name}__", _linked(rebuilt, node[name], exc))
        _set(exc, "__suppress_context__", bool(node["suppress"]))
    assert rebuilt[0] is not None
    return rebuilt[0]


def _set(exc: BaseException, name: str, value: Any) -> None:
    """Set a link of an exception, past a `__setattr__` that refuses, as that of a frozen dataclass does."""
    vars(BaseException)[name].__set__(exc, value)


def _linked(rebuilt: Sequence[BaseException | None], number: int, exc: BaseException) -> BaseException | None:
    found = rebuilt[number] if 0 <= number < len(rebuilt) else None
    return None if found is exc else found


def _rebuild(
    number: int, nodes: list[dict[str, Any]], buffers: Sequence[Any], rebuilt: list[BaseException | None]
) -> BaseException:
    done = rebuilt[number]
    if done is not None:
        return done
    node = nodes[number]
    exc: BaseException
    if node["pickle"] < 0:
        exc = stand_in(number, nodes)
        if number == 0:  # causes and contexts stay plain stand-ins
            refused = SerializationError(
                f"the function raised an exception that cannot be sent: a `{node['type']}`: {node['refused']}",
                hint="let its arguments and attributes be plain data",
            )
            refused.__cause__ = exc
            exc = refused
    else:
        first = node["pickle"]
        pieces = buffers[first : first + node["buffers"]]
        try:
            exc = _unpickle(number, nodes, pieces, rebuilt, buffers)
        except Exception as error:
            exc = stand_in(number, nodes, error)
        else:
            exc = _completed(exc, node)
    rebuilt[number] = exc
    return exc


def _completed(exc: BaseException, node: dict[str, Any]) -> BaseException:
    """Return the exception with the text and the notes that it had in the worker."""
    if (node["members"] is None or type(exc).__module__ != "builtins") and not _has_text(exc, node):
        exc = with_text(exc, node["text"])
    if "__notes__" not in vars(exc):  # its own `__reduce__` leaves them out
        for note in node["notes"]:
            add_note(exc, note)
    if node["lost"]:
        add_note(exc, node["lost"])
        if not hasattr(exc, "add_note"):  # Python 3.10 prints no notes
            exc = with_text(exc, f"{text_of(exc)}\n{node['lost']}")
    return exc


def _has_text(exc: BaseException, node: dict[str, Any]) -> bool:
    text, sent = text_of(exc), node["text"]
    if not node["cut"]:
        return sent == FAILED or is_same(text, sent)
    start = sent.rpartition("... (")[0]
    return is_same(text[: len(start)], start)


def _unpickle(
    number: int,
    nodes: list[dict[str, Any]],
    pieces: Sequence[Any],
    rebuilt: list[BaseException | None],
    buffers: Sequence[Any],
) -> BaseException:
    missing: dict[str, Exception] = {}

    def stands_in(kind: str, error: Exception) -> Any:
        missing[kind] = error
        return absent(kind, str(error))

    try:
        found = loads_by_value(pieces[0], pieces[1:])
    except (ImportError, AttributeError):  # of an argument or attribute, unless it is the type
        found = loads_by_value(pieces[0], pieces[1:], stands_in)
    members = nodes[number]["members"]
    if members is not None:
        cls, message, state = found
        inner = [_rebuild(member, nodes, buffers, rebuilt) for member in members if member > number]
        base: Any = ExceptionGroup if issubclass(cls, ExceptionGroup) else BaseExceptionGroup
        found = base.__new__(cls, message, inner)
        vars(found).update(state)
    if not isinstance(found, BaseException):
        raise next(iter(missing.values()), TypeError("the pickle holds no exception"))
    if missing:
        names = ", ".join(f"`{kind}`" for kind in missing)
        add_note(found, f"atoll: not read with this exception: {names} ({next(iter(missing.values()))})")
    return found
