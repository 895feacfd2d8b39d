"""Copies of a server's secrets on the machines that have joined it, each encrypted by a key of the machine's own."""

from __future__ import annotations

import hashlib
import json
import logging
from functools import partial
from typing import Any

from atoll.daemon.secrets.store import SecretStore
from atoll.engine.contract import Engine

log = logging.getLogger("atoll.secrets")


def digest_of(users: dict[str, dict[str, str]]) -> str:
    """Return the digest of all users' secrets."""
    return hashlib.sha256(json.dumps(users, sort_keys=True).encode()).hexdigest()


async def take(store: SecretStore, engine: Engine, owner: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Take the secrets of all users but the owner in place of those that there are, if their digest is another.

    Workers of users whose secrets have changed end: idle ones now, busy ones after their call.

    Args:
        arguments: `digest`, and `users` with values by name; without `users` nothing changes.

    Returns:
        `same`: whether this machine has those of the digest now.

    Raises:
        ValueError: an argument is malformed.
        StateUnusable: they cannot be kept.
    """
    digest, users = arguments.get("digest"), arguments.get("users")
    if users is None:
        return {"same": digest_of(await store.threads.run("", partial(store.copied, owner))) == digest}
    if not isinstance(users, dict) or not all(isinstance(one, dict) for one in users.values()) or owner in users:
        raise ValueError("`users` has secrets by user")
    for user in await store.threads.run("", partial(store.take, users, owner)):
        engine.renew_workers(user)
        log.info("secrets_taken user=%s", user)
    return {"same": True}
