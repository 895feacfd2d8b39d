"""Copies on every machine of what the server decides: secrets, quotas, and removals of users that a machine has missed.

The server's own node keeps the secrets; the others have copies, encrypted by keys of their own. A machine that links gets
what it has missed before it is given calls (`join`). Removals wait in a file until then.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from atoll import errors
from atoll.server.machines.asks import Asks, Failures, asked_of_all

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

    async def join(self, name: str, node: Asks) -> None:
        """Bring a machine up to date that has just linked.

        Raises:
            AtollError: it does not take something; it is not up to date.
        """
        for request, arguments in self._missed().get(name, []):
            await node.ask(None, request, arguments)
        self._forget(name)
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

    async def later(self, names: Iterable[str], request: str, arguments: dict[str, Any]) -> None:
        """Keep a request for machines that are away.

        Raises:
            StateUnusable: it cannot be kept.
        """
        missed = self._missed()
        for name in set(names):
            missed.setdefault(name, []).append([request, arguments])
        if missed:
            self._write(missed)

    def _missed(self) -> dict[str, list[Any]]:
        with contextlib.suppress(FileNotFoundError, ValueError):
            found: dict[str, list[Any]] = json.loads(self._file.read_text("utf-8"))
            return found
        return {}

    def _forget(self, name: str) -> None:
        missed = self._missed()
        if missed.pop(name, None) is not None:
            self._write(missed)

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
