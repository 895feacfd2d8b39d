"""`atoll nodes add`: machines that join over ssh, by the keys of the user who runs the command."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace

from atoll import errors
from atoll.cli.nodes.place import Place
from atoll.cli.programs.program import TargetError
from atoll.cli.terminal import echo, echo_lines
from atoll.server.fleets.ssh import SshFleet, Start
from atoll.terminal_text import printable


def add_all(
    place: Place,
    machines: Sequence[str],
    *,
    name: str,
    labels: Mapping[str, str],
    url: str,
    given: Mapping[str, str],
) -> int:
    """Have machines join, one line for each, and return the exit status: 1 if one has not.

    Args:
        place: the nodes of the server.
        machines: empty for those of the settings.
        given: `ca_file`, `command` and `home`, which count before the settings where they are not empty.
    """
    wanted = list(machines or place.options.machines)
    if not wanted:
        raise TargetError(
            "no machine is named", hint="`atoll nodes add user@gpu2`, or `cluster.machines` in settings.toml"
        )
    address = url or place.url
    if not address:
        raise errors.HostUnreachable(
            f"no server runs for {place.name}", hint="start it: `atoll server`; or give `--url`"
        )
    options = replace(
        place.options,
        machines=tuple(wanted),
        ca_file=given["ca_file"] or place.ca_file,
        command=given["command"] or place.options.command,
        home=given["home"] or place.options.home,
    )

    async def token() -> str:
        return str(place.make_token({"uses": 1, "seconds": 600.0, "labels": {}})["token"])

    return asyncio.run(_add(SshFleet(options, Start(address, token, name, labels)), wanted))


async def _add(fleet: SshFleet, machines: Sequence[str]) -> int:
    async def start(machine: str) -> bool:
        try:
            await fleet.start(machine)
        except errors.AtollError as error:
            echo_lines(f"error: {error}", error=True)
            return False
        echo(f"`{printable(machine)}` has joined, and runs its node", error=True)
        return True

    return 0 if all(await asyncio.gather(*map(start, machines))) else 1
