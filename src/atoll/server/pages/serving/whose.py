"""The user whose endpoints, requests and schedules a page shows: the visitor, or for operators one whom they choose."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlencode

from atoll.server.pages.calls import whose_calls
from atoll.server.pages.visit import Visit


@dataclass(frozen=True)
class Whose:
    """A user whose things are shown; nobody but the visitor changes or calls any.

    Args:
        user: the id.
        own: it is the visitor.
        users: names of all users by id, for operators.
    """

    user: str
    own: bool
    users: dict[str, str]

    @property
    def query(self) -> dict[str, str]:
        """The parameters that addresses of these pages need."""
        return {} if self.own else {"user": self.user}

    @property
    def more(self) -> str:
        """The end of an address without other parameters."""
        return f"?{urlencode(self.query)}" if self.query else ""


async def whose_of(visit: Visit) -> Whose:
    """Return the user that the address asks for; of others than operators always themselves.

    Raises:
        CallerError: there is no such user.
    """
    found = await whose_calls(visit)
    user = found.filters.get("user", visit.user.user)
    return Whose(user, user == visit.user.user, found.users)
