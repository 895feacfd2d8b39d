"""Values for the completion of a word: functions of a file, environments, snapshots, paths of the volume, calls.

A shell waits for the answer at each press of the key. So nothing here starts a daemon, runs a program of the user, or
imports more than the standard library; all is read from the disk, bounded, and an error is no answer. Values that a
terminal could misunderstand are left out.
"""

from __future__ import annotations

import ast
import contextlib
import itertools
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ANSWER_SECONDS = 0.3
"""The most that a shell waits for the daemon."""
MOST_ENTRIES = 10_000
MOST_VALUES = 200
MOST_SOURCE_BYTES = 4 << 20
USER = "local"
"""The user of the local host, whose volume it is."""

Values = Iterator[tuple[str, str]]
"""Values with a few words about each, empty for none."""


def main(arguments: list[str]) -> int:
    """Print values and their descriptions, tab between them: KIND WORD [CONTEXT]. Nothing is printed on errors."""
    kind, word, context = (*arguments, "", "", "")[:3]
    lines: list[str] = []
    with contextlib.suppress(Exception):
        for value, about in _KINDS[kind](word, context):
            if value.isprintable() and value.startswith(word) and len(lines) < MOST_VALUES:
                lines.append(f"{value}\t{about}" if about and about.isprintable() else value)
    with contextlib.suppress(OSError):
        sys.stdout.write("".join(f"{line}\n" for line in lines))
        sys.stdout.flush()
    return 0


# --- programs ---------------------------------------------------------------------------------------------------------


def _targets(word: str, _: str) -> Values:
    """Give Python files and directories that begin so; of a file that is named whole, its functions."""
    file, marked, _name = word.partition("::")
    path = _source(file)
    if path is not None:
        for name, about in _functions(path):
            yield f"{file}::{name}", about
    if not marked:
        above, _, start = word.rpartition("/")
        for entry in _entries(above or ("/" if word.startswith("/") else "."), start):
            name = f"{above}/{entry.name}" if "/" in word else entry.name
            if entry.is_dir():
                yield f"{name}/", ""
            elif name.endswith(".py") and name != word:
                yield name, ""


def _source(target: str) -> Path | None:
    """Return the file of a target: a path, or the dotted name of a module below the working directory."""
    if target.endswith(".py"):
        return Path(target) if os.path.isfile(target) else None
    if target and all(part.isidentifier() for part in target.split(".")):
        inner = target.replace(".", "/")
        for place in (f"{inner}.py", f"{inner}/__init__.py", f"src/{inner}.py", f"src/{inner}/__init__.py"):
            if os.path.isfile(place):
                return Path(place)
    return None


def _tree(path: Path) -> ast.Module:
    with open(path, "rb") as file:
        return ast.parse(file.read(MOST_SOURCE_BYTES))


