"""A program that starts sandboxes with outbound networks, so that tests can run it as another user in another world.

Reads one JSON object from its first argument; prints what its sandboxes say, and ends when the last one has.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

from atoll.errors import AtollError
from atoll.model.mounts import Bind
from atoll.sandbox.identity import Identities
from atoll.sandbox.launch import Launcher, Sandbox
from atoll.sandbox.network.networks import Networks
from atoll.sandbox.network.outbound_network import Network
from atoll.sandbox.network.outbound_sandbox import OutboundSandbox
from atoll.sandbox.policy import confine
from atoll.settings import SandboxSettings, Settings


async def line(reader: Any) -> Any:
    text = await asyncio.get_running_loop().run_in_executor(None, reader.readline)
    return json.loads(text) if text else None


class Machine:
    """Starts sandboxes in networks."""

    def __init__(self, order: dict[str, Any]) -> None:
        settings = Settings(Path(order["home"]), sandbox=SandboxSettings(**order["programs"]))
        self.order = order
        self.launcher, self.identities = Launcher(settings), Identities(settings)
        self.networks = Networks(settings, self.launcher, self.identities)

    def start(self, network: Network, code: str, *arguments: str) -> tuple[Sandbox, Any, Any]:
        """Return a sandbox that runs the code, with its standard input and output."""
        inner, ours = os.pipe()
        outer, theirs = os.pipe()
        policy = confine(
            [os.path.realpath(sys.executable), "-I", "-S", "-u", "-c", code, *arguments],
            machine=self.launcher.machine,
            identity=self.identities.user("someone"),
            binds=[Bind(self.order["base"], self.order["base"])],
            network="outbound",
            files=network.files,
        )
        sandbox = self.launcher.launch(policy, enter=network.enter, stdin=inner, stdout=theirs, stderr=2)
        os.close(inner)
        os.close(theirs)
        return sandbox, os.fdopen(ours, "w", buffering=1), os.fdopen(outer)

    async def try_addresses(self) -> dict[str, Any]:
        """One sandbox listens, another one tries addresses, the first one's among them."""
        first, second = await self.networks.take(), await self.networks.take()
        one, say, hear = self.start(first, self.order["listen"])
        listens = await line(hear)
        two, _, answers = self.start(second, self.order["try"], json.dumps([*self.order["addresses"], *listens]))
        reached = await line(answers)
        status = await two.wait()
        say.close()
        await one.wait()
        await asyncio.gather(first.close(), second.close())
        return {"listens": listens, "reached": reached, "status": status, "shared": await self.share()}

    async def share(self) -> list[bool]:
        """Whether one user's sandboxes share a network, another user's have another, and it is kept when unused."""
        take = self.networks.take
        one, again, other = await asyncio.gather(take("one"), take("one"), take("other"))
        found = [one is again, one is not other]
        for network in (one, again, other):
            await self.networks.give_back(network)
        later = await take("one")
        found += [later is one, one.running]
        await self.networks.give_back(later)
        return found

    async def cut(self) -> dict[str, Any]:
        """The program of a network is killed; then that of one whose sandbox is watched."""
        network = await self.networks.take()
        sandbox, say, hear = self.start(network, self.order["cut"])
        before = await line(hear)
        await network._carrier.kill()
        print("again", file=say)
        after = await line(hear)
        await sandbox.wait()
        await network.close()
        launched = asyncio.Event()
        lost = OutboundSandbox(
            self.networks,
            "someone",
            lambda network: self.start(network, "import signal; signal.pause()")[0],
            launched.set,
        )
        await launched.wait()
        assert lost._network is not None
        await lost._network._carrier.kill()
        failure = await lost.failure()
        return {"before": before, "after": after, "failure": failure and failure.to_data()}

    def left(self) -> list[str]:
        """Return the processes of sandboxes that are still there."""
        orphan_pipe = self.launcher._orphan_pipe
        known = (os.getpid(), orphan_pipe.killer_pid)
        names = [name for name in os.listdir("/proc") if name.isdigit() and int(name) not in known]
        return [name for name in names if orphan_pipe.holds(int(name))]


async def main(order: dict[str, Any]) -> dict[str, Any]:
    machine = Machine(order)
    notices: list[str] = []
    try:
        asked, own = order.get("network", "outbound"), order.get("own", False)
        policy = await machine.networks.policy(asked, notices.append, own=own)
    except AtollError as error:
        return {"raised": error.to_data()}
    if policy != "outbound":
        return {"policy": policy, "notices": notices}
    try:
        found = await machine.try_addresses() if "try" in order else await machine.cut()
    finally:
        await machine.networks.close()
    return {**found, "left": machine.left()}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(json.loads(sys.argv[1])))))
