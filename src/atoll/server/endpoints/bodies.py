"""Bodies and answers of the routes of endpoints."""

from __future__ import annotations

import msgspec

AUTHS = ("private", "public", "shared")
"""Who may call: the owner's keys; anybody; any user of the server."""


class Options(msgspec.Struct, frozen=True):
    """How a revision is served.

    Args:
        min_concurrency: runners that are kept although nobody asks.
        max_concurrency: the most runners.
        max_multiplexing: requests that a runner has at a time.
        keep_alive: seconds that an idle runner is kept.
        startup_timeout: seconds until a runner's port must answer.
        request_timeout: seconds until an answer must begin; 0 for no bound.
        health_path: a path that must answer `200` before a runner gets requests, such as `/health`; empty for the port alone.
        rate_limit: requests a minute of each key, or address where nobody is asked; 0 for no bound.
        cors: origins of pages that may call it, such as `https://app.example`; `*` for all.
        ephemeral: it is served for a program that listens to this process of the server; without an alias the next process
            removes it.
    """

    min_concurrency: int = 0
    max_concurrency: int = 2
    max_multiplexing: int = 1
    keep_alive: float = 10.0
    startup_timeout: float = 600.0
    request_timeout: float = 3600.0
    health_path: str = ""
    rate_limit: int = 0
    cors: tuple[str, ...] = ()
    ephemeral: bool = False


class NewRevision(msgspec.Struct, frozen=True):
    """A function to be served; its spool follows in the body.

    Args:
        function: its name.
        port: that its server listens on.
        alias: that is to point to it; empty for none.
        auth: one of `AUTHS`.
    """

    function: str
    port: int
    alias: str = ""
    auth: str = "private"
    options: Options = Options()


class Failing(msgspec.Struct, frozen=True):
    """The failure of runners that do not start.

    Args:
        error: of the last one.
        failures: in a row.
        next_try: seconds since the epoch; 0 where the next request tries.
    """

    error: str
    failures: int
    next_try: float = 0.0


class Revision(msgspec.Struct, frozen=True):
    """A revision; `alias` is empty for one that none points to."""

    id: str
    function: str
    port: int
    auth: str
    options: Options
    created: float
    alias: str = ""
    path: str = ""
    runners: int = 0
    failing: Failing | None = None


class Revisions(msgspec.Struct, frozen=True):
    """The revisions of the caller, the newest first."""

    revisions: list[Revision]


class Removed(msgspec.Struct, frozen=True):
    """The ids of revisions that were removed."""

    revisions: list[str]


class Alias(msgspec.Struct, frozen=True):
    """An alias and the revision that it points to."""

    alias: str
    revision: str
    function: str
    auth: str
    changed: float
    runners: int
    options: Options
    failing: Failing | None = None


class Aliases(msgspec.Struct, frozen=True):
    """The aliases of the caller, by name."""

    aliases: list[Alias]


class SetAlias(msgspec.Struct, frozen=True):
    """The revision that an alias is to point to; empty for the one before the present one."""

    revision: str = ""


class NewToken(msgspec.Struct, frozen=True):
    """A token for browsers.

    Args:
        allowed_apps: aliases, or `OWNER/ALIAS`, that it is for.
        token_expiration: seconds.
    """

    allowed_apps: tuple[str, ...]
    token_expiration: float = 120.0


class Token(msgspec.Struct, frozen=True):
    """A token that was made."""

    token: str
