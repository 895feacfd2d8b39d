"""Copies of a server's secrets on the machines that have joined it, each encrypted by a key of the machine's own.

Digests say which users' secrets differ, and only those travel, one user's at a time.
"""

from __future__ import annotations

import hashlib
import json
import logging
from functools import partial
from typing import Any

from atoll.daemon.secrets.store import SecretStore
from atoll.engine.contract import Engine

log = logging.getLogger("atoll.secrets")


def _digest(values: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _digests(store: SecretStore, owner: str) -> dict[str, str]:
    found = {user: dict(store.values(user).pairs) for user in store.users() if user != owner}
    return {user: _digest(values) for user, values in found.items() if values}


async def give(store: SecretStore, owner: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return `digests` of the secrets of all users but the owner; or with a `user` their `values`.

    Raises:
        ValueError: an argument is malformed.
        StateUnusable: they cannot be read.
    """
    user = arguments.get("user")
    if user is None:
        return {"digests": await store.threads.run("", partial(_digests, store, owner))}
    if not isinstance(user, str) or user == owner:
        raise ValueError("`user` is a user of the server")
    return {"values": dict((await store.threads.run(user, partial(store.values, user))).pairs)}


async def take(store: SecretStore, engine: Engine, owner: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Take copies. Workers of users whose secrets change end: idle ones now, busy ones after their call.

    Args:
        arguments: `digests` of all users who have secrets: others lose theirs here, and `differ` in the answer names those
            whose values are wanted; or a `user` with `values`.

    Raises:
        ValueError: an argument is malformed.
        StateUnusable: they cannot be kept.
    """
    digests, user, values = (arguments.get(name) for name in ("digests", "user", "values"))
    if isinstance(digests, dict):
        have = await store.threads.run("", partial(_digests, store, owner))
        for gone in sorted(have.keys() - digests.keys()):
            await store.threads.run(gone, partial(store.remove, gone))
            engine.renew_workers(gone)
        return {"differ": sorted(one for one, digest in digests.items() if have.get(one) != digest and one != owner)}
    if not isinstance(user, str) or user == owner or not isinstance(values, dict):
        raise ValueError("secrets come with `digests`, or with `user` and `values`")
    await store.threads.run(user, partial(store.take, user, values))
    engine.renew_workers(user)
    log.info("secrets_taken user=%s", user)
    return {}
