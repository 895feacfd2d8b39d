"""`atoll run FILE.py::FUNC --arg value`, also `package.module::FUNC`."""

from __future__ import annotations

import contextlib
from typing import Annotated, Any

import cyclopts

from atoll import errors
from atoll.cli.programs import parameters
from atoll.cli.programs import target as program
from atoll.cli.terminal import echo, echo_exception, echo_lines, write_result
from atoll.sdk import run_by_name
from atoll.sdk.display.output import ReaderGone


def run(
    target: str,
    /,
    *arguments: Annotated[str, cyclopts.Parameter(allow_leading_hyphen=True, show=False)],
    module: Annotated[bool, cyclopts.Parameter(name=("--module", "-m"), negative="")] = False,
    detach: Annotated[bool, cyclopts.Parameter(negative="")] = False,
    notify: Annotated[bool, cyclopts.Parameter(negative="")] = False,
) -> int:
    """Run one function in its environment; its options come from its signature.

    The result is printed unless it is None. See a function's options with `atoll run FILE.py::FUNC --help`, and the
    functions of a file with `atoll run FILE.py --help`. The file is imported as Python would, up to its end: calls of
    isolated functions belong below `if __name__ == "__main__":`.

    Parameters
    ----------
    target: str
        FILE.py::FUNC or package.module::FUNC; without FUNC when it defines one isolated function.
    arguments: str
        The function's own options: --name value, or values in order.
    module: bool
        Take the target for the name of a module, as `python -m` does.
    detach: bool
        Begin the call, print its id and end: the call goes on without this terminal.
    notify: bool
        Tell of the end of a detached call, or of one that took long: on the desktop, or by the command of the settings.
    """
    asks_for_help = arguments[:1] in (("--help",), ("-h",))
    if asks_for_help and "::" not in target and _list(target, module):
        return 0
    found = program.find(target, by_name=module, whole=not asks_for_help)
    function = found.function.on(on_done="notify") if notify else found.function
    parser = parameters.parser(function, f"atoll run {target}")
    try:
        command, bound, _ = parser.parse_args(list(arguments), exit_on_error=False, print_error=True)
    except cyclopts.CycloptsError:
        return 2
    if command is not parser.default_command:
        command(*bound.args, **bound.kwargs)  # --help
        return 0
    if detach:
        from atoll.cli.detached import say_spawned

        say_spawned(function.spawn(*bound.args, **bound.kwargs))
        return 0
    if run_by_name.needed(function.options):
        return _run_by_name(found._replace(function=function), bound.args, bound.kwargs)
    try:
        result = function(*bound.args, **bound.kwargs)
        if function.is_generator:
            for item in result:
                write_result(item)
            return 0
    except (errors.AtollError, ReaderGone):
        raise
    except Exception as error:
        echo_exception(error)
        return 1
    if result is not None:
        write_result(result)
    return 0


def _list(target: str, by_name: bool) -> bool:
    """Print the functions of a program; return False where it has just one, whose own help is meant."""
    functions = program.listed(target, by_name=by_name)
    if len(functions) == 1:
        return False
    echo(f"isolated functions of {target}:" if functions else f"{target} defines no isolated function")
    for name, function in functions.items():
        summary = (function.__doc__ or "").strip().partition("\n")[0]
        echo(f"  {target}::{name}" + (f"  {summary}" if summary else ""))
    return True


def _run_by_name(found: program.Found, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Run a function that asks for another Python than this one."""
    from atoll.sdk.display.announce import announced  # for few functions

    file, function = str(found.module.__file__), found.function
    told = announced(function.host, found.name, "") if function.options.on_done else contextlib.nullcontext()
    try:
        with told:
            run_by_name.run(function, found.module.__name__, file, found.name, args, kwargs)
    except errors.RemoteError as error:
        echo_lines(error.traceback_text.rstrip() or str(error), error=True)
        return 1
    return 0
