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
from atoll.payload.program import imports

Modules = dict[str, ModuleType]

FIELDS = ("__name__", "__package__", "__path__", "__file__", "__doc__")
"""Names of a module that travel with each of its functions."""
_PYTHONS = frozenset(
    {
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
"""Asks the caller for the value of a module's name; raises AttributeError where there is none, and `Unsendable`."""
list_names: Callable[[str], Iterable[str]] | None = None
"""Asks the caller for the names of a module."""
child_spec: Callable[[ModuleType], ModuleSpec | None] | None = None
"""Returns the spec of a module that a child process may import in place of `__main__`."""
_modules: Modules | None = None
"""The modules of the call's program; None where pickles belong to no program."""
_asked: list[tuple[dict[str, Any], str]] = []


class Unsendable(AttributeError):
    """A name that the caller has, or may have, and that it does not send."""


class ProgramModule(ModuleType):
    """A module with the top-level names of the caller's module; those that did not come yet are asked for."""

    def __getattr__(self, name: str) -> Any:
        namespace = vars(self)
        own = namespace["__name__"]
        if name in _PYTHONS and not (name == "__file__" and own == "__main__"):
            if name == "__path__" and own != "__main__":
                return _package_path(own)
            raise AttributeError(f"module {own!r} has no attribute {name!r}", name=name, obj=self)
        try:
            value = _missing(own, name)
        except AttributeError:
            if name != "__all__" or not (names := [one for one in dir(self) if not one.startswith("_")]):
                raise
            value = names
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


def _missing(module: str, name: str) -> Any:
    """Return a value that the caller has, or that the module's file gives where the caller's cannot be sent."""
    if ask is None:
        raise AttributeError(f"module {module!r} has no attribute {name!r}", name=name)
    try:
        return ask(module, name)
    except Unsendable as refused:
        if module != "__main__":
            with contextlib.suppress(ImportError):
                return getattr(imports.from_file(module), name)
        raise AttributeError(str(refused), name=name) from None


def _package_path(module: str) -> Any:
    """Return where the modules of a package of the program are here."""
    spec = imports.spec_of(module)
    if spec is None or spec.submodule_search_locations is None:
        raise AttributeError(f"module {module!r} has no attribute '__path__'", name="__path__")
    return spec.submodule_search_locations


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
        if name != "__main__":
            imports.uninstall(name, module)
    _modules = modules
    for name, module in modules.items():
        if name != "__main__":
            imports.install(name, module)
    sys.modules["__main__"] = modules.get("__main__") or ModuleType("__main__")


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
        imports.install(name, module)
    namespace = vars(module)
    if name != "__main__":
        fields = {field: value for field, value in fields.items() if field != "__path__"}
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


def _at(module: ModuleType, qualname: str) -> Any:
    """Return what a module has at this place without being asked for it; None for nothing."""
    found: Any = module
    for part in qualname.split("."):
        found = getattr(found, "__dict__", {}).get(part)
    return found


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
        if module is not None and _at(module, cls.__qualname__) is cls:
            self._known.append(cls)
        return cls

    def _knows(self, cls: Any) -> bool:
        return any(known is cls for known in self._known)
