"""`@isolated`: marks a function to run in an environment of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, overload

from atoll.sdk.function import IsolatedFunction
from atoll.sdk.futures import hide_frames
from atoll.sdk.options import Options

P = ParamSpec("P")
R = TypeVar("R")


@overload
def isolated(kind: Callable[P, R], /) -> IsolatedFunction[P, R]: ...
@overload
def isolated(kind: str = "virtualenv", **options: Any) -> Callable[[Callable[P, R]], IsolatedFunction[P, R]]: ...


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
        if callable(kind) and not isinstance(kind, str):
            return IsolatedFunction(kind, Options().with_changes(options))
        checked = Options().with_changes({"kind": kind, **options})
    except (TypeError, ValueError) as error:
        hide_frames(error, is_report=True)
        raise
    return lambda function: IsolatedFunction(function, checked)
