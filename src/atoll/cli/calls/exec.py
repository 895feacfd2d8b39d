"""`atoll exec CALL [CMD…]`: a shell, or a command, in the sandbox of a running call."""

from __future__ import annotations

from collections.abc import Callable

from atoll.cli import hosts
from atoll.cli.programs.shell import run_on_own_streams, run_on_own_terminal


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

    def run(descriptors: tuple[int, int, int], terminal: bool, on_start: Callable[[], None]) -> int:
        return host.run_command(call, command, descriptors, terminal=terminal, on_start=on_start)

    return run_on_own_streams(run) if hosts.server_of(host) is not None else run_on_own_terminal(run)
