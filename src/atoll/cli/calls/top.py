"""`atoll top`: calls that run or wait, live, with the machine's use and what is free; one snapshot without a terminal.

Textual is loaded for a terminal alone: `top_view` is the live view, `machine_use` what both show, as text.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from atoll.cli import hosts
from atoll.cli.calls import rows
from atoll.cli.calls.machine_use import Snapshot, calls_of, gpu_lines, heading, look
from atoll.cli.calls.stack import described, read
from atoll.cli.columns import print_fitted
from atoll.cli.terminal import echo

MISSING = "`atoll top` needs the package `textual`: `pip install 'atoll[top]'`; `atoll status` shows the same once"


def top() -> int:
    """Show calls that run or wait, live, with CPU, memory and GPUs of the machine and what is free. Starts nothing.

    Of a server it shows what is free there, and your calls.

    Keys: up and down choose a call, Enter or l follows its output, s shows its stacks, c cancels it, q ends. Without a
    terminal it prints one snapshot.
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        _print(look())
        return 0
    try:
        from atoll.cli.calls.top_view import TopView
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "textual":
            raise
        echo(f"error: {MISSING}", error=True)
        return 1
    return TopView(Source()).run() or 0


class Source:
    """The daemon, as the live view asks it; every method blocks."""

    def look(self) -> Snapshot:
        """Return what is to be shown now."""
        return look()

    async def gpus(self) -> list[str]:
        """Return a line for each GPU about its use."""
        return [] if hosts.server_of(hosts.chosen()) is not None else await gpu_lines()

    def cancel(self, call: str) -> str:
        """Cancel a call; return what was done."""
        from atoll.cli.calls.cancel import said

        found = hosts.ask_running("calls.cancel", {"call": call})
        return said(found) if found is not None else "no daemon is running"

    def stacks(self, call: str) -> list[str]:
        """Return the lines of a call's stacks."""
        found = hosts.ask("calls.stacks", {"call": call})
        return described(found, read(found["text"]), time.time())

    def output(self, call: str, seen: int) -> dict[str, Any]:
        """Return the answer about a call's output behind the first bytes."""
        return hosts.ask("calls.output", {"call": call, "seen": seen})


def _print(snapshot: Snapshot) -> None:
    for line in heading(snapshot):
        echo(line)
    if snapshot.status is not None:
        echo()
        if calls := calls_of(snapshot):
            print_fitted(rows.COLUMNS, rows.cells(calls, snapshot.at))
        else:
            echo("no call runs or waits")
