"""Objects of which a process has one: each becomes the reader's own, by its name.

Streams, `sys.modules`, the hidden instance behind `random.random` and the like belong to a process. A program that has
imported one `from` its module means the process's own wherever it runs.
"""

from __future__ import annotations

import importlib
import operator
import os
import sys
import threading
from types import SimpleNamespace
from typing import Any

Environ = os._Environ
"""The type of `os.environ` and `os.environb`."""
VARIABLES: Any = getattr(vars(os)["environ"], "_data", None)
"""The dict in these two, which is `posix.environ` as well."""
_VARIABLES_OPCODES = b"\x80\x05catoll.payload.reducers.singletons\nVARIABLES\n\x940"
"""Opcodes that put the reader's own variables at the start of its memo, and leave nothing on its stack.

They do not say `environ`: a function whose pickle has this word may set variables (`sdk.call`).
"""

_NAMES = (
    ("sys", "__stdin__.buffer", "__stdin__", "__stdout__.buffer", "__stdout__", "__stderr__.buffer", "__stderr__"),
    ("sys", "stdin.buffer", "stdin", "stdout.buffer", "stdout", "stderr.buffer", "stderr"),  # the last name counts
    ("sys", "flags", "version_info", "float_info", "int_info", "hash_info", "thread_info", "implementation"),
    ("random", "_inst"),
    ("logging", "lastResort", "_defaultFormatter"),
    ("asyncio.events", "_event_loop_policy"),
    ("numpy.random.mtrand", "_rand"),
    ("secrets", "_sysrand"),
)
_CONTAINERS = (
    ("sys", "path", "modules", "meta_path", "path_hooks", "path_importer_cache", "warnoptions"),
    ("warnings", "filters"),
    ("builtins", "__dict__"),
    ("os", "environ._data"),
)


Names = dict[int, tuple[Any, tuple[str, str]]]
"""By `id`, so that no object is asked whether it equals another: the object, its module and its name there."""

_found: tuple[Any, Names, Names] = (), {}, {}


def names() -> Names:
    """Return the objects of which this process has one."""
    return _current()[1]


def containers() -> Names:
    """Return those that are lists and dicts, which a pickler copies without asking."""
    return _current()[2]


def name_of(value: Any) -> tuple[str, str] | None:
    """Return the module and the name of an object of which this process has one; None for any other object."""
    found = names().get(id(value)) or containers().get(id(value))
    return found[1] if found is not None else None


def _current() -> tuple[Any, Names, Names]:
    global _found
    filters = getattr(sys.modules.get("warnings"), "filters", None)  # another list in `catch_warnings`
    now = (id(sys.stdin), id(sys.stdout), id(sys.stderr), id(sys.path), id(filters), len(sys.modules))
    if _found[0] != now:  # looked up for each pickle, this would cost more than the pickle
        found = _named(_NAMES)
        main = threading.main_thread()
        found[id(main)] = main, ("threading", "main_thread()")
        _found = now, found, _named(_CONTAINERS)
    return _found


def _named(table: tuple[tuple[str, ...], ...]) -> Names:
    found: Names = {}
    for module, *parts in table:
        owner = sys.modules.get(module)
        for name in parts:
            try:
                value = operator.attrgetter(name)(owner)
            except AttributeError:  # the module is not imported; a notebook's stream has no buffer
                continue
            if value is not None:
                found[id(value)] = value, (module, name)
    return found


def begin(pickler: Any, file: Any, result: bool) -> None:
    """Have a new pickler that writes to `file` know the dict of variables already; those of a result may travel.

    The C pickler copies a dict without asking, unless its memo has it.
    """
    if not result and VARIABLES is not None:
        file.write(_VARIABLES_OPCODES)
        pickler.memo = {id(VARIABLES): (0, VARIABLES)}


def rebuild_singleton(module: str, name: str) -> Any:
    """Return this process's own object of that name; a name with `()` is called."""
    if name == "_event_loop_policy":  # made by its first use
        module, name = "asyncio", "get_event_loop_policy()"
    owner = importlib.import_module(module)
    found = operator.attrgetter(name.removesuffix("()"))(owner)
    return found() if name.endswith("()") else found


def name_containers(state: dict[str, Any]) -> None:
    """Put names in place of a process's lists and dicts among the globals and defaults in a function's state."""
    single = containers()
    for part in ("__globals__", "__kwdefaults__", "__defaults__"):
        values = state[part]
        if not values or not any(
            id(value) in single for value in (values.values() if type(values) is dict else values)
        ):
            continue
        if type(values) is dict:  # a new one: that of the defaults is the function's own
            state[part] = {name: _as_named(value, single) for name, value in values.items()}
        else:
            state[part] = tuple(_as_named(value, single) for value in values)


def _as_named(value: Any, single: Names) -> Any:
    found = single.get(id(value))
    return value if found is None else Named(found[1])


class Named:
    """Stands in a pickle for a list or dict of which a process has one."""

    def __init__(self, name: tuple[str, str]) -> None:
        self._name = name

    def __reduce__(self) -> tuple[Any, ...]:
        return rebuild_singleton, self._name


def reduce_environ(environ: Any, result: bool) -> tuple[Any, ...]:
    """Reduce `os.environ`, `os.environb` or a copy, which shares the variables or sets them too."""
    if result:
        return dict, (dict(environ),)
    return getattr, (os, environ_name(environ))


def environ_name(environ: Any) -> str:
    """Return the name in `os` of an object of type `Environ`."""
    return "environb" if environ.decodevalue is bytes else "environ"


ASSERTIONS = "_pytest.assertion.rewrite"
"""The module of pytest that its rewritten `assert` statements call when they fail."""


def rebuild_assertions() -> Any:
    """Return that module, or without pytest a stand-in that compares in no detail."""
    try:
        return importlib.import_module(ASSERTIONS)
    except ImportError:
        return SimpleNamespace(
            _saferepr=repr,
            _format_assertmsg=str,
            _should_repr_global_name=lambda _: False,
            _format_boolop=lambda parts, is_or: "(" + (" or " if is_or else " and ").join(parts) + ")",
            _call_reprcompare=lambda _ops, results, texts, _objects: next(
                (text for result, text in zip(results, texts, strict=False) if not result), texts[-1]
            ),
            _format_explanation=lambda text: text.partition("\n")[0],
        )
