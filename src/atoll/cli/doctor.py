"""`atoll doctor`: abilities of this machine, with a fix for each missing one.

Exit status 0 when everything that is needed works, 1 otherwise.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import subprocess
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import cyclopts

from atoll import settings as options
from atoll.cli.hosts import tell_local
from atoll.cli.settings_state import settings_lines, told
from atoll.cli.tables import print_json, print_table
from atoll.cli.terminal import echo, echo_lines
from atoll.errors import AtollError, StateUnusable
from atoll.model.findings import Finding

if TYPE_CHECKING:
    from collections.abc import Sequence

CANNOT, OPTIONAL = "needed, and missing", "optional"
LOSSES: dict[str, tuple[str, ...]] = {
    "weaker isolation": (
        *("outbound network", "workers apart", "signals apart", "end with the daemon"),
        *("memory limits", "CPU limits", "process limits", "process ids apart"),
    ),
    "slower, or larger on the disk": ("hard links", "reflinks"),
}
"""Abilities that are not needed, by that which is lost without them; others are optional."""
SHORT = 48
"""Characters of the detail of an ability that works; `--json` has all."""


def doctor(
    *,
    json: bool = False,
    data: Annotated[bool, cyclopts.Parameter(negative="")] = False,
    peer: str = "",
    as_peer: Annotated[bool, cyclopts.Parameter(negative="")] = False,
    path: str = "",
    peer_path: str = "",
) -> int:
    """Try the abilities of this machine that Atoll needs, with a fix for each missing one.

    Parameters
    ----------
    json
        Print one JSON object: `ok`, and `abilities` with `name`, `needed`, `works`, `detail`, `loses`, `fix`.
    data
        Test the file system under /data instead: the promises of /data, and the limits of network file systems.
    peer
        With `--data`: test the shared file system between this machine and another, where this command starts `atoll`,
        such as `ssh gpu2`.
    as_peer
        With `--data`: be the other machine of such a test, on standard input and output.
    path
        The shared directory, where `settings.toml` does not name it yet.
    peer_path
        The same on the other machine; by default as here.
    """
    if as_peer or peer:
        from atoll.cli.data.peers import compare, serve

        return serve(path) if as_peer else _tell_peer(compare(peer, path, peer_path), json=json)
    tell_local("these are the abilities")
    if data:
        return _data(json=json)
    if sys.platform != "linux":
        echo("functions run on Linux only; this machine can use a remote host")
        return 1
    from atoll.node.selftest import examine

    chosen, setting = _settings()
    try:
        found = [*asyncio.run(examine(chosen)), *setting, uv_finding()]
    except AtollError as error:
        echo_lines(str(error), error=True)
        return 1
    return _tell(found, json=json, subject="Atoll")


def _settings() -> tuple[options.Settings, list[Finding]]:
    """Return the settings, the defaults where they cannot be read, and the finding about them."""
    try:
        chosen = options.load()
    except StateUnusable as error:
        lost = "no daemon starts; one that runs has earlier values"
        broken = Finding("settings", True, False, told(error.message), lost, error.hint)
        return options.Settings(options.default_home()), [broken]
    from atoll.host.local import LocalHost

    with contextlib.suppress(AtollError):
        running = LocalHost(chosen.home).request_running("status", {})
        lines = settings_lines(running["daemon"]) if running is not None else []
        if lines:
            loses = "the daemon that runs has earlier values"
            return chosen, [Finding("settings", False, False, "; ".join(lines), loses, "`atoll stop`, or wait")]
    name = chosen.home / "settings.toml"
    return chosen, [Finding("settings", True, True, f"`{name}`" if name.exists() else "the defaults")]


def _data(*, json: bool) -> int:
    """Test the volume's file system, by its storage peer, and the mount of a shared one."""
    from atoll.host.local import local
    from atoll.node.shared.data import findings
    from atoll.storage.client.volume import VolumeClient

    shared = findings(options.load())
    if not all(one.works for one in shared):
        return _tell(shared, json=json, subject="`/data`")
    with VolumeClient(local.open_storage()) as client:
        found = client.selftest()
    return _tell([*shared, *found], json=json, subject="`/data`")


def _tell_peer(found: Sequence[Finding], *, json: bool) -> int:
    from atoll.storage.selftest.peer_checks import conclusion

    status = _tell(found, json=json, subject="`/data` on both machines")
    if not json:
        echo(conclusion(list(found)))
    return status


def _tell(found: Sequence[Finding], *, json: bool, subject: str) -> int:
    healthy = all(one.works for one in found if one.needed)
    if json:
        print_json({"ok": healthy, "abilities": [asdict(ability) for ability in found]})
    else:
        _print_table(found, healthy, subject)
    return 0 if healthy else 1


def uv_finding() -> Finding:
    """Try the program `uv`."""
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
    """Print abilities that are missing, the greatest loss first, then those that work, each in a short line."""
    missing = [one for one in found if not one.works]
    for title, of_title in grouped(missing):
        echo(title)
        rows = [("no", one.name, one.detail) for one in of_title]
        style = "red" if of_title[0].needed else "yellow"
        print_table(("", "", ""), rows, fold=("",), styles=[style] * len(rows))
        for fix, of_fix in _by_fix(of_title):
            for loses, names in _by_loss(of_fix):
                echo(f"  without {', '.join(names)}: {loses}")
            echo(f"  fix: {fix}")
        echo()
    working = [one for one in found if one.works]
    if working:
        rows = [("ok", one.name, _short(one.detail)) for one in working]
        print_table(("", "", ""), rows, styles=["green"] * len(rows))
        echo()
    echo(f"everything that {subject} needs works" if healthy else f"something that {subject} needs does not work")


def grouped(missing: Sequence[Finding]) -> list[tuple[str, list[Finding]]]:
    """Return missing abilities under titles, in the order of that which the user loses."""
    titles: dict[str, list[Finding]] = {title: [] for title in (CANNOT, *LOSSES, OPTIONAL)}
    for one in missing:
        kind = next((title for title, names in LOSSES.items() if one.name in names), OPTIONAL)
        titles[CANNOT if one.needed else kind].append(one)
    return [(title, of_title) for title, of_title in titles.items() if of_title]


def _by_fix(found: Sequence[Finding]) -> list[tuple[str, list[Finding]]]:
    fixes: dict[str, list[Finding]] = {}
    for one in found:
        fixes.setdefault(one.fix, []).append(one)
    return list(fixes.items())


def _by_loss(found: Sequence[Finding]) -> list[tuple[str, list[str]]]:
    losses: dict[str, list[str]] = {}
    for one in found:
        losses.setdefault(one.loses, []).append(one.name)
    return list(losses.items())


def _short(detail: str) -> str:
    """Return the first words of a detail: up to a path, a colon or a semicolon, unless it begins with one."""
    first = re.split(r", `/|; |: ", detail.removeprefix("held: "), maxsplit=1)[0]
    return first if len(first) <= SHORT else f"{first[: SHORT - 1]}\u2026"
