"""The host that a command asks: that of `--host`, else the server that one is logged in to, else this machine.

`local` is the name of this machine, for `--host` and for `ATOLL_HOST`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from atoll import errors
from atoll.terminal_text import printable

if TYPE_CHECKING:
    from atoll.host.contract import Host
    from atoll.host.remote.server import Server

COMMANDS = (
    *(
        "alias",
        "apps",
        "attach",
        "calls",
        "cancel",
        "crons",
        "data",
        "deploy",
        "env",
        "exec",
        "function",
        "logs",
        "queue",
        "run",
        "shell",
        "stack",
        "status",
        "top",
        "usage",
    ),
)
"""Commands that take `--host`."""
_BEFORE_TARGET = ("exec", "run")
"""Those whose further options are of a command or a function."""

_told: set[str] = set()


def take_option(arguments: list[str]) -> list[str]:
    """Choose the host that `--host HOST` names, and return the other arguments; exit with 2 on wrong usage."""
    if arguments[:1] and arguments[0] in COMMANDS:
        end = arguments.index("--") if "--" in arguments else len(arguments)
        for position in range(1, end):
            name, equals, host = arguments[position].partition("=")
            if name == "--host":
                count = 1 if equals else 2
                _choose(host if equals else "".join(arguments[position + 1 : min(position + 2, end)]))
                return arguments[:position] + arguments[position + count :]
            if arguments[0] in _BEFORE_TARGET and not name.startswith("-"):
                break
    return arguments


def _choose(host: str) -> None:
    from atoll.cli.tables import wrong_usage
    from atoll.host.default import choose

    if not host or host.startswith("-"):
        raise SystemExit(wrong_usage("--host needs the address of a server, or `local`"))
    choose(host)


def chosen() -> Host:
    """Return the host.

    Raises:
        NotAuthorized: a server is named, and no key for it is known.
    """
    from atoll.host.default import default_host

    return default_host()


def server_of(host: Any) -> Server | None:
    """Return the server that a host is; None for this machine."""
    found: Server | None = getattr(host, "server", None)
    return found


def ask(name: str, arguments: dict[str, Any], host: Host | None = None) -> dict[str, Any]:
    """Return the answer of the host to a request; a line on standard error names machines that have no part in it."""
    found = (host or chosen()).request(name, arguments)
    tell_away(found, "what it has is not shown")
    return found


def tell_away(answer: Mapping[str, Any], means: str) -> None:
    """Print on standard error the machines of a server that are away, if an answer names any; once for each command.

    Args:
        means: the consequence, about one machine.
    """
    from atoll.cli.terminal import echo

    for name in answer.get("away", ()):
        if name not in _told:
            _told.add(name)
            echo(f"note: the machine `{printable(str(name))}` is away: {means}", error=True)


def ask_running(name: str, arguments: dict[str, Any], host: Host | None = None) -> dict[str, Any] | None:
    """Return the answer of the host to a request; None where it is this machine, and no daemon runs."""
    from atoll.host.local import LocalHost

    found = host or chosen()
    if isinstance(found, LocalHost):
        return found.request_running(name, arguments)
    return found.request(name, arguments)


def whoami(host: Any, seconds: float | None = None) -> dict[str, Any]:
    """Return the user and the key by which a server knows this user, and its version.

    Args:
        seconds: for the connection, and for the answer.
    """
    found = host.server.ask("GET", "/v1/whoami", seconds=seconds)
    return found if isinstance(found, dict) else {}


def tell_server(host: Host | None = None) -> None:
    """Print on standard error the server that a list comes from; nothing for this machine."""
    from atoll.cli.terminal import echo

    server = server_of(host or chosen())
    if server is not None:
        echo(f"on {server.url}", error=True)


def tell_local(about: str) -> None:
    """Print on standard error that a command is about this machine alone, where one is logged in to a server."""
    from atoll.cli.terminal import echo

    with contextlib.suppress(errors.AtollError, ValueError):  # such a command works without the login
        server = server_of(chosen())
        if server is not None:
            echo(f"note: {about} of this machine, and not of {server.url}, where you are logged in", error=True)
