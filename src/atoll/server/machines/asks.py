"""The machines of a server as requests see them: each answers, and one that is away does not."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Protocol

from atoll import errors
from atoll.server.principal import Principal

ANSWER_SECONDS = 10.0
"""Seconds for a machine's part of a merged answer; one that takes longer counts as away."""


class Asks(Protocol):
    """A node: the server's own (`server.node.Node`), or one behind a link."""

    async def ask(self, principal: Principal | None, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Answer a request in a user's name, or the server's own.

        Raises:
            HostUnreachable: the node is away.
            AtollError: as it answers.
        """
        ...


Answers = dict[str, dict[str, Any]]
Failures = dict[str, errors.AtollError]


async def asked_of_all(
    nodes: Mapping[str, Asks],
    principal: Principal | None,
    name: str,
    arguments: dict[str, Any],
    seconds: float | None = ANSWER_SECONDS,
) -> tuple[Answers, Failures]:
    """Ask all nodes at once; return the answers and the errors, by node.

    Args:
        seconds: a node that takes longer has failed; None waits for all.
    """

    async def ask(node: Asks) -> dict[str, Any] | errors.AtollError:
        try:
            async with asyncio.timeout(seconds):
                return await node.ask(principal, name, arguments)
        except errors.AtollError as error:
            return error
        except (TimeoutError, OSError) as error:
            return errors.HostUnreachable(f"a machine does not answer: {error}", hint="see `atoll nodes list`")

    found = dict(zip(nodes, await asyncio.gather(*(ask(node) for node in nodes.values())), strict=True))
    answers = {node: one for node, one in found.items() if isinstance(one, dict)}
    return answers, {node: one for node, one in found.items() if isinstance(one, errors.AtollError)}
