"""Errors of usage: an unknown command or option with the one that is likely meant, another error in cyclopts' words."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from atoll.near_names import nearest

if TYPE_CHECKING:
    import cyclopts

_COMMANDS = {
    "calls list": "history ps jobs tasks runs list ls-calls",
    "calls show": "inspect describe",
    "data ls": "ls dir",
    "data rm": "rm delete remove",
    "data cp": "cp copy",
    "data get": "get download pull",
    "data put": "put upload push",
    "data sync": "sync mirror rsync",
    "data du": "du df",
    "data snapshot": "snapshot backup",
    "env list": "envs environments",
    "env build": "build",
    "env lock": "lock freeze",
    "env upgrade": "upgrade update",
    "env prune": "prune clean gc",
    "cancel": "kill abort",
    "stop": "down shutdown quit exit",
    "status": "info state",
    "shell": "sh bash ssh enter",
    "run": "exec-file start launch invoke call",
    "top": "htop monitor watch",
    "doctor": "check selftest diagnose",
    "usage": "stats statistics cost billing",
    "init": "new create quickstart",
    "completion": "complete completions",
    "version": "about",
    "auth login": "login signin connect",
    "auth logout": "logout signout",
    "auth whoami": "whoami me",
    "key list": "keys tokens",
    "users list": "user accounts",
}
"""Names that people try, by the command that does it."""

_LATER = ("node", "nodes", "deploy", "apps", "function", "crons")
"""Commands of later versions."""


def text_of(error: cyclopts.CycloptsError, commands: Iterable[str]) -> str:
    """Return the message for an error of usage, with a hint.

    Args:
        commands: the names of the commands at the top.
    """
    import cyclopts

    chain = " ".join(error.command_chain or ())
    helpful = f"`atoll {chain} --help`" if chain else "`atoll --help`"
    if isinstance(error, cyclopts.UnknownCommandError) and error.unused_tokens:
        token = error.unused_tokens[0]
        known = [name for name in error.app or () if not name.startswith("-")]
        is_top, above = not chain, f"{chain} " if chain else ""
        hint = _command(token, known, list(commands)) if is_top else _inner(above, token) or nearest(token, known)
        text = f"there is no command `{above}{token}`"
        if is_top and token in _LATER:
            return f"{text} in this version of Atoll"
        return f"{text}\nhint: did you mean `atoll {above}{hint}`?" if hint else f"{text}\nhint: see {helpful}"
    if isinstance(error, cyclopts.UnknownOptionError):
        asked = (error.token.keyword or error.token.value).partition("=")[0]
        names = [name for one in error.argument_collection for name in one.names if name.startswith("--")]
        near = nearest(asked.lstrip("-"), [name.lstrip("-") for name in names]) if asked.startswith("--") else ""
        return f"unknown option `{asked}`\nhint: " + (f"did you mean `--{near}`?" if near else f"see {helpful}")
    if chain == "secrets set" and isinstance(error, cyclopts.UnusedCliTokensError):  # the token may be the value
        return "a value is not given on the command line, which others can read\nhint: leave it out: it is asked for, or read from standard input"
    return f"{error}\nhint: see {helpful}"


def _command(token: str, known: list[str], top: list[str]) -> str:
    """Return the command that is likely meant; empty where none is."""
    for command, others in _COMMANDS.items():
        if token in others.split() and command.split()[0] in top:
            return command
    return nearest(token, known)


def _inner(above: str, token: str) -> str:
    """Return the command of a group that another name is for."""
    found = (command for command, others in _COMMANDS.items() if token in others.split())
    return next((command.removeprefix(above) for command in found if command.startswith(above)), "")
