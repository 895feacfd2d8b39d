"""Routes below `/v1/revisions` and `/v1/aliases`: functions are registered, and aliases pointed to them."""

from __future__ import annotations

from uuid import uuid4

import msgspec
from sqlalchemy import Connection
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from atoll import errors
from atoll.server.accounts.routes import insufficient
from atoll.server.database.database import Database
from atoll.server.endpoints import rows
from atoll.server.endpoints.bodies import (
    AUTHS,
    Alias,
    Aliases,
    NewRevision,
    NewToken,
    Options,
    Revision,
    Revisions,
    SetAlias,
    Token,
)
from atoll.server.endpoints.gateway import Gateway
from atoll.server.endpoints.receiving import Receiver
from atoll.server.endpoints.runners.runners import Runners
from atoll.server.principal import ADMIN, Principal
from atoll.server.state import ServerState, principal_of, state_of
from atoll.server.typed import typed

MOST_BYTES = 1 << 30
"""The most of a function with its modules."""
MOST_RUNNERS = 1000
MOST_FACTS = 64 << 10
REVISIONS = "/v1/revisions"


def routes() -> list[BaseRoute]:
    """Return the routes."""
    return [
        Route(REVISIONS, register, methods=["POST"]),
        typed(REVISIONS, "GET", list_revisions, answer=Revisions),
        typed("/v1/tokens", "POST", make_token, body=NewToken, answer=Token, status=201),
        typed("/v1/aliases", "GET", list_aliases, answer=Aliases),
        typed("/v1/aliases/{alias}", "PUT", set_alias, body=SetAlias, answer=Alias),
        typed("/v1/aliases/{alias}", "DELETE", delete_alias, answer=Alias),
    ]


async def _owner_of(request: Request) -> Principal:
    principal = await principal_of(request)
    if principal.scope != ADMIN:
        raise insufficient("a key of the scope API calls endpoints, and registers none")
    return principal


def _parts(request: Request) -> tuple[Database, Runners, Gateway]:
    return _of_state(state_of(request))


def _of_state(state: ServerState) -> tuple[Database, Runners, Gateway]:
    parts = state.parts
    return parts["accounts"].database, parts["runners"], parts["gateway"]


async def register(request: Request) -> Response:
    """Register a function as a new revision: a JSON line that says what it is, and then its spool."""
    principal = await _owner_of(request)
    database, runners, gateway = _parts(request)
    name = str(uuid4())

    def names(new: NewRevision) -> list[str]:
        _check(new)
        return [name]

    with Receiver(runners.directory) as receiver:
        new, (spool,) = await receiver.receive(request, NewRevision, names, lambda _: (), MOST_FACTS)
        found_row = {
            "id": name,
            "function": new.function[:400],
            "port": new.port,
            "options": msgspec.json.encode(new.options).decode(),
            "auth": new.auth,
            "size_bytes": spool.size_bytes,
        }

        def add(connection: Connection) -> tuple[str, rows.Revision | None]:
            before = rows.add(connection, principal.user, found_row, new.alias)
            return before, rows.by_id(connection, name)

        before, added = await database.run(add)
        receiver.keep()
    gateway.forget()
    if before:
        runners.retire(before)
    if added is not None and added.alias:
        runners.renew(added)
    answer = Revision(
        name, new.function, new.port, new.auth, new.options, 0.0, new.alias, f"/{principal.name}/{new.alias or name}"
    )
    return Response(msgspec.json.encode(answer), 201, media_type="application/json")


def _check(new: NewRevision) -> None:
    """Check a function that is to be registered.

    Raises:
        CallerError: a part cannot be.
    """
    if new.auth not in AUTHS:
        raise errors.CallerError(f"`auth` is one of {', '.join(AUTHS)}", hint="leave it out for `private`")
    if not 0 < new.port < 1 << 16:
        raise errors.CallerError("a port is a number from 1 to 65535", hint="give another port")
    check_options(new.options)
    if new.alias:
        rows.check_alias(new.alias)


