"""`atoll data sync`: one sync, or with `--watch` a line for each sync until Ctrl-C."""

from __future__ import annotations

import json as json_module
import time
from collections.abc import Callable
from typing import Annotated, Any

import cyclopts

from atoll.cli.programs.program import TargetError
from atoll.cli.tables import print_json
from atoll.cli.terminal import echo, echo_json, echo_lines, echo_name
from atoll.errors import AtollError
from atoll.sdk.data.sync import EMPTIES, arrange, check_source
from atoll.sdk.data.watch import Failed, Happening, Notice, Synced, Waiting, watch_dir
from atoll.storage.client import sync_summary
from atoll.storage.client.volume import absolute, sync_target
from atoll.storage.files.tree import DIRECTORY, FILE
from atoll.storage.protocol.progress import size_text
from atoll.storage.sync.plan import Plan
from atoll.terminal_text import printable

_SHOWN = 3
"""Names that a line shows before it counts the rest."""
_LISTED = 100
"""Paths in a JSON object of `--watch`."""


def sync(
    local: str,
    remote: str,
    /,
    *,
    exclude: Annotated[tuple[str, ...], cyclopts.Parameter(negative="")] = (),
    exclude_dev: Annotated[bool, cyclopts.Parameter(negative="")] = False,
    delete: bool = True,
    dry_run: Annotated[bool, cyclopts.Parameter(negative="")] = False,
    atomic: bool = True,
    allow_empty: Annotated[bool, cyclopts.Parameter(negative="")] = False,
    watch: Annotated[bool, cyclopts.Parameter(negative="")] = False,
    json: Annotated[bool, cyclopts.Parameter(negative="")] = False,
) -> int:
    """Make a directory of /data a mirror of a local one; prints where it is, and on stderr a line that counts.

    Parameters
    ----------
    local: str
        The directory to upload.
    remote: str
        Target: relative to /data/sync, or absolute below /data.
    exclude: tuple[str, ...]
        Pattern (gitignore's syntax) of names to leave alone on both sides; may be given again.
    exclude_dev: bool
        Leave alone what tools of developers make: .git, .venv, node_modules, __pycache__ and the like.
    delete: bool
        Remove names there that are gone here.
    dry_run: bool
        Print the changes and make none; exits with 1 if the sync would be refused.
    atomic: bool
        Refuse where the volume's file system cannot exchange directories in one step.
    allow_empty: bool
        Let a local directory with nothing in it empty the one there.
    watch: bool
        Go on: sync again after each change, a line for each sync, until Ctrl-C.
    json: bool
        With --watch: print a JSON object a line. Else print an object with `target`, `done`, `files` and `bytes` that travelled or would, `operations` (objects with
        `operation`, `path`, `type`, `size` and `target`), `skipped`, the paths that were left out, `vanished` and
        `seconds`.
    """
    if exclude_dev:
        exclude = (*sync_summary.DEV, *exclude)
    if watch:
        if dry_run:
            raise TargetError("`--watch` and `--dry-run` exclude each other")
        options = {"exclude": exclude, "delete": delete, "atomic": atomic, "allow_empty": allow_empty}
        return _watch(local, remote, json=json, **options)
    arranged = arrange(
        local, remote, exclude=exclude, delete=delete, dry_run=dry_run, atomic=atomic, allow_empty=allow_empty
    )
    check_source(arranged.source)
    began = time.monotonic()
    synced = arranged.run()
    seconds = time.monotonic() - began
    target = absolute(arranged.target)
    status = int(synced.refused)
    if json:
        answer = {
            "target": target,
            "done": not dry_run,
            "files": len(synced.plan.send),
            "bytes": synced.plan.send_bytes,
            "operations": operations(synced.plan),
            "skipped": list(synced.skipped),
            "vanished": list(synced.vanished),
            "seconds": round(seconds, 3),
        }
        print_json(answer)
        if synced.refused:
            echo(EMPTIES, error=True)
        return status
    if dry_run:
        for line in synced.plan.lines():
            echo(line)
        if synced.refused:
            echo(EMPTIES, error=True)
    else:
        echo_name("", target)
    if synced.skipped:
        echo(f"left out {len(synced.skipped)}: {sync_summary.shown(synced.skipped)}", error=True)
    for line in (*sync_summary.notes(synced), *sync_summary.tools(synced, "`--exclude-dev`")):
        echo(line, error=True)
    if not dry_run:
        echo(sync_summary.line(synced, seconds), error=True)
    return status


