"""The part of accounts of a server: its routes, and authentication by the users' keys."""

from __future__ import annotations

import os
import shlex

from atoll import settings
from atoll.daemon import shared_uid
from atoll.server.accounts import separation
from atoll.server.accounts.accounts import Accounts
from atoll.server.accounts.routes import routes
from atoll.server.database.address import address_of, remember
from atoll.server.state import ServerState


class Lines:
    """The lines of a server, as holders of keys."""

    def __init__(self, state: ServerState) -> None:
        self._state = state

    def held(self) -> set[tuple[str, str]]:
        """Return user and key of each line."""
        parts = self._state.parts
        found = parts["sessions"].all() if "sessions" in parts else ()
        elsewhere: set[tuple[str, str]] = parts["cluster"].held() if "cluster" in parts else set()
        return {(session.principal.user, session.principal.key) for session in found} | elsewhere

    def end_of(self, user: str, key: str) -> None:
        """End the lines of a key."""
        for holder in ("sessions", "cluster"):
            self._state.parts[holder].end_of(user, key)


def install(state: ServerState) -> None:
    """Add the part: `state.parts["accounts"]` and `["page_sessions"]`, and who may ask."""
    home = state.node.options.home
    address = address_of(home, state.options.database)
    accounts = Accounts(home, address)
    remember(home, address)
    accounts.holders.append(Lines(state))
    state.parts["accounts"] = accounts
    state.parts["page_sessions"] = accounts.sessions
    state.authenticate = accounts.authenticate
    state.routes += routes()
    state.lifespan.append(accounts.watching)
    count = accounts.count_users()
    separation.check(state.node.options, count)
    if os.geteuid() != 0 and shared_uid.allowed(state.node.options):
        state.notices.append("warning: a plain user runs this server, so the functions of all users have one host uid")
    state.notices += [f"warning: {line}" for line in separation.warnings(state.node.options, count)]
    if not count:
        place = "" if home == settings.default_home() else f" --home {shlex.quote(str(home))}"
        state.notices.append(
            f"no users yet: `atoll users add NAME --operator{place}` on this machine makes the first, and prints a key for "
            "`atoll auth login`"
        )
