"""Requests about secrets, and secrets of calls. No answer, log line or error has a value."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

from atoll import errors
from atoll.daemon.secrets.store import SecretStore
from atoll.engine.contract import Engine
from atoll.model.secret_values import NONE, SecretValues
from atoll.model.specs import LeaseSpec

log = logging.getLogger("atoll.secrets")


class Asker(Protocol):
    """A caller: `leasing.Caller`."""

    @property
    def user(self) -> str: ...

    @property
    def parent(self) -> str | None: ...

    @property
    def may_administer(self) -> bool: ...


async def handle(
    store: SecretStore, engine: Engine, caller: Asker, name: str, arguments: dict[str, Any]
) -> dict[str, Any]:
    """Perform a request.

    - `secrets.list`: gives `secrets`, each with `name`, `changed_at` and the id of its `key`.
    - `secrets.set` (`name`, `value`), `secrets.delete` (`name`): change one. Idle workers end, busy ones after their call.
    - `secrets.rotate`, `secrets.remove` (`user`): for administrators; a new key, and the end of a user's secrets.

    Raises:
        ResourcesUnavailable: the name or value cannot be one, or it is not for this caller.
        SecretUnknown: there is no such secret to delete.
        StateUnusable: the secrets cannot be read or written.
    """
    user = caller.user
    if name == "secrets.list":
        return {"secrets": await store.threads.run(user, partial(store.list, user))}
    if name == "secrets.set":
        try:
            await store.threads.run(user, partial(store.set, user, arguments.get("name"), arguments.get("value")))
        except ValueError as error:
            raise errors.ResourcesUnavailable(
                f"the secret is not set: {error}", hint="see `atoll secrets --help`"
            ) from None
        engine.renew_workers(user)
        log.info("secret_set user=%s name=%s", user, arguments["name"])
        return {}
    if name == "secrets.delete":
        if not await store.threads.run(user, partial(store.delete, user, arguments.get("name"))):
            raise unknown([str(arguments.get("name"))[:200]], "see `atoll secrets list`")
        engine.renew_workers(user)
        log.info("secret_deleted user=%s name=%s", user, arguments["name"])
        return {}
    if name in ("secrets.rotate", "secrets.remove"):
        if not caller.may_administer:
            raise errors.ResourcesUnavailable(f"`{name}` is for administrators", hint="ask the machine's owner")
        if name == "secrets.rotate":
            return {"values": await store.threads.run(user, store.rotate)}
        await store.threads.run(user, partial(store.remove, str(arguments.get("user"))))
        return {}
    raise errors.ProtocolMismatch(f"the daemon does not know `{name}`", hint="`atoll stop` lets the newer start")


async def added(store: SecretStore, engine: Engine, caller: Asker, spec: LeaseSpec) -> LeaseSpec:
    """Return a checked spec with its caller's secrets.

    Code inside a sandbox gets those of the call around it. A function with `results="data"` gets those that it names.

    Raises:
        SecretUnknown: it names one that there is not.
        StateUnusable: they cannot be read.
    """
    if caller.parent is not None:
        found = engine.secrets_of(caller.parent)
    elif not store.exist(caller.user):
        found = NONE
    else:
        found = await store.threads.run(caller.user, partial(store.values, caller.user))
    return replace(spec, secret_values=_chosen(found, spec)) if found.pairs or spec.secrets else spec


def _chosen(found: SecretValues, spec: LeaseSpec) -> SecretValues:
    if spec.secrets is None:
        return found.without(name for name, _ in spec.env) if spec.trusted else NONE
    missing = [name for name in spec.secrets if name not in found.names]
    if missing:
        raise unknown(missing)
    return found.only(spec.secrets)


def unknown(names: list[str], hint: str = "") -> errors.SecretUnknown:
    """Return the error for secrets that a user does not have."""
    listed = ", ".join(f"`{name}`" for name in names)
    return errors.SecretUnknown(
        f"there is no secret {listed}", hint=hint or f"`atoll secrets set {names[0]}`, or see `atoll secrets list`"
    )
