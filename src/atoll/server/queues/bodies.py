"""Answers of the routes of queues."""

from __future__ import annotations

import msgspec


class Queue(msgspec.Struct, frozen=True):
    """Requests to an endpoint, or spawned calls of a deployed function, that are not over.

    Args:
        name: the alias, or `app/function`.
        kind: `served` or `called`.
        waiting, running: how many.
    """

    name: str
    kind: str
    waiting: int
    running: int


class Queues(msgspec.Struct, frozen=True):
    """The caller's queues, by name."""

    queues: list[Queue]


class Entry(msgspec.Struct, frozen=True):
    """A request, or a call.

    Args:
        id: of it.
        state: `waiting`, `building` or `running`.
        position: how many are before it; 0 for the next, and for one that runs.
        queued_at, started_at: seconds since the epoch; 0 for not known or not yet.
        attempts: how often it was begun.
        detail: the reason of a wait, or the step of a build.
    """

    id: str
    state: str
    position: int
    queued_at: float
    started_at: float = 0.0
    attempts: int = 0
    detail: str = ""


class Shown(msgspec.Struct, frozen=True):
    """A queue with its entries: those that run, and the first that wait."""

    name: str
    kind: str
    waiting: int
    running: int
    entries: list[Entry]


class Flushed(msgspec.Struct, frozen=True):
    """The end of all that waited."""

    name: str
    cancelled: int
