"""Exceptions that are rebuilt without calling their `__init__`, whose signature need not fit `args`."""

from __future__ import annotations

from typing import Any

_HEAP_TYPE = 1 << 9
_HOOKS = ("__reduce__", "__reduce_ex__", "__getstate__", "__setstate__")


def _static_base(cls: type) -> Any:
    """Return the nearest base that is written in C: it decides the object's layout and its fields."""
    return next(base for base in cls.__mro__ if not base.__flags__ & _HEAP_TYPE)


def reduce_exception(exc: BaseException) -> tuple[Any, ...] | None:
    """Reduce an exception so that `__init__` is not called again; None if its type defines its own pickling."""
    cls = type(exc)
    base = _static_base(cls)
    if cls is base or any(getattr(cls, hook, None) is not getattr(base, hook, None) for hook in _HOOKS):
        return None
    if hasattr(cls, "__getnewargs__") or hasattr(cls, "__getnewargs_ex__"):
        return None
    args = base.__reduce__(exc)[1]
    keywords = {}
    if issubclass(base, ImportError):
        keywords = {"name": exc.name, "path": exc.path}  # type: ignore[attr-defined]
    elif issubclass(base, (NameError, AttributeError)):
        keywords = {"name": exc.name}  # type: ignore[attr-defined]
    return rebuild_exception, (cls, args, keywords), dict(vars(exc)), None, None, restore_exception


def rebuild_exception(cls: type[BaseException], args: tuple[Any, ...], keywords: dict[str, Any]) -> BaseException:
    base = _static_base(cls)
    exc: BaseException = base.__new__(cls, *args)
    base.__init__(exc, *args, **keywords)
    return exc


def restore_exception(exc: BaseException, state: dict[str, Any]) -> None:
    vars(exc).update(state)
