"""`Run`: a call of a function, its log as it comes, and its result; or an app that is served as long as the client listens."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

from atoll import errors
from atoll.controller import ephemeral, workers
from atoll.controller.callers import Caller
from atoll.controller.calls import Hosted, Run
from atoll.controller.messages import IN_PROGRESS, SUCCESS, messages


async def run(request: Any, caller: Caller, service: Any) -> AsyncIterator[Any]:
    """Answer `Run`: the first answer comes before the call, which the client would repeat without one."""
    name = str(uuid4())

    def answer(state: int, **fields: Any) -> Any:
        return messages.HostedRunResult(run_id=name, status=messages.HostedRunStatus(state=state), **fields)

    yield answer(IN_PROGRESS)
    if request.machine_requirements.exposed_port:
        async with contextlib.aclosing(ephemeral.served(request, caller, service)) as words:
            async for fields in words:
                yield answer(IN_PROGRESS, **fields)
        return
    variables, secrets = await service.callers.blocking(workers.surroundings, caller, service, request)
    function = await service.callers.blocking(Hosted, caller, request, variables, secrets)
    with service.callers.turn(caller):
        call = Run(function, name, service.callers.calls)
        async for entries in call.entries():
            yield answer(IN_PROGRESS, logs=entries)
        outcome = await call.outcome()
    yield answer(SUCCESS, return_value=_returned(request.function.method, outcome))


def _returned(method: str, outcome: Any) -> Any:
    """Return the result, or the exception, as the client reads it.

    Raises:
        CallerError: there is none.
    """
    if not isinstance(outcome, dict) or not isinstance(outcome.get("definition"), bytes):
        reason = outcome.get("refused") if isinstance(outcome, dict) else ""
        raise errors.CallerError(str(reason or "the function's outcome cannot be read")[:4000], hint="")
    found = messages.SerializedObject(method=method, definition=outcome["definition"])
    if "traceback" in outcome:
        found.was_it_raised = True
        found.stringized_traceback = str(outcome["traceback"])
        found.exception_type_name, found.exception_message = str(outcome["type"]), str(outcome["text"])
    return found
