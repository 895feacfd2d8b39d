"""A program that kills sandboxes, or those who launch them, in their first milliseconds.

Arguments: what is killed (`launcher`, `sandbox` or `run`), a state directory, how often, a word by which the
sandboxes' processes can be found.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import time
from pathlib import Path

from atoll.sandbox.identity import Identities
from atoll.sandbox.launch import Launcher
from atoll.sandbox.policy import Policy, confine
from atoll.settings import Settings

LONGEST_SECONDS = 0.012
"""Making a sandbox takes about this long."""


def policy(launcher: Launcher, settings: Settings, word: str) -> Policy:
    command = ["sh", "-c", "exec sleep 300", word]
    identity = Identities(settings).user("someone")
    return confine(command, machine=launcher.machine, identity=identity, binds=[], environment=(), workdir="/")


async def kill_sandboxes(settings: Settings, rounds: int, word: str, *, run: bool) -> None:
    launcher = Launcher(settings)
    made = policy(launcher, settings, word)
    for _ in range(rounds):
        moment = random.uniform(0, LONGEST_SECONDS)
        if run:
            task = asyncio.create_task(launcher.run(made))
            await asyncio.sleep(moment)
            task.cancel()
            await asyncio.wait([task])
        else:
            sandbox = launcher.launch(made)
            await asyncio.sleep(moment)
            await sandbox.kill()
    if not run:
        # The launcher lives, so this is not its orphan killer's work.
        print(len(left(word)), flush=True)


async def launch_many(settings: Settings, word: str, started: int) -> None:
    launcher = Launcher(settings)
    made = policy(launcher, settings, word)
    os.write(started, b"1")
    kept = []
    while True:
        kept.append(launcher.launch(made))
        await asyncio.sleep(0.002)


def kill_launchers(settings: Settings, rounds: int, word: str) -> None:
    for _ in range(rounds):
        ready, started = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                asyncio.run(launch_many(settings, word, started))
            finally:
                os._exit(1)
        os.close(started)
        os.read(ready, 1)
        os.close(ready)
        time.sleep(random.uniform(0, 2 * LONGEST_SECONDS))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def left(word: str) -> list[int]:
    """Return the processes with the word among their arguments, but for this one."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            try:
                arguments = Path(f"/proc/{name}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"early.py" not in b" ".join(arguments) and word.encode() in arguments:
                found.append(int(name))
    return found


if __name__ == "__main__":
    what, home, count, mark = sys.argv[1:]
    if what == "launcher":
        kill_launchers(Settings(Path(home)), int(count), mark)
    else:
        asyncio.run(kill_sandboxes(Settings(Path(home)), int(count), mark, run=what == "run"))
