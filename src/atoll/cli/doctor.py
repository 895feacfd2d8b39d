"""`atoll doctor`: what this machine can and cannot do, with the fix for each.

Exit status 0 when everything that is needed works, 1 otherwise.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from atoll import settings as options
from atoll.errors import AtollError

if TYPE_CHECKING:
    from atoll.sandbox.abilities import Ability


def doctor(*, json: bool = False) -> int:
    """Test what this machine can do for Atoll, and say how to mend what it cannot.

    Parameters
    ----------
    json
        Print one JSON object: `ok`, and `abilities` with `name`, `needed`, `works`, `detail`, `loses`, `fix`.
    """
    if sys.platform != "linux":
        print("functions run on Linux only; this machine can use a remote host")
        return 1
    from atoll.sandbox.abilities import examine

    try:
        found = [*asyncio.run(examine(options.load())), _uv()]
    except AtollError as error:
        print(error, file=sys.stderr)
        return 1
    healthy = all(ability.works for ability in found if ability.needed)
    if json:
        _print_json(found, healthy)
    else:
        _print_table(found, healthy)
    return 0 if healthy else 1


def _uv() -> Ability:
    from atoll.process import check
    from atoll.sandbox.abilities import Ability

    loses, fix = "environments cannot be built", "run `pip install uv`"
    try:
        from uv import find_uv_bin

        path = find_uv_bin()
        done = check([path, "--version"], env={})
    except (ImportError, OSError, subprocess.TimeoutExpired) as error:
        return Ability("uv", True, False, str(error), loses, fix)
    if done.status != 0:
        return Ability("uv", True, False, f"`{path}` exits with {done.status}", loses, fix)
    return Ability("uv", True, True, f"{done.output.strip()}, `{path}`")


def _print_json(found: list[Ability], healthy: bool) -> None:
    import json

    print(json.dumps({"ok": healthy, "abilities": [asdict(ability) for ability in found]}, indent=2))


def _print_table(found: list[Ability], healthy: bool) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    table = Table(box=None, pad_edge=False)
    for heading in ("", "ability", "found"):
        table.add_column(heading, overflow="fold")
    for ability in found:
        mark = "[green]ok[/]" if ability.works else "[red]no[/]" if ability.needed else "[yellow]no[/]"
        table.add_row(mark, ability.name, escape(ability.detail))
    console.print(table)
    for ability in found:
        if not ability.works:
            # Not wrapped: a fix is to be copied.
            console.print(f"\n[bold]{ability.name}[/]: without it {escape(ability.loses)}", soft_wrap=True)
            console.print(f"  fix: {escape(ability.fix)}", soft_wrap=True, highlight=False)
    console.print("\neverything that Atoll needs works" if healthy else "\nsomething that Atoll needs does not work")
