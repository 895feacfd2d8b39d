"""`atoll doctor`: abilities of this machine, with a fix for each missing one.

Exit status 0 when everything that is needed works, 1 otherwise.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import cyclopts

from atoll import settings as options
from atoll.cli.tables import print_json, print_table
from atoll.cli.terminal import echo, echo_lines
from atoll.errors import AtollError
from atoll.model.findings import Finding

if TYPE_CHECKING:
    from collections.abc import Sequence


def doctor(*, json: bool = False, data: Annotated[bool, cyclopts.Parameter(negative="")] = False) -> int:
    """Try the abilities of this machine that Atoll needs, with a fix for each missing one.

    Parameters
    ----------
    json
        Print one JSON object: `ok`, and `abilities` with `name`, `needed`, `works`, `detail`, `loses`, `fix`.
    data
        Test the file system under /data instead: the promises of /data, and the limits of network file systems.
    """
    if data:
        return _data(json=json)
    if sys.platform != "linux":
        echo("functions run on Linux only; this machine can use a remote host")
        return 1
    from atoll.node.selftest import examine

    try:
        found = [*asyncio.run(examine(options.load())), _uv()]
    except AtollError as error:
        echo_lines(str(error), error=True)
        return 1
    return _tell(found, json=json, subject="Atoll")


def _data(*, json: bool) -> int:
    """Test the volume's file system, by its storage peer."""
    from atoll.host.local import local
    from atoll.storage.client.volume import VolumeClient

    with VolumeClient(local.open_storage()) as client:
        found = client.selftest()
    return _tell(found, json=json, subject="`/data`")


def _tell(found: Sequence[Finding], *, json: bool, subject: str) -> int:
    healthy = all(one.works for one in found if one.needed)
    if json:
        print_json({"ok": healthy, "abilities": [asdict(ability) for ability in found]})
    else:
        _print_table(found, healthy, subject)
    return 0 if healthy else 1


def _uv() -> Finding:
    from atoll.process import check

    loses, fix = "environments cannot be built", "run `pip install uv`"
    try:
        from uv import find_uv_bin

        path = find_uv_bin()
        done = check([path, "--version"], env={})
    except (ImportError, OSError, subprocess.TimeoutExpired) as error:
        return Finding("uv", True, False, str(error), loses, fix)
    if done.status != 0:
        return Finding("uv", True, False, f"`{path}` exits with {done.status}", loses, fix)
    return Finding("uv", True, True, f"{done.output.strip()}, `{path}`")


def _print_table(found: Sequence[Finding], healthy: bool, subject: str) -> None:
    rows = [("ok" if one.works else "no", one.name, one.detail) for one in found]
    styles = ["green" if one.works else "red" if one.needed else "yellow" for one in found]
    columns = ("", "ability", "found")
    print_table(columns, rows, fold=columns, styles=styles)
    for ability in found:
        if not ability.works:
            echo()
            echo(f"{ability.name}: without it {ability.loses}")
            echo(f"  fix: {ability.fix}")
    echo()
    echo(f"everything that {subject} needs works" if healthy else f"something that {subject} needs does not work")
