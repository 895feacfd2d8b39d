"""Administrative acts on users, each with its line of the audit, in the caller's transaction."""

from __future__ import annotations

from sqlalchemy import Connection

from atoll.server.accounts import bodies, rows, separation
from atoll.server.accounts.audit import audit
from atoll.server.accounts.tokens import Pepper
from atoll.server.principal import ADMIN, Principal
from atoll.settings import Settings


def added_user(
    connection: Connection, pepper: Pepper, actor: Principal, asked: bodies.NewUser, options: Settings
) -> bodies.AddedUser:
    """Add a user in a transaction, with warnings of means that the machine lacks to keep several apart."""
    user = rows.add_user(
        connection,
        asked.name,
        operator=asked.operator,
        volume_bytes=asked.volume_bytes,
        volume_files=asked.volume_files,
        workers=asked.workers,
    )
    if asked.subject:
        rows.link(connection, user, asked.issuer, asked.subject)
    key = None
    if asked.key:
        key = bodies.made_key(*rows.add_key(connection, pepper, user, scope=ADMIN, alias="first", maker=actor.key))
    audit(connection, actor, "user.add", user.id, {"name": user.name, "operator": user.operator})
    count = len(rows.all_users(connection))
    return bodies.AddedUser(bodies.user_facts(user), key, separation.warnings(options, count) if count > 1 else [])


def removed_user(connection: Connection, actor: Principal, name: str) -> bodies.UserFacts:
    """Remove a user in a transaction."""
    user = rows.find_user(connection, name)
    rows.remove_user(connection, user)
    audit(connection, actor, "user.remove", user.id, {"name": user.name})
    return bodies.user_facts(user)


def revoked_key(connection: Connection, actor: Principal, key_id: str) -> rows.Key:
    """Revoke a key in a transaction: of the actor's, or for an operator of anybody's, which is an act."""
    key = rows.revoke(connection, key_id, "" if actor.may_administer else actor.user)
    if key.user != actor.user:
        audit(connection, actor, "key.revoke", key.id, {"user": key.user})
    return key


def revoked_keys(connection: Connection, actor: Principal, name: str) -> int:
    """Revoke all keys of a user, who stays, in a transaction; return their number."""
    found = rows.keys_of(connection, rows.find_user(connection, name))
    for key in found:
        revoked_key(connection, actor, key.id)
    return len(found)


def changed_quota(connection: Connection, actor: Principal, name: str, asked: bodies.Quotas) -> bodies.UserFacts:
    """Change quotas in a transaction."""
    given = {
        "volume_bytes": asked.volume_bytes,
        "volume_files": asked.volume_files,
        "workers": asked.workers,
    }
    changes = {quota: value for quota, value in given.items() if value is not None}
    user = rows.set_quota(connection, rows.find_user(connection, name), changes)
    audit(connection, actor, "user.set_quota", user.id, {"name": user.name, **changes})
    return bodies.user_facts(user)
