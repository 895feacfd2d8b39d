"""Finding a function in a user's file: `FILE.py` or `FILE.py::FUNC`."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from atoll.errors import CallerError
from atoll.sdk.function import IsolatedFunction, isolated


class TargetError(CallerError):
    """The file or the function that a command names cannot be used: wrong usage."""

    code = "target"


class Found(NamedTuple):
    """A function, the module of the named file, and the function's name in it."""

    function: IsolatedFunction[..., Any]
    module: ModuleType
    name: str


def load(target: str) -> IsolatedFunction[..., Any]:
    """As `find`, the function only."""
    function: IsolatedFunction[..., Any] = find(target).function
    return function


def find(target: str) -> Found:
    """Import the file of `FILE.py[::FUNC]` and return the function; a plain one is isolated with the defaults.

    Without FUNC the file must define exactly one isolated function.

    Raises:
        TargetError: there is no such file or function, or the choice is not clear.
    """
    file, _, name = target.partition("::")
    module = _import(Path(file))
    found = {key: value for key, value in vars(module).items() if isinstance(value, IsolatedFunction)}
    if not name:
        if len(found) == 1:
            (name,) = found
            return Found(found[name], module, name)
        if not found:
            raise TargetError(f"`{file}` defines no isolated function", hint=f"name one: `{file}::FUNC`")
        raise TargetError(
            f"`{file}` defines {len(found)} isolated functions", hint=f"name one: {', '.join(sorted(found))}"
        )
    value = getattr(module, name, None)
    if isinstance(value, IsolatedFunction):
        return Found(value, module, name)
    if value is None or not callable(value):
        known = ", ".join(sorted(found)) or "none"
        raise TargetError(f"`{file}` has no function `{name}`", hint=f"isolated functions there: {known}")
    return Found(isolated(value), module, name)


def _import(path: Path) -> ModuleType:
    if not path.is_file():
        raise TargetError(f"`{path}` is not a file", hint="give the path of a Python file: `FILE.py::FUNC`")
    path = path.resolve()
    sys.path.insert(0, str(path.parent))
    name = path.stem if path.stem.isidentifier() and path.stem not in sys.modules else "__atoll_program__"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise TargetError(f"`{path}` is not a Python file", hint="its name must end in `.py`")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        theirs = error.__traceback__
        while theirs is not None and theirs.tb_frame.f_code.co_filename != str(path):
            theirs = theirs.tb_next  # the frames before are Atoll's own
        text = "".join(traceback.format_exception(error.with_traceback(theirs)))
        raise TargetError(f"`{path}` cannot be imported\n{text.rstrip()}", hint="mend the file") from None
    return module
