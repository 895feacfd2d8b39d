"""Machines that are reached over ssh, by the keys of the user who runs this, and have `atoll` installed.

Theory of operation. A machine is asked for `atoll node status` first. One that has joined this server already runs again
without a token; another one gets a fresh token of one use, on the standard input, so it is in no list of processes there.
The node then runs in the background of that machine, and dials the server: the connection of ssh is not needed any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import shlex
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from atoll import errors
from atoll.model.options.cluster import ClusterSettings
from atoll.terminal_text import cell, printable

SECONDS = 90.0
"""Seconds that one command may take there: a node has begun, or has ended in order, in so many."""
AT_A_TIME = 8
MOST_OUTPUT_BYTES = 64 << 10
MOST_CERTIFICATES_BYTES = 512 << 10
_MACHINE = re.compile(r"(?:ssh://)?[A-Za-z0-9_][A-Za-z0-9_.:@%\[\]-]{0,254}")
_NO_PROGRAM, _SSH_FAILED = 127, 255

Token = Callable[[], Awaitable[str]]
"""Makes a fresh token to join."""


@dataclass(frozen=True)
class Start:
    """The way to join for the machines of a fleet.

    Args:
        url: of the server, as they reach it.
        token: makes one for each of them.
        name: of the node; empty for the machine's own.
        labels: for placement.
    """

    url: str
    token: Token
    name: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)


class Answer:
    """The end of a command on a machine: its status, and its output in full."""

    def __init__(self, status: int, output: str, told: str) -> None:
        self.status, self.output, self.told = status, output, told


class SshFleet:
    """Machines over ssh; see `cluster.contract.Fleet`.

    Args:
        options: of the settings.
        start: the way to join; None for fleets that only list and stop.
    """

    def __init__(self, options: ClusterSettings, start: Start | None = None) -> None:
        self._options = options
        self._start = start
        self._turns = asyncio.Semaphore(AT_A_TIME)

    async def start(self, machine: str) -> None:
        """Have a machine join, unless it has joined already, and run its node.

        Raises:
            HostUnreachable: it cannot be reached, has no `atoll`, or its node does not start; with the next step.
        """
        assert self._start is not None
        found = await self._status(machine)
        start = self._start
        if found.get("url") == start.url and found.get("node") and start.name in ("", found.get("name")):
            if not found.get("pid"):
                await self._told(machine, ["node", "run", "--detach"])
            return
        if found.get("pid"):
            await self._told(machine, ["node", "stop"])
        asked = ["node", "join", start.url, "--token-file", "-", "--detach"]
        asked += ["--replace"] if found else []
        asked += ["--name", start.name] if start.name else []
        for key, value in start.labels.items():
            asked += ["--label", f"{key}={value}"]
        trusted = certificates(self._options)
        asked += ["--ca-file", "-"] if trusted else []
        token = await start.token()
        await self._told(machine, asked, f"{token}\n".encode() + trusted)

    async def machines(self) -> Sequence[Mapping[str, Any]]:
        """Return rows of the machines: `machine`, `state` (`alive`, `dead`, `unknown`), `node`, and `reason` if unknown."""
        return list(await asyncio.gather(*(self._row(machine) for machine in self._options.machines)))

    async def stop(self, machine: str) -> None:
        """End a machine's node in order.

        Raises:
            HostUnreachable: it cannot be reached, or the node does not end.
        """
        await self._told(machine, ["node", "stop"])

    # --- commands ---------------------------------------------------------------------------------------------------

    async def _row(self, machine: str) -> dict[str, Any]:
        try:
            found = await self._status(machine)
        except errors.AtollError as error:
            return {"machine": machine, "state": "unknown", "node": "", "reason": error.message}
        state = "alive" if found.get("pid") else "dead"
        return {"machine": machine, "state": state, "node": str(found.get("name", ""))}

    async def _status(self, machine: str) -> dict[str, Any]:
        """Return the status of a machine's node as it says; empty if it has joined no server."""
        answer = await self._run(machine, ["node", "status", "--json"])
        try:
            found = json.loads(answer.output)
            return found if isinstance(found, dict) else {}
        except (ValueError, RecursionError):
            if answer.status == 1 and "has joined no server" in answer.told:
                return {}
        raise self._failed(machine, answer)

    async def _told(self, machine: str, words: Sequence[str], given: bytes = b"") -> None:
        answer = await self._run(machine, words, given)
        if answer.status != 0:
            raise self._failed(machine, answer)

    async def _run(self, machine: str, words: Sequence[str], given: bytes = b"") -> Answer:
        """Run a command of `atoll` on a machine.

        Raises:
            HostUnreachable: it cannot be reached in time, or is none.
        """
        if not _MACHINE.fullmatch(machine):  # ssh would take some names for options
            raise errors.HostUnreachable(
                f"`{cell(machine, 80)}` is no name of a machine", hint="give one that `ssh` knows: `user@gpu2`"
            )
        options = self._options
        command = [*shlex.split(options.command), *words, *(["--home", options.home] if options.home else [])]
        argv = [*options.ssh, "-T", "--", machine, shlex.join(command)]
        async with self._turns:
            try:
                child = await asyncio.create_subprocess_exec(
                    *argv,
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.PIPE,
                    start_new_session=True,  # ssh asks nobody for a password
                    limit=MOST_OUTPUT_BYTES,
                )
            except OSError as error:
                raise errors.HostUnreachable(
                    f"`{cell(options.ssh[0] if options.ssh else '', 80)}` cannot be started: {error.strerror}",
                    hint="install an ssh client, or mend `cluster.ssh` in settings.toml",
                ) from error
            try:
                async with asyncio.timeout(SECONDS):
                    output, told = await child.communicate(given)
            except TimeoutError:
                raise errors.HostUnreachable(
                    f"`{printable(machine)}` has not answered in {SECONDS:.0f} s", hint=f"try: `ssh {machine}`"
                ) from None
            finally:
                if child.returncode is None:
                    with contextlib.suppress(ProcessLookupError):
                        child.kill()
                    await child.wait()
        texts = [part[-MOST_OUTPUT_BYTES:].decode(errors="replace") for part in (output, told)]
        return Answer(child.returncode or 0, *texts)

    def _failed(self, machine: str, answer: Answer) -> errors.HostUnreachable:
        shown, told = printable(machine), _last_lines(answer.told or answer.output)
        if answer.status == _SSH_FAILED:
            return errors.HostUnreachable(f"cannot reach `{shown}`: {told}", hint=f"try: `ssh {shown} true`")
        if answer.status == _NO_PROGRAM:
            return errors.HostUnreachable(
                f"there is no `{printable(self._options.command)}` on `{shown}`",
                hint="install it there: `pip install 'atoll[server]'`; or name it by `cluster.command` in settings.toml",
            )
        return errors.HostUnreachable(f"`{shown}`: {told}", hint=f"look there: `ssh {shown} atoll node status`")


def certificates(options: ClusterSettings) -> bytes:
    """Return the certificates that machines trust in place of their system's; empty for the system's.

    Raises:
        HostUnreachable: their file cannot be read.
    """
    if not options.ca_file:
        return b""
    try:
        with open(Path(options.ca_file).expanduser(), "rb") as opened:
            return opened.read(MOST_CERTIFICATES_BYTES)
    except OSError as error:
        raise errors.HostUnreachable(
            f"cannot read the certificates in `{printable(options.ca_file)}`: {error.strerror}",
            hint="name another file",
        ) from error


def _last_lines(text: str) -> str:
    """Return that which a command has said, in one line."""
    lines = [line.removeprefix("error: ") for line in text.strip().splitlines() if line.strip()]
    return cell("; ".join(lines[-3:]), 400) or "it has said nothing"
