"""`BuildEnvironment`: an environment is built before the call that needs it, with the builder's lines as they come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from atoll.controller.callers import Caller
from atoll.controller.calls import isolated_for
from atoll.controller.logs import entry
from atoll.controller.messages import BUILDER, IN_PROGRESS, INFO, SUCCESS, messages
from atoll.terminal_text import printable
from atoll.web import hosted

METHOD = "cloudpickle"
"""That of the clients that build ahead."""


async def build(request: Any, caller: Caller, service: Any) -> AsyncIterator[Any]:
    """Answer `BuildEnvironment`."""
    loop = asyncio.get_running_loop()
    lines: asyncio.Queue[str | None] = asyncio.Queue()

    def tell(line: str) -> None:
        loop.call_soon_threadsafe(lines.put_nowait, line)

    def work() -> None:
        try:
            _, spec = isolated_for(caller, request, METHOD, hosted.call, results="data")
            asked = {"environment": caller.host.travelling(spec).environment.to_data()}
            caller.host.request("environments.build", asked, tell)
        finally:
            loop.call_soon_threadsafe(lines.put_nowait, None)

    def answer(state: int, **fields: Any) -> Any:
        return messages.BuildEnvironmentResult(status=messages.HostedRunStatus(state=state), **fields)

    yield answer(IN_PROGRESS)
    with service.callers.turn(caller):
        done = loop.run_in_executor(service.callers.calls, work)
        while (line := await lines.get()) is not None:
            yield answer(IN_PROGRESS, logs=[entry(printable(line), BUILDER, INFO)])
        await done
    yield answer(SUCCESS, env_id="built")
