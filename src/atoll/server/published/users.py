"""The caller, as the published clients ask for it."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.routing import BaseRoute

from atoll.server.endpoints.bodies import NewToken
from atoll.server.published.answers import Failed, route
from atoll.server.state import principal_of, state_of

MOST_TOKEN_SECONDS = 3600.0


def routes() -> list[BaseRoute]:
    """Return the routes."""
    return [
        route("/users/current", "GET", current),
        route("/users/teams", "GET", teams),
        route("/billing/user_details", "GET", billing),
        route("/tokens/", "POST", make_token),
    ]


async def current(request: Request) -> Any:
    """Tell the user of the key: the nickname is the owner in addresses of endpoints."""
    user = await principal_of(request)
    return {
        "full_name": user.name,
        "nickname": user.name,
        "user_id": f"atoll|{user.user}",
        "is_personal": True,
        "is_locked": False,
    }


async def teams(request: Request) -> Any:
    """Tell that the user has no teams."""
    await principal_of(request)
    return []


async def billing(request: Request) -> Any:
    """Tell the user's id: what follows the bar is the owner in names of endpoints."""
    user = await principal_of(request)
    budgets = {"soft_monthly_budget": 0, "hard_monthly_budget": 0, "current_balance": 0}
    return {"user_id": f"atoll|{user.user}", **budgets}


async def make_token(request: Request) -> Any:
    """Make a short-lived token for browsers; the answer is the text itself."""
    user = await principal_of(request)
    try:
        asked = msgspec.json.decode(await request.body(), type=NewToken)
    except msgspec.MsgspecError as error:
        raise Failed(422, str(error)) from error
    seconds = min(max(asked.token_expiration, 1.0), MOST_TOKEN_SECONDS)
    return state_of(request).parts["gateway"].tokens.make(user.key, asked.allowed_apps, seconds)
