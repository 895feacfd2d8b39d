"""`atoll data filesystem`: prepare the file system that carries `/data` on many machines, and look at it."""

from __future__ import annotations

from typing import Annotated

import cyclopts

from atoll import settings
from atoll.cli.confirmation import counted
from atoll.cli.hosts import tell_local
from atoll.cli.tables import print_json
from atoll.cli.terminal import echo
from atoll.errors import StateUnusable
from atoll.settings import Settings

app = cyclopts.App(
    name="filesystem",
    help="Prepare the file system that carries /data on many machines, and look at it. The group `storage` of "
    "`settings.toml` says which.",
    help_format="plaintext",
    version_flags=[],
    result_action="return_value",
)

Json = Annotated[bool, cyclopts.Parameter(negative="")]


@app.command
def init() -> int:
    """Prepare a shared file system for volumes, once, on one machine; one that is prepared already stays as it is.

    With `storage.filesystem = "juicefs"` this makes the file system, unless its metadata already holds one. With
    `"path"` it must be mounted.
    """
    from atoll.node.shared import preparation

    options = _options()
    found = preparation.prepare(options)
    echo(f"prepared: {found.root}, identity {found.identity}")
    echo(
        "on each machine: the same `storage` in `settings.toml`; then `atoll doctor --data --peer` between two of them"
    )
    if found.left:
        echo(
            f"note: {counted(len(found.left), 'volume')} in `{options.home / 'volumes'}` stay on this machine's disk: "
            "their users see an empty /data until the files are moved, see docs/server/shared-data.md",
            error=True,
        )
    return 0


@app.command
def status(*, json: Json = False) -> int:
    """Show the file system that carries /data: its kind, identity and state. Mounts nothing.

    Parameters
    ----------
    json
        Print an object with `filesystem`, `root`, `kind`, `identity`, `works` and `detail`.
    """
    from atoll.node.shared import preparation

    found = preparation.state(_options())
    if json:
        print_json(found)
    else:
        for name in ("filesystem", "root", "kind", "identity", "detail"):
            if found[name]:
                echo(f"{name:<11}{found[name]}")
        echo(f"{'state':<11}{'in order' if found['works'] else 'cannot be used'}")
    return 0 if found["works"] else 1


def _options() -> Settings:
    tell_local("this is the file system")
    options = settings.load()
    if not options.storage.is_shared:
        raise StateUnusable(
            f"`{options.home / 'settings.toml'}` names no shared file system: the volumes are on this machine's disk",
            hint='set `storage.filesystem` to "path" or "juicefs"; see docs/server/shared-data.md',
        )
    return options
