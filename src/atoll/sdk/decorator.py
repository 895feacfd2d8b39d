"""`@isolated`: marks a function to run in an environment of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, overload

from atoll.sdk.function import IsolatedFunction
from atoll.sdk.futures import hide_frames
from atoll.sdk.options import Options

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterator
    from typing import Literal, Never, ParamSpec, TypeVar, Unpack

    from atoll.sdk.option_types import CondaOptions, VirtualenvOptions
    from atoll.sdk.shapes import (
        Decorator,
        IsolatedAsyncGenerator,
        IsolatedCoroutine,
        IsolatedGenerator,
        SetUpDecorator,
    )

    P = ParamSpec("P")
    R = TypeVar("R")
    S = TypeVar("S")
    Y = TypeVar("Y")
    Sent = TypeVar("Sent")
    Returned = TypeVar("Returned")


MYPY = False
"""True for mypy alone, which takes a function with a variable of types as its result for one that never returns."""


# `@isolated(...)`
@overload
def isolated(
    kind: Literal["virtualenv"] = "virtualenv", *, setup_function: None = None, **options: Unpack[VirtualenvOptions]
) -> Decorator: ...
@overload
def isolated(kind: Literal["conda"], *, setup_function: None = None, **options: Unpack[CondaOptions]) -> Decorator: ...
@overload
def isolated(
    kind: Literal["virtualenv"] = "virtualenv", *, setup_function: Callable[[], S], **options: Unpack[VirtualenvOptions]
) -> SetUpDecorator[S]: ...
@overload
def isolated(
    kind: Literal["conda"], *, setup_function: Callable[[], S], **options: Unpack[CondaOptions]
) -> SetUpDecorator[S]: ...


# `@isolated`, as in `shapes.Decorator`; options would make a checker's report of a mistake very long
if not MYPY:

    @overload
    def isolated(kind: Callable[P, Never], /) -> IsolatedFunction[P, Any]: ...


@overload
def isolated(kind: Callable[..., Never], /) -> IsolatedFunction[..., Any]: ...  # type: ignore[overload-overlap]
@overload
def isolated(kind: Callable[P, Coroutine[Any, Any, R]], /) -> IsolatedCoroutine[P, R]: ...
@overload
def isolated(kind: Callable[P, AsyncIterator[Y]], /) -> IsolatedAsyncGenerator[P, Y]: ...
@overload
def isolated(
    kind: Callable[P, Generator[Y, Sent, Returned]], /
) -> IsolatedGenerator[P, Generator[Y, Sent, Returned], Y]: ...
@overload
def isolated(kind: Callable[P, Iterator[Y]], /) -> IsolatedGenerator[P, Iterator[Y], Y]: ...
@overload
def isolated(kind: Callable[P, R], /) -> IsolatedFunction[P, R]: ...


def isolated(kind: Any = "virtualenv", **options: Any) -> Any:
    """Mark a function to run in an environment of its own: `@isolated`, `@isolated()`, `@isolated(kind, ...)`.

    Args:
        kind: `virtualenv` or `conda`.
        options: see `options.Options`.

    Raises:
        TypeError: an option is unknown or of the wrong type; names the nearest valid one.
        ValueError: an option's value is out of range.
    """
    try:
        if callable(kind) or isinstance(kind, classmethod):
            return IsolatedFunction(kind, Options().with_changes(options))
        checked = Options().with_changes({"kind": kind, **options})
    except (TypeError, ValueError) as error:
        hide_frames(error, is_report=True)
        raise
    return lambda function: IsolatedFunction(function, checked)