def check_options(options: Options) -> None:
    """Check how a revision is to be served.

    Raises:
        CallerError: a number is out of range, or the path of the health check is none.
    """
    ranges = {
        "min_concurrency": (0, options.max_concurrency),
        "max_concurrency": (1, MOST_RUNNERS),
        "max_multiplexing": (1, 10_000),
        "keep_alive": (0, 30 * 86400),
        "startup_timeout": (1, 86400),
        "request_timeout": (0, 86400),
        "rate_limit": (0, 1_000_000),
    }
    for name, (least, most) in ranges.items():
        if not least <= getattr(options, name) <= most:
            raise errors.CallerError(f"`{name}` must be from {least} to {most}", hint="give another number")
    path = options.health_path
    if path and not (path.startswith("/") and path.isascii() and path.isprintable() and " " not in path):
        raise errors.CallerError("`health_path` must begin with `/`", hint="such as `/health`")


def _shown(one: rows.Revision, runners: Runners) -> Revision:
    path, state = f"/{one.owner}/{one.alias or one.id}", runners.state(one.id)
    return Revision(one.id, one.function, one.port, one.auth, one.options, one.created, one.alias, path, *state)


async def list_revisions(request: Request) -> Revisions:
    """List the caller's revisions, the newest first."""
    principal, (database, runners, _) = await principal_of(request), _parts(request)
    found = await database.run(lambda connection: rows.all_of(connection, principal.user), writes=False)
    return Revisions([_shown(one, runners) for one in found])


async def list_aliases(request: Request) -> Aliases:
    """List the caller's aliases by name."""
    principal, (database, runners, _) = await principal_of(request), _parts(request)
    found = await database.run(lambda connection: rows.all_of(connection, principal.user), writes=False)
    return Aliases(sorted((_alias(one, runners) for one in found if one.alias), key=lambda one: one.alias))


def _alias(one: rows.Revision, runners: Runners) -> Alias:
    count, failing = runners.state(one.id)
    return Alias(one.alias, one.id, one.function, one.auth, one.created, count, one.options, failing)


async def set_alias(request: Request, body: SetAlias) -> Alias:
    """Point an alias to a revision of the caller's; without one to the revision before."""
    principal, state = await _owner_of(request), state_of(request)
    found = await pointed(state, principal, request.path_params["alias"], body.revision)
    return _alias(found, state.parts["runners"])


async def pointed(state: ServerState, principal: Principal, alias: str, revision: str) -> rows.Revision:
    """Point an alias to a revision of a user's, and return that; an empty one is the revision before.

    Raises:
        CallerError: there is no such revision, or the alias is none.
    """
    database, runners, gateway = _of_state(state)
    rows.check_alias(alias)

    def change(connection: Connection) -> tuple[str, rows.Revision]:
        wanted = revision or rows.previous(connection, principal.user, alias)
        if not wanted:
            raise errors.CallerError(f"`{alias}` has pointed to no revision before", hint="see `atoll function list`")
        if wanted not in {one.id for one in rows.all_of(connection, principal.user)}:
            raise errors.CallerError("there is no such revision", hint="see `atoll function list`", status=404)
        before = rows.point(connection, principal.user, alias, wanted)
        found = rows.find(connection, principal.user, alias)
        assert found is not None
        return before, found

    before, found = await database.run(change)
    gateway.forget()
    runners.renew(found)
    if before and before != found.id:
        runners.retire(before)
    return found


async def delete_alias(request: Request) -> Alias:
    """Delete an alias; its revision stays callable by its id."""
    principal, state = await _owner_of(request), state_of(request)
    found = await deleted(state, principal, request.path_params["alias"])
    return _alias(found, state.parts["runners"])


async def deleted(state: ServerState, principal: Principal, alias: str) -> rows.Revision:
    """Delete an alias of a user's, and return the revision that it has pointed to.

    Raises:
        CallerError: there is no such alias.
    """
    database, runners, gateway = _of_state(state)

    def change(connection: Connection) -> rows.Revision | None:
        found = rows.find(connection, principal.user, alias)
        rows.delete_alias(connection, principal.user, alias)
        return found

    found = await database.run(change)
    gateway.forget()
    assert found is not None
    runners.retire(found.id)
    return found


async def make_token(request: Request, body: NewToken) -> Token:
    """Make a short-lived token with which a browser calls some endpoints."""
    principal, (_, _, gateway) = await principal_of(request), _parts(request)
    return Token(gateway.tokens.make(principal.key, body.allowed_apps, body.token_expiration))
