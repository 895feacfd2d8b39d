"""Requests of the owner's server about all users: figures of their calls, and the end of a user."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from functools import partial
from typing import Any

from atoll import errors, process
from atoll.daemon import leasing
from atoll.daemon.leasing import Caller
from atoll.daemon.secrets import copies
from atoll.daemon.services import Services
from atoll.detached.batches import MOST_AT_ONCE
from atoll.detached.store import Store
from atoll.environments.asked import uploaded
from atoll.model.options.storage import REMOVED

log = logging.getLogger("atoll.administration")

REQUESTS = ("calls.export", "users.remove", "secrets.copy", "secrets.take")
MOST_EXPORTED = 10_000
AGAIN_SECONDS = 0.2
KILL_SECONDS = 15.0
"""Seconds that a removed user's calls have to end, past their own grace; and builds."""


async def handle(services: Services, caller: Caller, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Perform a request of the owner's.

    - `calls.export` (`generation`, `after`, `limit`): the figures of calls of all users past a record's number, as
      `records`, and the `generation` of the file of records; records of another generation begin at its first.
    - `users.remove` (`user`; `keep`): ends a user's calls, forgets secrets and quota, removes environments and logs of
      builds, and puts the volume aside, below `removed/`, or removes it; gives `kept`, its new place, empty for none.
    - `secrets.copy`, `secrets.take`: copies of secrets for a server's other machines; see `secrets.copies`.

    Raises:
        ResourcesUnavailable: it is not for this caller.
        ValueError: an argument is malformed.
        StateUnusable: the records cannot be read, or the volume cannot be moved.
    """
    leasing.check_owner(caller, f"ask for `{name}`")
    if caller.remote:
        raise errors.ResourcesUnavailable(
            f"`{name}` is for the server itself", hint="use `atoll users` or `atoll admin`"
        )
    if name == "calls.export":
        return await _exported(services, arguments)
    if name == "secrets.copy":
        return await copies.give(services.secrets, caller.user, arguments)
    if name == "secrets.take":
        return await copies.take(services.secrets, services.engine, caller.user, arguments)
    user, keep = arguments.get("user"), arguments.get("keep", True)
    if not isinstance(user, str) or not isinstance(keep, bool) or user == caller.user:
        raise ValueError("`user` is a user of the server, `keep` true or false")
    return {"kept": await _removed(services, Caller(user).user, keep)}


async def _exported(services: Services, arguments: dict[str, Any]) -> dict[str, Any]:
    after, limit = arguments.get("after", 0), arguments.get("limit", 0)
    if type(after) is not int or type(limit) is not int or not 0 <= limit <= MOST_EXPORTED:
        raise ValueError(f"`after` and `limit` are numbers, `limit` at most {MOST_EXPORTED}")
    generation, records = await asyncio.wrap_future(
        services.recorder.ask(lambda database: database.export(after, limit))
    )
    if generation != arguments.get("generation"):
        generation, records = await asyncio.wrap_future(
            services.recorder.ask(lambda database: database.export(0, limit))
        )
    return {"generation": generation, "records": list(records)}


async def _removed(services: Services, user: str, keep: bool) -> str:
    deadline: float | None = None

    async def end_calls() -> None:
        """Ask calls to end, and kill those that have not for too long."""
        nonlocal deadline
        running = await services.engine.running(user)
        if deadline is None:
            longest = max((call.lease.spec.grace_seconds for call in running), default=0.0)
            deadline = time.monotonic() + longest + KILL_SECONDS
        for call in running:
            if time.monotonic() > deadline:
                call.lease.kill()
            else:
                services.engine.cancel_call(call)

    await _cancel_detached(services, user)
    async with services.engine.quiet(user, end_calls):
        await services.secrets.threads.run(user, partial(services.secrets.remove, user))
        services.node.quotas.forget(user)
        await services.node.stores.remove(user, KILL_SECONDS)
        kept = await _put_aside_alone(services, user, keep)
    with contextlib.suppress(errors.StateUnusable):
        await asyncio.wrap_future(services.recorder.ask(lambda database: database.forget(user)))
    log.info("user_removed user=%s kept=%s", user, kept)
    return kept


async def _cancel_detached(services: Services, user: str) -> None:
    while True:
        rows = await services.detached.ask(
            lambda store: store.listed(user, states=("waiting", "running"), limit=MOST_AT_ONCE)
        )
        wanted = [row.call for row in rows if not row.unwanted]
        if not wanted:
            return
        ended = await services.detached.ask(partial(Store.cancel_all, calls=wanted))
        for row in ended:
            services.detached.record(row)
        services.detached.cancel(rows)
        services.detached.wake_all()


async def _put_aside_alone(services: Services, user: str, keep: bool) -> str:
    """As `_put_aside`, as soon as other machines that share the volume have ended the user's calls as well."""
    deadline = time.monotonic() + KILL_SECONDS
    while True:
        try:
            async with services.node.data.presence.alone(user):
                return await _put_aside(services, user, keep)
        except errors.VolumeBusy:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(AGAIN_SECONDS)


async def _put_aside(services: Services, user: str, keep: bool) -> str:
    """Take the volume out of the users' directory, in one step; then remove it, unless it is to be kept."""
    uploads = uploaded.of_user(services.settings, user)
    volumes = services.settings.volumes_directory
    volume, place = volumes / user, volumes.with_name(REMOVED)  # one file system
    await process.run(["rm", "-rf", "--", str(uploads)], env={"PATH": os.defpath})  # packages for builds
    if not volume.exists():
        return ""
    target = place / f"{user}-{time.strftime('%Y%m%d-%H%M%S')}-{os.urandom(2).hex()}"
    try:
        place.mkdir(mode=0o700, exist_ok=True)
        os.rename(volume, target)
    except OSError as error:
        raise errors.StateUnusable(
            f"the volume of `{user}` cannot be moved to `{target}`: {error.strerror}", hint="look at both directories"
        ) from error
    if keep:
        return str(target)
    done = await process.run(["rm", "-rf", "--one-file-system", str(target)], env={"PATH": os.defpath})
    if done.status:
        raise errors.StateUnusable(
            f"the removed volume in `{target}` cannot be removed whole", hint="remove it by hand", output=done.output
        )
    return ""
