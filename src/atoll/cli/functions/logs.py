"""Outputs of an endpoint's runners: the end of each, or all of them as they come."""

from __future__ import annotations

import time
from typing import Any
from urllib.parse import quote

from atoll.cli.calls.output import echo_message
from atoll.cli.calls.rows import SHORT_ID, duration
from atoll.cli.functions.served_by import path, server_host
from atoll.cli.tables import print_json, size, wrong_usage
from atoll.cli.terminal import echo, write_output

LOOK_SECONDS = 0.5


def logs(name: str, *, lines: int, everything: bool, follow: bool, raw: bool, json: bool) -> int:
    """Print the output of the runners of an alias or a revision; the output is escaped on a terminal unless `raw`.

    Args:
        lines: of each runner's end.
        everything: of runners that are over, too.
        follow: also as it comes, until interrupted.
    """
    if lines < 0:
        return wrong_usage("-n must be at least 0")
    if follow and json:
        return wrong_usage("--json shows what is there now; leave out -f")
    found = _asked(name, {}, everything=everything)
    if json:
        print_json(found)
        return 0
    shown = _Shown(lines, raw)
    if not found["runners"] and not follow:
        echo(f"`{found['alias'] or found['revision']}` has had no runner yet", error=True)
    shown.show(found, alone=not follow)
    while follow:
        time.sleep(LOOK_SECONDS)
        shown.show(_asked(name, shown.seen, everything=False), alone=False)
    return 0


def _asked(name: str, seen: dict[str, int], *, everything: bool) -> dict[str, Any]:
    query = [f"seen={quote(call)}:{count}" for call, count in seen.items()] + (["all=1"] if everything else [])
    address = path("revisions", name, "logs") + ("?" + "&".join(query) if query else "")
    found: dict[str, Any] = server_host().server.ask("GET", address)
    return found


class _Shown:
    """The part of the outputs that has been printed."""

    def __init__(self, lines: int, raw: bool) -> None:
        self._lines, self._raw = lines, raw
        self.seen: dict[str, int] = {}
        """Bytes of each runner that is not over."""
        self._workers: dict[str, str] = {}
        self._states: dict[str, str] = {}
        self._over: set[str] = set()
        self._last = ""
        self._ends_line = True

    def show(self, found: dict[str, Any], *, alone: bool) -> None:
        """Print what is new.

        Args:
            alone: this is all that is printed: each runner's state follows its output.
        """
        if found["left_out"] and alone:
            echo(f"... {found['left_out']} runners before these are left out")
        for one in found["runners"]:
            if one["call"] not in self._over:
                self._show(one, alone=alone)

    def _show(self, one: dict[str, Any], *, alone: bool) -> None:
        call, over = one["call"], one["state"] == "finished"
        begins = call not in self._states
        if not alone and begins and not over:
            self._head(one)
        worker = one["worker"]
        if worker and self._workers.setdefault(call, worker) != worker:  # a new one, which prints from its beginning
            self._workers[call], self.seen[call] = worker, 0
            return  # the next look has all of it
        text, before = one["output"], self.seen.get(call, 0)
        left_out = one["printed_bytes"] - before - len(text.encode("utf-8", "surrogatepass"))
        if begins:
            kept = text.splitlines(keepends=True)
            text, left_out = "".join(kept[len(kept) - min(self._lines, len(kept)) :]), 0
        if text or left_out > 0:
            if not alone and self._last not in ("", call):
                self._head(one)
            if left_out > 0 and "\ufffd" not in text:
                self._line(f"... {size(left_out)} before this are not kept")
            write_output(text, raw=self._raw)
            self._last, self._ends_line = call, text.endswith("\n") if text else self._ends_line
        self.seen[call] = one["printed_bytes"]
        if alone or over or (one["unread"] and self._states.get(call) != "unread"):
            self._state(one)
        self._states[call] = "unread" if one["unread"] else one["state"]
        if over:
            self._over.add(call)
            self.seen.pop(call, None)

    def _head(self, one: dict[str, Any]) -> None:
        self._line(f"==> {one['call'][:SHORT_ID]}  {one['function']} <==")
        self._last = one["call"]

    def _state(self, one: dict[str, Any]) -> None:
        since = one["started_at"] or one["queued_at"]
        seconds = max((one["ended_at"] or time.time()) - since, 0.0)
        state = f"{one['outcome']} after" if one["outcome"] else f"{one['state']} for"
        self._line(f"-- {one['call']}  {one['function']}: {state} {duration(seconds)}")
        for text in (one["detail"], one["error"], one["unread"]):
            if text:
                echo_message(text)

    def _line(self, text: str) -> None:
        if not self._ends_line:
            echo()
        self._ends_line = True
        echo(text, flush=True)
