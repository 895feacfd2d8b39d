"""`atoll run FILE.py::FUNC --arg value`."""

from __future__ import annotations

import traceback
from typing import Annotated, Any

import cyclopts

from atoll import errors
from atoll.cli import target as program
from atoll.cli.terminal import echo_lines, write_result
from atoll.sdk import run_by_name


def run(
    target: str,
    /,
    *arguments: Annotated[str, cyclopts.Parameter(allow_leading_hyphen=True, show=False)],
) -> int:
    """Run one function in its environment; its options come from its signature.

    The result is printed unless it is None. See a function's options with `atoll run FILE.py::FUNC --help`.

    Parameters
    ----------
    target: str
        FILE.py::FUNC, or FILE.py when it defines one isolated function.
    arguments: str
        The function's own options: --name value, or values in order.
    """
    found = program.find(target)
    function = found.function
    parser = cyclopts.App(
        name=f"atoll run {target}",
        help=function.__doc__ or "",
        help_format="plaintext",
        version_flags=[],
        result_action="return_value",
    )
    parser.default(function.__wrapped__)
    try:
        command, bound, _ = parser.parse_args(list(arguments), exit_on_error=False, print_error=True)
    except cyclopts.CycloptsError:
        return 2
    if command is not parser.default_command:
        command(*bound.args, **bound.kwargs)  # --help
        return 0
    if run_by_name.needed(function.options):
        return _run_by_name(found, bound.args, bound.kwargs)
    try:
        result = function(*bound.args, **bound.kwargs)
        if function.is_generator:
            for item in result:
                write_result(item)
            return 0
    except errors.AtollError:
        raise
    except Exception:
        echo_lines(traceback.format_exc().rstrip("\n"), error=True)
        return 1
    if result is not None:
        write_result(result)
    return 0


def _run_by_name(found: program.Found, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Run a function that asks for another Python than this one."""
    file = str(found.module.__file__)
    try:
        run_by_name.run(found.function, found.module.__name__, file, found.name, args, kwargs)
    except errors.RemoteError as error:
        echo_lines(error.traceback_text.rstrip() or str(error), error=True)
        return 1
    return 0
