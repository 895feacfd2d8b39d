"""A program that launches one sandbox, so that tests can run it as another user and can kill it.

Reads one JSON object from its first argument, and reports one on its stderr when the sandbox has ended.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import select
import sys
from pathlib import Path
from typing import Any

from atoll.errors import AtollError
from atoll.model.mounts import Bind
from atoll.sandbox.identity import Identities, give
from atoll.sandbox.launch import Launcher
from atoll.sandbox.policy import confine
from atoll.settings import SandboxSettings, Settings


async def main(order: dict[str, Any]) -> dict[str, Any]:
    settings = Settings(Path(order["home"]), sandbox=SandboxSettings(bwrap=order.get("bwrap", "")))
    launcher = Launcher(settings)
    identity = Identities(settings).user("someone")
    binds = [Bind(*bind) for bind in order.get("binds", [])]
    for bind in binds:
        if bind.writable:
            give(Path(bind.source), identity, 0o700)
    policy = confine(
        order["command"],
        machine=launcher.machine,
        identity=identity,
        binds=binds,
        environment=order.get("environment", {}).items(),
        workdir=order.get("workdir", "/home/user"),
        own_pids=order.get("own_pids", False),
        ipc_group=order.get("ipc_group", ""),
    )
    try:
        watched, held = os.pipe()
        extra = [held] if "kill_after" in order else []
        sandbox = launcher.launch(policy, descriptors=[*order.get("descriptors", []), *extra], stdout=1, stderr=2)
        os.close(held)
        gone = None
        if "beside" in order:  # another sandbox, while the first one runs
            await launcher.launch(
                dataclasses.replace(policy, command=tuple(order["beside"])), stdout=1, stderr=2
            ).wait()
        if "kill_after" in order:  # the command says on a pipe that it is ready
            await asyncio.get_running_loop().run_in_executor(None, os.read, order["kill_after"], 1)
            status = await sandbox.kill()
            gone = bool(select.select([watched], [], [], 0)[0])
        else:
            status = await sandbox.wait()
        failure = await sandbox.failure()
        inner = await launcher.run(policy) if order.get("run") else None
    except AtollError as error:
        return {"raised": error.to_data()}
    return {
        "status": status,
        "gone": gone,
        "started": sandbox.started,
        "failure": failure and failure.to_data(),
        "uid": identity.uid,
        "output": inner and inner.output,
    }


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(json.loads(sys.argv[1])))), file=sys.stderr)
