"""Names of a server's users, beside calls of all of them: for administrators."""

from __future__ import annotations

from typing import TYPE_CHECKING

from atoll import errors, settings
from atoll.cli import hosts
from atoll.cli.accounts.place import has_accounts, opened
from atoll.terminal_text import printable

if TYPE_CHECKING:
    from atoll.host.contract import Host


def names_of_users(host: Host) -> dict[str, str]:
    """Return the names of a host's users by their ids; this machine's owner is one of them.

    Raises:
        NotAuthorized: the key is no operator's, or has not the scope.
    """
    server = hosts.server_of(host)
    if server is not None:
        found = server.ask("GET", "/v1/users")["users"]
        return {user["id"]: user["name"] for user in found}
    names = {"local": "local"}
    if has_accounts(settings.default_home()):
        with opened("", home=settings.default_home()) as place:
            names |= {user["id"]: user["name"] for user in place.list_users()}
    return names


def user_named(names: dict[str, str], name: str) -> str:
    """Return the id of the user with a name or an id.

    Raises:
        CallerError: there is none.
    """
    found = [user for user, known in names.items() if name in (user, known)]
    if not found:
        raise errors.CallerError(f"no user is called `{printable(name)}`", hint="see `atoll users list`")
    return found[0]
