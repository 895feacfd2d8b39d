"""Promises about a sandbox that depend on this machine's kernel, each tried by attacks in a real sandbox.

Nothing that the kernel says of itself is believed. A probe does what the agent does: it forks two workers by the text
of `agent.landlock`, and one of them attacks the agent, pid 1 and the other one.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import sys
from typing import Any

from atoll.agent import landlock
from atoll.errors import AtollError
from atoll.model.findings import Finding
from atoll.model.mounts import Bind, Identity
from atoll.sandbox.identity import Identities
from atoll.sandbox.launch import Launcher
from atoll.sandbox.policy import Policy, confine
from atoll.settings import Settings

SECONDS = 30.0
"""The limit of one trial."""

_ATTACK = """
import json, signal

def forked(work):
    pid = os.fork()
    if pid == 0:
        try:
            agent.enter()
            agent.set_dumpable(True)
            work()
        finally:
            os._exit(0)
    return pid

def wait():
    os.write(ready, b"1")
    signal.pause()

def allowed(act):
    try:
        act()
    except OSError:
        return False
    return True

def attack():
    aims = {"the agent": os.getppid(), "pid 1": 1, "another worker": other}
    print(json.dumps({
        "abi": agent.abi,
        "opened": [
            name for name, pid in aims.items()
            if any(allowed(lambda: os.close(os.open(f"/proc/{pid}/mem", how))) for how in (os.O_RDONLY, os.O_RDWR))
        ],
        "signalled": [name for name, pid in aims.items() if allowed(lambda: os.kill(pid, 0))],
    }), flush=True)

agent = Landlock()
agent.set_dumpable(False)
heard, ready = os.pipe()
other = forked(wait)
os.read(heard, 1)
os.waitpid(forked(attack), 0)
os.kill(other, signal.SIGKILL)
"""

_KERNEL = (
    "use Linux 6.12 or newer, with `landlock` in `/sys/kernel/security/lsm` (the kernel's option `lsm=`); in a "
    "container, with a runtime whose filter allows `landlock_create_ruleset`"
)


def policy_for(launcher: Launcher, identity: Identity, code: str) -> Policy:
    """Return the policy of a sandbox like a function's, in which this interpreter runs code."""
    command = [os.path.realpath(sys.executable), "-I", "-S", "-c", code]
    prefix = os.path.realpath(sys.base_prefix)
    return confine(
        command, machine=launcher.machine, identity=identity, binds=[Bind(prefix, prefix)], environment=(), workdir="/"
    )


async def try_promises(settings: Settings) -> list[Finding]:
    """Try them; nothing is found where no sandbox can be made."""
    launcher = Launcher(settings)
    try:
        identity = Identities(settings).builder()
        code = f"{inspect.getsource(landlock)}\n{_ATTACK}"
        done = await launcher.run(policy_for(launcher, identity, code), timeout_seconds=SECONDS)
        seen: dict[str, Any] = json.loads(done.output.splitlines()[-1])
        outlived = await _outlives(launcher, policy_for(launcher, identity, "import signal; signal.pause()"))
    except AtollError:
        return []
    except (ValueError, IndexError, TimeoutError) as error:
        fix = "report this with `atoll doctor --json`"
        return [Finding("workers apart", False, False, f"the probe failed: {error}", "they may be or not", fix)]
    return [*judge(int(seen["abi"]), seen["opened"], seen["signalled"]), _lifeline(outlived=outlived)]


def judge(abi: int, opened: list[str], signalled: list[str]) -> list[Finding]:
    """Return the findings of an attack; pure.

    Args:
        abi: the version of Landlock, 0 for none.
        opened: processes whose memory a worker has opened.
        signalled: processes that a worker could send a signal.
    """
    version = f"Landlock with ABI {abi}" if abi else "no Landlock"
    found = []
    for name, reached, detail, act, loses in (
        (
            "workers apart",
            opened,
            "opens no memory of other processes",
            "opens the memory of",
            "a function can read and change other workers of its own sandbox, never those of another",
        ),
        (
            "signals apart",
            signalled,
            "can signal no other process of its sandbox",
            "can signal",
            "a function can end other workers of its own sandbox, and the sandbox itself",
        ),
    ):
        if reached:
            why = f"not held: {version}, and a worker {act} {', '.join(reached)}"
            found.append(Finding(name, False, False, why, loses, _KERNEL))
        else:
            found.append(Finding(name, False, True, f"held: {version}; a worker {detail}"))
    return found


async def _outlives(launcher: Launcher, policy: Policy) -> bool:
    """Have the orphan killer believe that this process has ended; return whether a sandbox outlives that."""
    sandbox = launcher.launch(policy)
    try:
        await asyncio.wait_for(sandbox.known(), SECONDS)
        launcher.abandon()
        await asyncio.wait_for(sandbox.wait(), SECONDS)
    except TimeoutError:
        await sandbox.kill()
        return True
    return False


def _lifeline(*, outlived: bool) -> Finding:
    name = "end with the daemon"
    if outlived:
        loses = "functions may run on when the daemon is killed"
        fix = "use Linux 5.4 or newer; in a container, with a runtime whose filter allows `pidfd_send_signal`"
        return Finding(name, True, False, "not held: a sandbox outlives its launcher", loses, fix)
    return Finding(name, True, True, "held: a process outside ends sandboxes by their pidfds")
