"""`atoll data sync`."""

from __future__ import annotations

import json as json_module
import sys
from typing import TYPE_CHECKING, Annotated, Any

import cyclopts

from atoll.cli.data_paths import print_name
from atoll.cli.target import TargetError
from atoll.storage.files.tree import DIRECTORY, FILE, printable

if TYPE_CHECKING:
    from atoll.storage.sync.plan import Plan

_SHOWN = 3


def sync(
    local: str,
    remote: str,
    /,
    *,
    exclude: Annotated[tuple[str, ...], cyclopts.Parameter(negative="")] = (),
    delete: bool = True,
    dry_run: Annotated[bool, cyclopts.Parameter(negative="")] = False,
    atomic: bool = True,
    allow_empty: Annotated[bool, cyclopts.Parameter(negative="")] = False,
    watch: Annotated[bool, cyclopts.Parameter(negative="")] = False,
    json: Annotated[bool, cyclopts.Parameter(negative="")] = False,
) -> int:
    """Make a directory of /data a mirror of a local one; prints where it is.

    Parameters
    ----------
    local: str
        The directory to upload.
    remote: str
        Target: relative to /data/sync, or absolute below /data.
    exclude: tuple[str, ...]
        Pattern (gitignore's syntax) of names to leave alone on both sides; may be given again.
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
        `operation`, `path`, `type`, `size` and `target`) and `skipped`, the paths that were left out.
    """
    if watch:
        if dry_run:
            raise TargetError("`--watch` and `--dry-run` exclude each other")
        from atoll.cli.watch import watch as keep

        options = {"exclude": exclude, "delete": delete, "atomic": atomic, "allow_empty": allow_empty}
        return keep(local, remote, json=json, **options)
    from atoll.sdk.sync import EMPTIES, arrange, check_source
    from atoll.storage.protocol.connection import absolute

    arranged = arrange(
        local, remote, exclude=exclude, delete=delete, dry_run=dry_run, atomic=atomic, allow_empty=allow_empty
    )
    check_source(arranged.source)
    synced = arranged.run()
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
        }
        print(json_module.dumps(answer, indent=2))
        if synced.refused:
            print(EMPTIES, file=sys.stderr)
        return status
    if dry_run:
        for line in synced.plan.lines():
            print(line)
        if synced.refused:
            print(EMPTIES, file=sys.stderr)
    else:
        print_name("", target)
    if synced.skipped:
        shown = ", ".join(f"`{printable(path)}`" for path in synced.skipped[:_SHOWN])
        more = ", …" if len(synced.skipped) > _SHOWN else ""
        print(f"left out {len(synced.skipped)}: {shown}{more}", file=sys.stderr)
    return status


def operations(plan: Plan) -> list[dict[str, Any]]:
    """Return a plan as data, one operation for each path, in the order of the paths."""
    send, found = set(plan.send), list[dict[str, Any]]()
    for path in sorted(plan.drop | plan.put.keys()):
        entry = plan.put.get(path)
        if entry is None:
            found.append({"operation": "remove", "path": path})
            continue
        stands = path in plan.stands or (entry.kind == FILE and path not in send)
        word = "send" if path in send else "mode" if stands else "mkdir" if entry.kind == DIRECTORY else "link"
        kind = {FILE: "file", DIRECTORY: "directory"}.get(entry.kind, "symlink")
        found.append({"operation": word, "path": path, "type": kind, "size": entry.size, "target": entry.target})
    return found
