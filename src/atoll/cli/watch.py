"""`atoll data sync --watch`: a line for each sync, until Ctrl-C."""

from __future__ import annotations

import json as json_module
import sys
import time
from collections.abc import Callable
from typing import Any

from atoll.errors import AtollError
from atoll.sdk.watch import Failed, Happening, Notice, Synced, Waiting, watch_dir
from atoll.storage.client.volume import absolute, sync_target
from atoll.storage.files.tree import printable
from atoll.storage.protocol.progress import size_text

_NAMED = 3
_LISTED = 100


def watch(local: str, remote: str, *, json: bool, **options: Any) -> int:
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
        print(f"watching `{printable(local)}`, mirrored at `{printable(target)}`; Ctrl-C ends it", flush=True)


def _tell(happening: Happening) -> None:
    if isinstance(happening, Synced):
        plan = happening.plan
        names = sorted(plan.put.keys() | plan.drop)
        # A directory above something that changed changes too: its time.
        names = [name for name in names if name and name not in plan.stands] or names
        shown = ", ".join(printable(name) or "." for name in names[:_NAMED])
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        counts = [f"{len(plan.put) - len(plan.stands)} changed" * (len(plan.put) > len(plan.stands))]
        counts.append(f"{len(plan.drop)} removed" * bool(plan.drop))
        what = ", ".join(filter(None, counts)) or ("times and modes" if names else "nothing to do")
        size = f", {size_text(happening.sent_bytes)}" if happening.sent else ""
        line = f"{what}{size}, {happening.seconds:.2f} s" + (f": {shown}{more}" if names else "")
        print(f"{_now()}  {line}", flush=True)
    elif isinstance(happening, Waiting):
        text = "the directory is back" if happening.back else "the directory is gone: waiting until it is back"
        print(f"{_now()}  {text}", flush=True)
    elif isinstance(happening, Failed):
        print(f"{_now()}  not synced: {happening.error}", file=sys.stderr, flush=True)
    else:
        hint = f"\nhint: {happening.hint}" if happening.hint else ""
        print(f"{_now()}  {happening.text}{hint}", file=sys.stderr, flush=True)


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
    print(json_module.dumps({"at": round(time.time(), 3), **values}), flush=True)
