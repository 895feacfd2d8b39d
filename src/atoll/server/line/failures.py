"""Failures of a session, as its client hears of them."""

from __future__ import annotations

import logging

from atoll import errors

log = logging.getLogger("atoll.lines")


def failure_of(error: Exception) -> errors.AtollError:
    """Return the named error for what a session has met; one that nobody expected is logged."""
    if isinstance(error, errors.AtollError):
        return error
    if isinstance(error, OSError):
        return errors.HostUnreachable(f"cannot reach the node: {error}", hint="try again in a while")
    log.error("session_failed", exc_info=error)
    return errors.InternalError("the server failed", hint="please report it with the server's log")
