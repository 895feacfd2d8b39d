"""Exceptions that are rebuilt without calling their `__init__`, whose signature need not fit `args`."""

from __future__ import annotations

import contextlib
from types import MemberDescriptorType
from typing import Any

_HEAP_TYPE = 1 << 9
_HOOKS = ("__reduce__", "__reduce_ex__", "__getstate__", "__setstate__")


def _static_base(cls: type) -> Any:
    """Return the nearest base that is written in C: it decides the object's layout and its fields."""
    return next(base for base in cls.__mro__ if not base.__flags__ & _HEAP_TYPE)


def reduce_exception(
    exc: BaseException, *, plainly: bool = False, like: type[BaseException] | None = None
) -> tuple[Any, ...] | None:
    """Reduce an exception so that `__init__` is not called again; None if its type defines its own pickling.

    Args:
        plainly: disregard a pickling of its own, which has failed.
        like: the type that decides, by default its own.
    """
    cls = like or type(exc)
    base = _static_base(cls)
    if not plainly and (_has_hooks(cls, base) or (cls is base and not issubclass(cls, _NAMED))):
        return None
    state: Any = dict(vars(exc))
    if members := _members(exc, cls):
        state = state, members
    return rebuild_exception, (cls, base.__reduce__(exc)[1], {}), state, None, None, restore_exception


_NAMED = (NameError, AttributeError)
"""Built-in types whose own pickles leave attributes out."""


def _has_hooks(cls: type, base: type) -> bool:
    if any(getattr(cls, hook, None) is not getattr(base, hook, None) for hook in _HOOKS):
        return True
    return hasattr(cls, "__getnewargs__") or hasattr(cls, "__getnewargs_ex__")


def _members(exc: BaseException, cls: type) -> dict[str, Any]:
    """Return the values outside `__dict__`: of `__slots__`, and of fields in C such as `errno`, set after `__init__`."""
    found = {}
    for owner in cls.__mro__:
        if owner is BaseException:
            break
        for name, member in vars(owner).items():
            if type(member) is MemberDescriptorType and name not in found and member is not _OBJECT:
                with contextlib.suppress(AttributeError):  # it holds nothing
                    value = member.__get__(exc, cls)
                    if value is not None or owner.__flags__ & _HEAP_TYPE:  # None is the default of fields in C
                        found[name] = value
    return found


_OBJECT = vars(AttributeError).get("obj")
"""The object that lacks an attribute; Python's own pickles leave it out, too."""


def rebuild_exception(cls: type[BaseException], args: tuple[Any, ...], keywords: dict[str, Any]) -> BaseException:
    base = _static_base(cls)
    exc: BaseException = base.__new__(cls, *args)
    base.__init__(exc, *args, **keywords)
    return exc


def restore_exception(exc: BaseException, state: Any) -> None:
    fields, members = state if type(state) is tuple else (state, {})
    vars(exc).update(fields)
    for owner in type(exc).__mro__:  # past a `__setattr__` that refuses
        for name in members.keys() & vars(owner).keys():
            member = vars(owner)[name]
            if type(member) is MemberDescriptorType:
                with contextlib.suppress(AttributeError, TypeError):  # another Python may have it read-only
                    member.__set__(exc, members[name])
