"""Routes about accounts: the caller, the caller's keys, and users for operators."""

from __future__ import annotations

from typing import Protocol

from starlette.requests import Request
from starlette.routing import BaseRoute

from atoll import errors
from atoll.server.accounts import acts, bodies, rows
from atoll.server.accounts.accounts import Accounts
from atoll.server.principal import ADMIN, Principal
from atoll.server.state import principal_of, state_of
from atoll.server.typed import typed


def routes() -> list[BaseRoute]:
    """Return the routes."""
    return [
        typed("/v1/whoami", "GET", whoami, answer=bodies.WhoAmI),
        typed("/v1/keys", "GET", list_keys, answer=bodies.Keys),
        typed("/v1/keys", "POST", make_key, body=bodies.NewKey, answer=bodies.MadeKey, status=201),
        typed("/v1/keys/{key}", "DELETE", revoke_key, answer=bodies.KeyFacts),
        typed("/v1/users", "GET", list_users, answer=bodies.Users),
        typed("/v1/users", "POST", add_user, body=bodies.NewUser, answer=bodies.AddedUser, status=201),
        typed("/v1/users/{user}", "DELETE", remove_user, answer=bodies.RemovedUser),
        typed("/v1/users/{user}/keys", "GET", list_keys_of, answer=bodies.Keys),
        typed("/v1/users/{user}/quota", "PUT", set_quota, body=bodies.Quotas, answer=bodies.UserFacts),
    ]


def accounts_of(request: Request) -> Accounts:
    """Return the accounts of the server that answers a request."""
    found: Accounts = state_of(request).parts["accounts"]
    return found


class AtNode(Protocol):
    """Acts at the node that go with those on users: `server.admin`."""

    async def removed(self, user: bodies.UserFacts, *, keep: bool) -> bodies.RemovedUser: ...

    async def limited(self, user: bodies.UserFacts) -> None: ...


def at_node(request: Request) -> AtNode:
    """Return the acts at the node of the server that answers a request."""
    found: AtNode = state_of(request).parts["at_node"]
    return found


async def administrator_of(request: Request) -> Principal:
    """Return the operator who asks.

    Raises:
        NotAuthorized: the request has no valid key, or one that does not administer.
    """
    principal = await principal_of(request)
    if not principal.may_administer:
        raise insufficient("this is for operators, with a key of the scope ADMIN")
    return principal


async def _owner_of(request: Request) -> Principal:
    """Return the caller, whose key may make and revoke keys."""
    principal = await principal_of(request)
    if principal.scope != ADMIN:
        raise insufficient("a key of the scope API does not handle keys")
    return principal


def insufficient(reason: str) -> errors.NotAuthorized:
    """Return the error for a key that is not for this."""
    return errors.NotAuthorized(
        f"insufficient permissions: {reason}", hint="use another key, or ask an operator", status=403
    )


async def whoami(request: Request) -> bodies.WhoAmI:
    """Tell the user and the key of the request."""
    found = await principal_of(request)
    return bodies.WhoAmI(found.user, found.name, found.key, found.scope, found.operator)


async def list_keys(request: Request) -> bodies.Keys:
    """List the caller's keys, without secrets."""
    principal = await _owner_of(request)
    found = await accounts_of(request).database.run(
        lambda connection: rows.keys_of(connection, rows.find_user(connection, principal.user)), writes=False
    )
    return bodies.Keys([bodies.key_facts(key) for key in found])


async def make_key(request: Request, asked: bodies.NewKey) -> bodies.MadeKey:
    """Make a key of the caller's; its secret is shown this once. It expires with the key that asks, at the latest."""
    principal = await _owner_of(request)
    accounts = accounts_of(request)
    key, secret = await accounts.database.run(
        lambda connection: rows.add_key(
            connection,
            accounts.pepper,
            rows.find_user(connection, principal.user),
            scope=asked.scope,
            alias=asked.alias,
            seconds=asked.expires_seconds,
            maker=principal.key,
        )
    )
    return bodies.made_key(key, secret)


async def revoke_key(request: Request) -> bodies.KeyFacts:
    """Revoke a key of the caller's at once, for operators any user's; any key may revoke itself."""
    key_id = request.path_params["key"]
    principal = await principal_of(request)
    if principal.scope != ADMIN and key_id != principal.key:
        raise insufficient("a key of the scope API revokes itself alone")
    gone = await accounts_of(request).change(lambda connection: acts.revoked_key(connection, principal, key_id))
    return bodies.key_facts(gone)


async def list_keys_of(request: Request) -> bodies.Keys:
    """List a user's keys, without secrets; for operators."""
    await administrator_of(request)
    name = request.path_params["user"]
    found = await accounts_of(request).database.run(
        lambda connection: rows.keys_of(connection, rows.find_user(connection, name)), writes=False
    )
    return bodies.Keys([bodies.key_facts(key) for key in found])


async def list_users(request: Request) -> bodies.Users:
    """List all users; for operators."""
    await administrator_of(request)
    found = await accounts_of(request).database.run(rows.all_users, writes=False)
    return bodies.Users([bodies.user_facts(user) for user in found])


async def add_user(request: Request, asked: bodies.NewUser) -> bodies.AddedUser:
    """Add a user, with a first key of the scope ADMIN unless that is not wanted; for operators."""
    principal = await administrator_of(request)
    accounts, options = accounts_of(request), state_of(request).node.options
    added = await accounts.database.run(
        lambda connection: acts.added_user(connection, accounts.pepper, principal, asked, options)
    )
    if asked.volume_bytes or asked.volume_files:
        await at_node(request).limited(added.user)
    return added


async def remove_user(request: Request) -> bodies.RemovedUser:
    """Remove a user with all keys, at once, and end their calls; for operators.

    The volume is put aside, and with `volume=delete` in the query removed.
    """
    principal = await administrator_of(request)
    name, volume = request.path_params["user"], request.query_params.get("volume", "keep")
    if volume not in ("keep", "delete"):
        raise errors.CallerError("`volume` is `keep` or `delete`", hint="`?volume=delete` removes the volume")
    gone = await accounts_of(request).change(lambda connection: acts.removed_user(connection, principal, name))
    return await at_node(request).removed(gone, keep=volume == "keep")


async def set_quota(request: Request, asked: bodies.Quotas) -> bodies.UserFacts:
    """Change quotas of a user; for operators."""
    principal = await administrator_of(request)
    name = request.path_params["user"]
    accounts = accounts_of(request)
    changed = await accounts.change(lambda connection: acts.changed_quota(connection, principal, name, asked))
    await at_node(request).limited(changed)
    return changed
