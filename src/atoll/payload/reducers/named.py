"""Functions of Atoll's as the names that they have, for any pickler: a process pool of the caller's imports them.

`pickle` writes `module` and qualified name, and reads them by an import, so the name must lead to the very object. A
cloudpickle, which other processes read that need not have the caller's modules, gets the function by value.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

from atoll.errors import SerializationError

_CLOUDPICKLE = "cloudpickle.cloudpickle"


def reduce_by_name(obj: Any, kind: str, by_value: Callable[[], tuple[Any, ...]]) -> str | tuple[Any, ...]:
    """Reduce a function of Atoll's as `__reduce__` does; called from there.

    Args:
        kind: of the object, for the error.
        by_value: gives the reduction for a cloudpickle.

    Raises:
        SerializationError: no name leads to this very object.
    """
    if _asked_by_cloudpickle():
        return by_value()
    module, qualname = obj.__module__, obj.__qualname__
    if _found(module, qualname) is obj:
        return qualname  # type: ignore[no-any-return]
    others = [other for name, other in list(sys.modules.items()) if name not in (module, "__mp_main__")]
    for owner in (sys.modules.get(module), *others):
        for name, value in list(getattr(owner, "__dict__", {}).items()):
            if value is obj and owner is not None:
                return name if owner.__name__ == module else (rebuild_named, (owner.__name__, name))
    reason = f"`{module}.{qualname}` is another object"
    if "<locals>" in qualname:
        reason = f"`{qualname}` is defined inside a function"
    elif "<lambda>" in qualname:
        reason = "a lambda has no name of its own"
    raise SerializationError(
        f"this {kind} cannot be pickled by its name: {reason}",
        hint="bind it to a name at the top level of a module that the other process can import",
    )


def _asked_by_cloudpickle() -> bool:
    """Return whether the pickler that has called `__reduce__` is a cloudpickle, of whichever package."""
    frame = sys._getframe(3)  # past this function, `reduce_by_name` and `__reduce__`
    name = frame.f_globals.get("__name__")
    return isinstance(name, str) and (name == _CLOUDPICKLE or name.endswith("." + _CLOUDPICKLE))


def _found(module: str, qualname: str) -> Any:
    found: Any = sys.modules.get(module)
    for part in qualname.split("."):
        found = getattr(found, part, None)
    return found


def rebuild_named(module: str, name: str) -> Any:
    """Return the object that a module has by this name."""
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found
