"""A function in a user's program: `FILE.py`, `FILE.py::FUNC`, `package.module::FUNC`."""

from __future__ import annotations

from types import ModuleType
from typing import Any, NamedTuple

from atoll.cli.programs.program import TargetError, load
from atoll.cli.terminal import echo
from atoll.sdk.decorator import isolated
from atoll.sdk.function import IsolatedFunction


class Found(NamedTuple):
    """A function, the module of the program, and the function's name in it."""

    function: IsolatedFunction[..., Any]
    module: ModuleType
    name: str


def described(target: str, *, by_name: bool = False) -> IsolatedFunction[..., Any]:
    """As `find`, for commands that look at a function and do not run it: of a program that calls it, too.

    Such a program is read up to its first unguarded call, and the user is told.
    """
    function: IsolatedFunction[..., Any] = find(target, by_name=by_name, whole=False).function
    return function


def find(target: str, *, by_name: bool = False, whole: bool = True) -> Found:
    """Import the program of `TARGET[::FUNC]` and return the function; a plain one is isolated with the defaults.

    Without FUNC the program must define exactly one isolated function.

    Args:
        by_name, whole: as `program.load` takes them.

    Raises:
        TargetError: there is no such program or function, or the choice is not clear.
    """
    file, _, name = target.partition("::")
    module, note = load(file, by_name=by_name, whole=whole)
    found = isolated_functions(module)
    if not name:
        if len(found) != 1:
            raise TargetError(
                f"`{file}` defines {len(found) or 'no'} isolated function{'s' if found else ''}",
                hint=f"name one: {', '.join(sorted(found)) or f'`{file}::FUNC`'}",
            )
        (name,) = found
    value = getattr(module, name, None)
    if value is None or not callable(value):
        known = ", ".join(sorted(found)) or "none"
        hint = f"isolated functions there: {known}"
        raise TargetError(f"`{file}` has no function `{name}`", hint=f"{hint}; {note}" if note else hint)
    if note:
        echo(f"note: {note}", error=True)
    return Found(value if isinstance(value, IsolatedFunction) else isolated(value), module, name)


def isolated_functions(module: ModuleType) -> dict[str, IsolatedFunction[..., Any]]:
    """Return a program's isolated functions by their names."""
    return {key: value for key, value in vars(module).items() if isinstance(value, IsolatedFunction)}


def listed(target: str, *, by_name: bool = False) -> dict[str, IsolatedFunction[..., Any]]:
    """Return a program's isolated functions by their names, up to its first unguarded call.

    Where there is another number of them than one, the user is told of such a call.

    Raises:
        TargetError: there is no such program, or it fails.
    """
    module, note = load(target, by_name=by_name, whole=False)
    found = isolated_functions(module)
    if note and len(found) != 1:
        echo(f"note: {note}", error=True)
    return found