def _functions(path: Path) -> Values:
    """Give the isolated functions at the top of a program, as far as its text tells; all functions if it has none."""
    found = [node for node in _tree(path).body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    isolated = [node for node in found if any(map(_is_isolated, node.decorator_list))]
    for node in isolated or found:
        yield node.name, (ast.get_docstring(node) or "").partition("\n")[0][:80]


def _is_isolated(decorator: ast.expr) -> bool:
    if isinstance(decorator, ast.Call):
        return _is_isolated(decorator.func)
    name = decorator.attr if isinstance(decorator, ast.Attribute) else getattr(decorator, "id", "")
    return name in ("isolated", "on")


def _parameters(_word: str, target: str) -> Values:
    """Give the options of a target's function, from its signature in the text."""
    file, _, name = target.partition("::")
    path = _source(file)
    if path is None:
        return
    found = [node for node in _tree(path).body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    chosen = [node for node in found if node.name == name or (not name and any(map(_is_isolated, node.decorator_list)))]
    if len(chosen) == 1:
        arguments = chosen[0].args
        for one in (*arguments.args, *arguments.kwonlyargs):
            about = ast.unparse(one.annotation) if one.annotation is not None else ""
            yield f"--{one.arg.strip('_').replace('_', '-')}", about[:80]
        yield "--help", ""


# --- the state directory ----------------------------------------------------------------------------------------------


def _home() -> Path:
    from atoll import settings

    return settings.default_home()


def _entries(directory: str | Path, start: str = "") -> list[os.DirEntry[str]]:
    """Return entries whose names begin so, in order; hidden ones only where the beginning is a dot."""
    found = []
    with os.scandir(directory) as entries:
        for number, entry in enumerate(entries):
            if number >= MOST_ENTRIES:
                break
            if entry.name.startswith(start) and (start.startswith(".") or not entry.name.startswith(".")):
                found.append(entry)
    return sorted(found, key=lambda entry: entry.name)


def _environments(word: str, _: str) -> Values:
    for entry in _entries(_home() / "environments", word):
        if re.fullmatch(r"[0-9a-f]{32}(\.[0-9]+)?", entry.name):
            about = ""
            with (
                contextlib.suppress(OSError, ValueError, AttributeError),
                open(f"{entry.path}/record.json", "rb") as file,
            ):
                record = json.loads(file.read(1 << 20))
                about = f"Python {record['python_version']}: {', '.join(record['requirements'])[:60]}"
            if about:
                yield entry.name, about


def _snapshots(word: str, _: str) -> Values:
    for entry in _entries(_home() / "volumes" / USER / "snapshots" / "trees", word):
        yield entry.name, ""


def _volume(word: str, _: str) -> Values:
    """Give paths of the volume, written as the word is: below `/data`, or relative to it."""
    data = os.path.realpath(_home() / "volumes" / USER / "data")
    prefix = "/data/" if word.startswith("/") else ""
    if prefix and not word.startswith(prefix):
        yield "/data/", ""
        return
    above, _, start = word[len(prefix) :].rpartition("/")
    directory = os.path.realpath(f"{data}/{above}")
    if directory != data and not directory.startswith(f"{data}/"):
        return  # a symlink leads out of the volume
    for entry in _entries(directory, start):
        name = f"{prefix}{above}/{entry.name}" if above else f"{prefix}{entry.name}"
        yield (f"{name}/" if entry.is_dir(follow_symlinks=False) else name), ""


# --- calls ------------------------------------------------------------------------------------------------------------


_DETACHED = "SELECT call, function, state, outcome, queued_at FROM calls WHERE call >= ? AND call < ? ORDER BY id DESC"
_UNFINISHED = _DETACHED.replace("ORDER", "AND state != 'finished' ORDER")
_FINISHED = _DETACHED.replace("state", "''")


def _calls(word: str, _: str) -> Values:
    """Give the ids of calls that are not over, of detached ones and of finished ones, the newest first."""
    return _unique(_live(), _found("detached", _DETACHED, word), _found("records", _FINISHED, word))


def _live_calls(word: str, _: str) -> Values:
    """Give the ids of calls that run or wait."""
    return _unique(_live(), _found("detached", _UNFINISHED, word))


def _detached_calls(word: str, _: str) -> Values:
    """Give the ids of detached calls, the newest first."""
    return _found("detached", _DETACHED, word)


def _unique(*values: Values) -> Values:
    seen = set[str]()
    for call, about in itertools.chain(*values):
        if call not in seen:
            seen.add(call)
            yield call, about


def _live() -> Values:
    for row in _running():
        yield row["call"], f"{row['function']} {row['state']} {_age(row['since'])}"


def _found(directory: str, query: str, word: str) -> Values:
    for call, function, state, outcome, at in _rows(f"{directory}/calls.db", query, (word, f"{word}\U0010ffff")):
        yield call, f"{function} {outcome or state} {_age(at)}"


def _running() -> list[dict[str, Any]]:
    """Return the rows of calls that a running daemon knows; none where it does not answer at once."""
    if not (_home() / "run" / "daemon.sock").exists():
        return []
    from atoll import settings
    from atoll.host import daemon_start  # for calls alone

    message = {"type": "request", "name": "calls.running", "arguments": {}}
    with contextlib.suppress(Exception):
        channel = daemon_start.control_connection(settings.Settings(_home()), message, ANSWER_SECONDS)
        if channel is not None:
            with contextlib.closing(channel):
                channel.socket.settimeout(ANSWER_SECONDS)
                found: list[dict[str, Any]] = channel.receive().header["value"]["calls"]
                return found
    return []


def _call_functions(_word: str, _: str) -> Values:
    for (name,) in _rows("records/calls.db", "SELECT DISTINCT function FROM calls ORDER BY function", ()):
        yield name, ""


def _users(_word: str, _: str) -> Values:
    """Give the users of the server of this machine's state directory."""
    for name, operator in _rows("server/server.db", "SELECT name, operator FROM users ORDER BY name", ()):
        yield name, "operator" if operator else ""


def _keys(word: str, _: str) -> Values:
    """Give the ids of keys of that server."""
    query = "SELECT keys.id, users.name || ' ' || alias FROM keys JOIN users ON users.id = user WHERE keys.id >= ?"
    for key, about in _rows("server/server.db", f"{query} ORDER BY keys.id", (word,)):
        yield key, about.strip()


def _nodes(_word: str, _: str) -> Values:
    """Give the nodes of that server."""
    query = "SELECT name, state FROM nodes WHERE state != 'removed' ORDER BY name"
    yield from ((name, state) for name, state in _rows("server/server.db", query, ()))


def _rows(file: str, query: str, values: tuple[str, ...]) -> list[tuple[str, ...]]:
    import sqlite3  # for calls alone

    path = _home() / file
    if not path.is_file():
        return []
    found: list[tuple[str, ...]] = []
    with contextlib.suppress(sqlite3.Error):
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=0.05)
        try:
            found = connection.execute(f"{query} LIMIT {MOST_VALUES}", values).fetchall()
        finally:
            connection.close()
    return found


def _age(moment: float | str) -> str:
    seconds = max(0, int(time.time() - float(moment)))
    step, unit = next((pair for pair in ((86400, "d"), (3600, "h"), (60, "min")) if seconds >= pair[0]), (1, "s"))
    return f"{seconds // step} {unit} ago"


def _machine_types(_word: str, _: str) -> Values:
    from atoll.model.machine_types import MACHINE_TYPES

    for name, one in MACHINE_TYPES.items():
        yield name, f"{one.cpu:g} CPU, {one.memory_bytes / (1 << 30):g} GiB" + (f", {one.gpus} GPU" if one.gpus else "")


_KINDS: dict[str, Callable[[str, str], Values]] = {
    "target": _targets,
    "parameter": _parameters,
    "environment": _environments,
    "snapshot": _snapshots,
    "volume": _volume,
    "call": _calls,
    "live-call": _live_calls,
    "detached-call": _detached_calls,
    "call-function": _call_functions,
    "machine-type": _machine_types,
    "user": _users,
    "key": _keys,
    "node": _nodes,
}
