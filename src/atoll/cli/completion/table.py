"""The command table as data for scripts of shells: commands, options, and the kinds of values that they take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from atoll.cli import hosts
from atoll.model.records import OUTCOMES

if TYPE_CHECKING:
    import cyclopts

NOTHING, FILE, DIRECTORY = "-", "file", "directory"
"""Kinds that a shell completes by itself; `=A B` are words; the others are those of `completion_values`."""

SHELLS = ("bash", "zsh", "fish")

_POSITIONAL = {
    "target": "target",
    "key": "environment",
    "keys": "environment",
    "call": "call",
    "calls": "call",
    "id": "call",
    "paths": "volume",
    "remote": "volume",
    "local": DIRECTORY,
    "directory": DIRECTORY,
    "old": "snapshot",
    "new": "snapshot",
    "names": "snapshot",
    "programs": FILE,
    "source": FILE,
    "shell": "=" + " ".join(SHELLS),
}
_OF_COMMAND = {
    ("cancel", "calls"): "live-call",
    ("exec", "call"): "live-call",
    ("stack", "call"): "live-call",
    ("attach", "call"): "detached-call",
    ("calls result", "call"): "detached-call",
    ("calls forget", "call"): "detached-call",
    ("data put", "paths"): FILE,
    ("data get", "paths"): "volume",
    ("data restore", "name"): "snapshot",
    ("data snapshot", "name"): NOTHING,
    ("secrets set", "name"): NOTHING,
    ("secrets delete", "name"): NOTHING,
    ("users add", "name"): NOTHING,
    ("users remove", "name"): "user",
    ("users set-quota", "name"): "user",
    ("key revoke", "key"): "key",
    ("node join", "url"): NOTHING,
    ("nodes add", "machines"): NOTHING,
    ("nodes drain", "name"): "node",
    ("nodes cordon", "name"): "node",
    ("nodes uncordon", "name"): "node",
    ("nodes remove", "name"): "node",
}
"""Kinds of positional values, by name, and for commands where the name says too little."""

_OPTION = {
    "--path": "volume",
    "--function": "call-function",
    "--outcome": "=" + " ".join(OUTCOMES),
    "--machine-type": "machine-type",
    "--output": FILE,
    "--ca-file": FILE,
    "--user": "user",
    "--scope": "=ADMIN API",
    "--html": FILE,
    "--tls-cert": FILE,
    "--tls-key": FILE,
    "--home": DIRECTORY,
    "--from-file": FILE,
    "--engine": "=machines ray",
    "--token-file": FILE,
    "--by": "=function day user outcome environment",
}


class Command(NamedTuple):
    """One command.

    Args:
        path: its words after the program's name.
        commands: names and summaries of the commands below it.
        options: names, and a few words about each.
        takes: options that take a value, and its kind.
        positional: kinds of the values without a name; the last goes on.
    """

    path: str
    commands: tuple[tuple[str, str], ...] = ()
    options: tuple[tuple[str, str], ...] = ()
    takes: tuple[tuple[str, str], ...] = ()
    positional: tuple[str, ...] = ()


def commands(app: cyclopts.App, path: str = "") -> list[Command]:
    """Return a table's commands, the root first."""
    names = [name for name in app if not name.startswith("-")]
    if names:
        below = tuple((name, _first_line(app[name].help)) for name in names)
        found = [Command(path, commands=below, options=(("--help", ""), *((("--version", ""),) if not path else ())))]
        for name in names:
            found += commands(app[name], f"{path} {name}".strip())
        return found
    options: list[tuple[str, str]] = []
    takes: list[tuple[str, str]] = []
    if path.partition(" ")[0] in hosts.COMMANDS:  # taken before the table's
        options.append(("--host", "Address of a server, or `local`."))
        takes.append(("--host", "=local"))
    positional: list[str] = []
    for argument in app.assemble_argument_collection():
        if argument.parameter.show is False:
            continue
        spelled = [name for name in argument.names if name.startswith("-") and not name.startswith("--no-")]
        if not spelled:
            positional.append(_kind(path, argument.names[0].lower()))
            continue
        about = _first_line(argument.parameter.help)
        options += [(name, about) for name in spelled]
        if argument.hint is not bool:
            kind = next((_OPTION[name] for name in spelled if name in _OPTION), NOTHING)
            takes += [(name, kind) for name in spelled]
    return [Command(path, (), (*options, ("--help", "")), tuple(takes), tuple(positional))]


def _kind(path: str, name: str) -> str:
    return _OF_COMMAND.get((path, name)) or _POSITIONAL.get(name, NOTHING)


def _first_line(text: Any) -> str:
    return str(text or "").strip().partition("\n")[0][:100]
