"""The part of logins of a server: `/v1/auth` tells how people log in, `/v1/auth/device` brokers the device flow."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Annotated

import msgspec
from starlette.requests import Request

from atoll import errors
from atoll.server.accounts.bodies import MadeKey, made_key
from atoll.server.login.device import DeviceLogins
from atoll.server.login.options import load
from atoll.server.state import ServerState, state_of
from atoll.server.typed import typed


class Ways(msgspec.Struct, frozen=True):
    """The ways to log in: `device` is true where an issuer knows people, and `issuer` is its address."""

    device: bool
    issuer: str


class Begin(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A device login to begin; the alias is for the key that it makes."""

    alias: Annotated[str, msgspec.Meta(max_length=64)] = ""


class BegunLogin(msgspec.Struct, frozen=True):
    """A login to confirm at `verification_uri`; `device` is the token to ask with, a secret."""

    device: str
    user_code: str
    verification_uri: str
    verification_uri_complete: str
    expires_in: float
    interval: float


class Poll(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A question how a login stands."""

    device: Annotated[str, msgspec.Meta(max_length=100)]


class Polled(msgspec.Struct, frozen=True):
    """The key of a login that was confirmed; else none, and the seconds to wait before asking again."""

    key: MadeKey | None
    interval: float


def install(state: ServerState) -> None:
    """Add the part, after that of accounts; `state.parts["logins"]` is there where an issuer is configured."""
    state.routes += [
        typed("/v1/auth", "GET", ways, answer=Ways, public=True),
        typed("/v1/auth/device", "POST", begin, body=Begin, answer=BegunLogin, status=201, public=True),
        typed("/v1/auth/device/poll", "POST", poll, body=Poll, answer=Polled, public=True),
    ]
    options = load(state.node.options.home)
    if not options.issuer:
        return
    from atoll.server.login.issuer import Issuer  # 0.5 s to import, for servers that have one

    logins = DeviceLogins(state.parts["accounts"], Issuer(options))
    state.parts["logins"] = logins

    @contextlib.asynccontextmanager
    async def opened() -> AsyncIterator[None]:
        try:
            yield
        finally:
            await logins.issuer.close()

    state.lifespan.append(opened)


def _logins(request: Request) -> DeviceLogins:
    found = state_of(request).parts.get("logins")
    if not isinstance(found, DeviceLogins):
        raise errors.CallerError(
            "this server has no issuer of identities", hint="log in with a key: `atoll auth login --key -`", status=404
        )
    return found


def _address(request: Request) -> str:
    return request.client.host if request.client is not None else ""


async def ways(request: Request) -> Ways:
    """Tell how people log in; needs no key."""
    found = state_of(request).parts.get("logins")
    return Ways(True, found.issuer.options.issuer) if isinstance(found, DeviceLogins) else Ways(False, "")


async def begin(request: Request, asked: Begin) -> BegunLogin:
    """Begin a login at the issuer; needs no key."""
    logins = _logins(request)
    token, begun = await logins.begin(_address(request), asked.alias)
    return BegunLogin(token, begun.user_code, begun.address, begun.complete, logins.seconds_left(begun), begun.interval)


async def poll(request: Request, asked: Poll) -> Polled:
    """Tell how a login stands, and hand over its key once the person has confirmed it; needs no key."""
    found = await _logins(request).poll(asked.device, _address(request))
    return Polled(None, found) if isinstance(found, float) else Polled(made_key(*found), 0.0)
