"""Means by which the machine keeps users apart, a network and a host uid each: its operator is told of those it lacks."""

from __future__ import annotations

import logging
import os

from atoll import errors
from atoll.daemon import shared_uid
from atoll.sandbox import programs
from atoll.sandbox.network import prerequisites
from atoll.settings import Settings

_log = logging.getLogger("atoll.server")


def check(options: Settings, count: int) -> None:
    """Check that so many users can be kept apart by network.

    Raises:
        SandboxUnavailable: there are several, and no pasta.
    """
    if count < 2:
        return
    try:
        programs.find_pasta(options.sandbox.pasta)
    except errors.SandboxUnavailable as error:
        raise errors.SandboxUnavailable(
            f"{count} users need networks of their own: {error.message}",
            hint=f"{error.hint}; or remove all users but one: `atoll users remove NAME`",
        ) from error


def warnings(options: Settings, count: int) -> list[str]:
    """Return lines for the operator of a server with so many users, and note each in the log with its cause."""
    found = [*_of_uids(options, count), *_of_networks(options, count)]
    for line in found:
        _log.warning("users_not_kept_apart", extra={"fields": {"users": count, "cause": line}})
    return found


def _of_uids(options: Settings, count: int) -> list[str]:
    if os.geteuid() == 0 or count < 2 or shared_uid.allowed(options):
        return []
    return [
        f"{count} users, and a server of a plain user serves one: run it as root, or with `--share-uid-between-users`"
    ]


def _of_networks(options: Settings, count: int) -> list[str]:
    if options.users.share_network and count < 2:
        return []
    try:
        prerequisites.check(options)
    except errors.SandboxUnavailable as error:
        lost = (
            f"{count} users, and the server serves one"
            if count > 1
            else 'functions run with `network="none"` alone, and a second user is not served'
        )
        return [f"{error.message}: {lost}; {error.hint} on the server's machine"]
    return []
