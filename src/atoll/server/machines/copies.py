"""Copies on every machine of what the server decides: secrets, quotas, and removals of users that a machine has missed.

The server's own node keeps the secrets; the others have copies, encrypted by keys of their own. A machine that links gets
what it has missed before it is given calls (`join`). A removal is in a file from before the first machine is asked until
each has done it: so it is repeated where it fails, also after a crash of the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from atoll import errors
from atoll.server.machines.asks import Answers, Asks, Failures, asked_of_all

FILE = "machines-missed.json"
"""In the state directory: requests by machine, in order."""

Quotas = Callable[[], Awaitable[list[dict[str, Any]]]]
"""Returns the arguments of `quotas.set` for each user who has quotas."""


class Copies:
    """Keeps copies on machines right.

    Args:
        own: keeps the secrets.
        file: see `FILE`.
        quotas: see `Quotas`.
    """

    def __init__(self, own: Asks, file: Path, quotas: Quotas) -> None:
        self._own, self._file, self._quotas = own, file, quotas
        self.changing = asyncio.Lock()
        """Held while secrets change, and while they are copied."""
        self._asked: list[tuple[str, list[Any]]] = []

    async def join(self, name: str, node: Asks) -> None:
        """Bring a machine up to date that has just linked.

        Raises:
            AtollError: it does not take something; it is not up to date.
        """
        await self.make_up(name, node)
        for arguments in await self._quotas():
            await node.ask(None, "quotas.set", arguments)
        async with self.changing:
            for error in (await self.copy({name: node})).values():
                raise error

    async def copy(self, nodes: Mapping[str, Asks]) -> Failures:
        """Copy all secrets to machines that have others; to be called with `changing` held. Returns who did not take them.

        Raises:
            AtollError: the server's own node does not give them.
        """
        if not nodes:
            return {}
        digests = (await self._own.ask(None, "secrets.copy", {}))["digests"]
        answers, failures = await asked_of_all(nodes, None, "secrets.take", {"digests": digests})
        for user in sorted({user for answer in answers.values() for user in answer["differ"]}):
            values = (await self._own.ask(None, "secrets.copy", {"user": user}))["values"]
            wanting = {name: nodes[name] for name, answer in answers.items() if user in answer["differ"]}
            _, failed = await asked_of_all(wanting, None, "secrets.take", {"user": user, "values": values})
            failures |= failed
        return failures

    # --- requests that machines have missed --------------------------------------------------------------------------

    async def everywhere(
        self, nodes: Mapping[str, Asks], away: Sequence[str], request: str, arguments: dict[str, Any]
    ) -> tuple[Answers, Failures]:
        """Have all machines perform a request, those that are away or fail later on (`make_up`).

        Raises:
            StateUnusable: it cannot be kept for those.
        """
        entry, lost = [request, arguments], None
        try:
            self._keep({*nodes, *away}, entry)
        except errors.StateUnusable as error:
            lost = error
        asked = [(name, entry) for name in nodes]
        self._asked += asked
        try:
            answers, failures = await asked_of_all(nodes, None, request, arguments, None)
        finally:
            self._asked = [one for one in self._asked if one not in asked]
        if lost is None:
            with contextlib.suppress(errors.StateUnusable):  # it is asked for once more then, and there is nothing left
                self._forget(dict.fromkeys(answers, entry))
        elif failures or away:
            raise lost
        return answers, failures

    def missing(self) -> list[str]:
        """Return the machines that have missed something."""
        return list(self._missed())

    async def make_up(self, name: str, node: Asks) -> None:
        """Have a machine perform what it has missed, but for that which it is being asked just now.

        Raises:
            AtollError: it does not take something; later requests wait for that one.
        """
        for entry in self._missed().get(name, []):
            if (name, entry) not in self._asked:
                await node.ask(None, entry[0], entry[1])
                self._forget({name: entry})

    def _keep(self, names: Iterable[str], entry: list[Any]) -> None:
        missed = self._missed()
        for name in names:
            if entry not in missed.setdefault(name, []):
                missed[name].append(entry)
        if missed:
            self._write(missed)

    def _missed(self) -> dict[str, list[Any]]:
        with contextlib.suppress(FileNotFoundError, ValueError):
            found: dict[str, list[Any]] = json.loads(self._file.read_text("utf-8"))
            return found
        return {}

    def _forget(self, done: Mapping[str, list[Any]]) -> None:
        before = self._missed()
        left = {name: [one for one in entries if one != done.get(name)] for name, entries in before.items()}
        left = {name: entries for name, entries in left.items() if entries}
        if left == before:
            return
        if left:
            self._write(left)
        else:
            self._file.unlink(missing_ok=True)

    def _write(self, missed: dict[str, list[Any]]) -> None:
        temporary = self._file.with_name(f".{self._file.name}")
        try:
            with open(temporary, "w", encoding="utf-8", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
                json.dump(missed, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self._file)
        except OSError as error:
            raise errors.StateUnusable(
                f"cannot write `{self._file}`: {error.strerror}", hint="mend the directory, or make room on the disk"
            ) from error
