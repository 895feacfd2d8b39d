"""Ids of calls: unique among all calls, of all processes, and cheap."""

from __future__ import annotations

import itertools
import os

_token = os.urandom(6).hex()
_counter = itertools.count()


def new_id() -> str:
    """Return an id that no other call has."""
    return f"{_token}-{next(_counter)}"


def _new_token() -> None:
    global _token
    _token = os.urandom(6).hex()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_token)
