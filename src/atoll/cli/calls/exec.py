"""`atoll exec CALL [CMD…]`: a shell, or a command, in the sandbox of a running call."""

from __future__ import annotations

from collections.abc import Callable

from atoll.cli import hosts
from atoll.cli.programs.shell import run_on_own_terminal
from atoll.host.exec import execute
from atoll.host.local import LocalHost


def exec_(call: str, /, *command: str) -> int:
    """Open a shell in the sandbox of a running call, or run a command there.

    It has the worker's user, variables, limits and `/data`, and sees its processes. It ends with the worker.

    Parameters
    ----------
    call: str
        The call's id, or 4 characters or more of its beginning.
    command: str
        A program and its arguments; without it a shell.
    """

    host = hosts.chosen()
    hosts.check_opens_shells(host, "atoll exec --host local CALL")
    assert isinstance(host, LocalHost)

    def run(descriptors: tuple[int, int, int], terminal: bool, on_start: Callable[[], None]) -> int:
        return execute(host.settings, call, command, descriptors, terminal=terminal, on_start=on_start)

    return run_on_own_terminal(run)
