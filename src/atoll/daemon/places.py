"""Places and memory that callers hold in the daemon while a context is open, by function, user and in all."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator

from atoll import errors
from atoll.daemon.leasing import Caller
from atoll.daemon.services import Services
from atoll.model.specs import LeaseSpec, held_bytes

STORAGE_PLACE_SECONDS = 3.0
"""Seconds that a function waits for one of them: a client that opens several in turn does not see the last one end."""


@contextlib.asynccontextmanager
async def storage_place(services: Services, caller: Caller) -> AsyncIterator[None]:
    """Count a storage peer of a function while the context is open; each is a process outside the worker's limits.

    Raises:
        ResourcesUnavailable: the function, or all together, have as many as they may for `STORAGE_PLACE_SECONDS`.
    """
    places, opener = services.storage_places, caller.opener
    if not caller.nested:
        async with services.users.storage(caller.user) if caller.remote else contextlib.nullcontext():
            yield
        return
    deadline = time.monotonic() + STORAGE_PLACE_SECONDS
    while not places.take(opener):
        if time.monotonic() < deadline:
            await asyncio.sleep(0.05)
            continue
        raise errors.ResourcesUnavailable(
            f"functions may work on `/data` through {places.most['worker']} clients each at a time, and all functions "
            f"together through {places.most['total']}",
            hint="sync fewer directories at a time, or read and write `/data` directly",
        )
    try:
        yield
    finally:
        places.take(opener, -1)


def shell(services: Services, caller: Caller) -> contextlib.AbstractContextManager[None]:
    """Count a shell of a server's user while the context is open; raises as `Users.shell`."""
    return services.users.shell(caller.user) if caller.remote else contextlib.nullcontext()


@contextlib.contextmanager
def request_bytes(services: Services, caller: Caller, spec: LeaseSpec) -> Iterator[None]:
    """Account for the memory of a function's request for a lease while the context is open.

    Raises:
        ResourcesUnavailable: the requests of the function, or of several together, hold as much as they may.
    """
    if not caller.nested:
        with services.users.request_bytes(caller.user, held_bytes(spec)) if caller.remote else contextlib.nullcontext():
            yield
        return
    account, opener, size = services.request_bytes, caller.opener, held_bytes(spec)
    if full := account.full(opener, size):
        whose = "all functions together" if full == "total" else f"the functions of one {full}"
        raise errors.ResourcesUnavailable(
            f"the daemon holds {account.most[full] >> 20} MiB of requests of {whose}, the most that it takes",
            hint="make fewer calls at a time, or put large values of `env` into a file below `/data`",
        )
    account.take(opener, size)
    try:
        yield
    finally:
        account.take(opener, -size)
