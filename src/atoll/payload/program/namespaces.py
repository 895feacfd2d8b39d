"""Namespaces of the caller's program, rebuilt where its functions run; pickles name the functions of this module.

Theory of operation. All functions of one module share one dict of globals, also where they come in several pickles:
the call's function, its arguments, names that are asked for later. In a worker this dict belongs to a module that
`sys.modules` holds under the program's name for it, `__main__` above all. Its missing names are asked of the caller
while a call runs (`ask`). The first value of a name stays for the call: a later pickle must not undo what the
function has bound. The next call begins with modules of its own.

Elsewhere, in a caller that reads a pickle, functions of one pickle share a dict that belongs to no module.
"""

from __future__ import annotations

import contextlib
import pickle
import sys
from collections.abc import Callable, Iterable
from importlib.machinery import ModuleSpec
from types import FunctionType, ModuleType
from typing import Any

from atoll.payload.private_cloudpickle import NAME, cloudpickle

Modules = dict[str, ModuleType]

FIELDS = ("__name__", "__package__", "__path__", "__file__", "__doc__")
"""Names of a module that travel with each of its functions."""
_PYTHONS = frozenset(
    {
        "__all__",
        "__bases__",
        "__cached__",
        "__class_getitem__",
        "__dict__",
        "__file__",
        "__getattr__",
        "__loader__",
        "__name__",
        "__path__",
        "__qualname__",
        "__signature__",
        "__spec__",
        "__warningregistry__",
        "__wrapped__",
    }
)
"""Names that Python and its libraries look for in any module, and that are no names of a program."""

ask: Callable[[str, str], Any] | None = None
"""Asks the caller for the value of a module's name; raises AttributeError with the reason where there is none."""
list_names: Callable[[str], Iterable[str]] | None = None
"""Asks the caller for the names of a module."""
child_spec: Callable[[ModuleType], ModuleSpec | None] | None = None
"""Returns the spec of a module that a child process may import in place of `__main__`."""
_modules: Modules | None = None
"""The modules of the call's program; None where pickles belong to no program."""
_asked: list[tuple[dict[str, Any], str]] = []


class ProgramModule(ModuleType):
    """A module with the top-level names of the caller's module; those that did not come yet are asked for."""

    def __getattr__(self, name: str) -> Any:
        namespace = vars(self)
        if ask is None or name in _PYTHONS:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}", name=name, obj=self)
        value = ask(namespace["__name__"], name)
        value = namespace.setdefault(name, value)
        _asked.append((namespace, name))
        return value

    def __dir__(self) -> list[str]:
        names = set(vars(self))
        if list_names is not None:
            names.update(list_names(vars(self)["__name__"]))
        return sorted(names)

    def _spec(self) -> ModuleSpec | None:
        # `multiprocessing` and `loky` have their children import the module that this names.
        if child_spec is not None and sys._getframe(1).f_code.co_name == "get_preparation_data":
            return child_spec(self)
        found: ModuleSpec | None = vars(self).get("__spec__")
        return found

    def _set_spec(self, spec: ModuleSpec | None) -> None:
        vars(self)["__spec__"] = spec

    __spec__ = property(_spec, _set_spec)


def use_modules() -> None:
    """Have this process run a program's functions: from now on its modules are in `sys.modules`."""
    enter({})


def renew() -> Modules | None:
    """Begin with modules that nothing has been bound in; return them, for `enter`."""
    if _modules is not None:
        enter({"__main__": ProgramModule("__main__")})
    return _modules


def enter(modules: Modules | None) -> None:
    """Go on with these modules, without the names that were asked for."""
    global _modules
    if _asked:
        for namespace, name in _asked:
            namespace.pop(name, None)
        _asked.clear()
    if modules is _modules or modules is None:
        return
    for name, module in (_modules or {}).items():
        if sys.modules.get(name) is module:
            del sys.modules[name]
    _modules = modules
    for name, module in modules.items():
        if name == "__main__":
            sys.modules[name] = module
    sys.modules.setdefault("__main__", ModuleType("__main__"))


def adopt(main: ModuleType) -> None:
    """Have this module be the program's `__main__`, in a child process that has got it from elsewhere."""
    global _modules
    if _modules is None:
        _modules = {"__main__": main}


def current(name: str) -> ModuleType | None:
    """Return the module of this name of the program."""
    return None if _modules is None else _modules.get(name)


# --- rebuilding: pickles name these functions, so they keep their names and signatures --------------------------


def program_namespace(name: str, fields: dict[str, Any]) -> dict[str, Any]:
    """Return the globals of a module of the program."""
    if _modules is None:
        return dict(fields)
    module = _modules.get(name)
    if module is None:
        module = _modules[name] = ProgramModule(name)
    namespace = vars(module)
    for field, value in fields.items():
        if namespace.get(field) is None:
            namespace[field] = value
    return namespace


def restore_function(function: FunctionType, state: tuple[dict[str, Any], dict[str, Any]]) -> None:
    """Set a function's state; its globals get those values that they do not have yet."""
    attributes, slots = state
    namespace = function.__globals__
    for name, value in slots["__globals__"].items():
        namespace.setdefault(name, value)
    cloudpickle()._function_setstate(function, (attributes, {**slots, "__globals__": {}}))


def with_names(value: Any, names: list[tuple[dict[str, Any], dict[str, bytes]]]) -> Any:
    """Return `value`, after its namespaces have got names that its code uses as text only."""
    for namespace, pickles in names:
        for name, data in pickles.items():
            if name not in namespace:
                with contextlib.suppress(Exception):  # a module that the environment lacks: the code may not use it
                    namespace.setdefault(name, pickle.loads(data))
    return value


class Unpickler(pickle.Unpickler):
    """Unpickles a value for a program that runs: classes that it has already stay as they are."""

    def __init__(self, file: Any, buffers: Iterable[Any]) -> None:
        super().__init__(file, buffers=buffers)
        self._known: list[Any] = []

    def find_class(self, module: str, name: str) -> Any:
        if module == NAME:
            own = cloudpickle()
            if name == "_class_setstate":
                return lambda cls, state: cls if self._knows(cls) else own._class_setstate(cls, state)
            if name in ("_make_skeleton_class", "_make_skeleton_enum"):
                make = getattr(own, name)
                return lambda *args: self._make_class(make, args)
        return super().find_class(module, name)

    def _make_class(self, make: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        cls = make(*args)
        module = current(cls.__module__)
        if module is not None and vars(module).get(cls.__name__) is cls:
            self._known.append(cls)
        return cls

    def _knows(self, cls: Any) -> bool:
        return any(known is cls for known in self._known)