def operations(plan: Plan) -> list[dict[str, Any]]:
    """Return a plan as data, one operation for each path, in the order of the paths."""
    send, found = set(plan.send), list[dict[str, Any]]()
    for path in sorted(plan.drop | plan.put.keys()):
        entry = plan.put.get(path)
        if entry is None:
            found.append({"operation": "remove", "path": path})
            continue
        exists = path in plan.existing_directories or (entry.kind == FILE and path not in send)
        word = "send" if path in send else "mode" if exists else "mkdir" if entry.kind == DIRECTORY else "link"
        kind = {FILE: "file", DIRECTORY: "directory"}.get(entry.kind, "symlink")
        found.append({"operation": word, "path": path, "type": kind, "size": entry.size, "target": entry.target})
    return found


# --- watch ------------------------------------------------------------------------------------------------------------


def _watch(local: str, remote: str, *, json: bool, **options: Any) -> int:
    """Mirror, and keep the mirror current; ends by an interrupt only.

    Raises:
        KeyboardInterrupt: Ctrl-C.
    """
    tell: Callable[[Happening], None] = _tell_json if json else _tell
    target = absolute(sync_target(remote))
    for happening in watch_dir(local, remote, **options):
        tell(happening)
        if isinstance(happening, Synced) and happening.first:
            _watching(local, target, json=json)
    return 0


def _watching(local: str, target: str, *, json: bool) -> None:
    if json:
        _print({"event": "watching", "source": local, "target": target})
    else:
        echo(f"watching `{printable(local)}`, mirrored at `{printable(target)}`; Ctrl-C ends it", flush=True)


def _tell(happening: Happening) -> None:
    if isinstance(happening, Synced):
        plan = happening.plan
        names = sorted(plan.put.keys() | plan.drop)
        # A directory above something that changed changes too: its time.
        names = [name for name in names if name and name not in plan.existing_directories] or names
        shown = ", ".join(printable(name) or "." for name in names[:_SHOWN])
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        counts = [
            f"{len(plan.put) - len(plan.existing_directories)} changed"
            * (len(plan.put) > len(plan.existing_directories))
        ]
        counts.append(f"{len(plan.drop)} removed" * bool(plan.drop))
        what = ", ".join(filter(None, counts)) or ("times and modes" if names else "nothing to do")
        size = f", {size_text(happening.sent_bytes)}" if happening.sent else ""
        line = f"{what}{size}, {happening.seconds:.2f} s" + (f": {shown}{more}" if names else "")
        echo(f"{_now()}  {line}", flush=True)
    elif isinstance(happening, Waiting):
        text = "the directory is back" if happening.back else "the directory is gone: waiting until it is back"
        echo(f"{_now()}  {text}", flush=True)
    elif isinstance(happening, Failed):
        echo_lines(f"{_now()}  not synced: {happening.error}", error=True)
    else:
        hint = f"\nhint: {happening.hint}" if happening.hint else ""
        echo_lines(f"{_now()}  {happening.text}{hint}", error=True)


def _now() -> str:
    return time.strftime("%H:%M:%S")


def _tell_json(happening: Happening) -> None:
    if isinstance(happening, Synced):
        plan = happening.plan
        _print(
            {
                "event": "synced",
                "put": len(plan.put),
                "removed": len(plan.drop),
                "sent": happening.sent,
                "bytes": happening.sent_bytes,
                "seconds": round(happening.seconds, 4),
                "paths": sorted(plan.put.keys() | plan.drop)[:_LISTED],
            }
        )
    elif isinstance(happening, Waiting):
        _print({"event": "back" if happening.back else "gone"})
    elif isinstance(happening, Failed):
        error = happening.error
        _print(
            {
                "event": "failed",
                "code": error.code if isinstance(error, AtollError) else type(error).__name__,
                "message": error.message if isinstance(error, AtollError) else str(error),
                "hint": error.hint if isinstance(error, AtollError) else "",
            }
        )
    elif isinstance(happening, Notice):
        _print({"event": "notice", "message": happening.text, "hint": happening.hint})


def _print(values: dict[str, Any]) -> None:
    echo_json(json_module.dumps({"at": round(time.time(), 3), **values}), flush=True)
