"""Classes that travel between tests and workers; needs nothing that an empty environment lacks."""

from __future__ import annotations


class Point:
    """Instances that come back must be of this very class."""

    def __init__(self, x: int) -> None:
        self.x = x


class TwoArguments(Exception):
    """An exception that ordinary pickling cannot rebuild."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code}: {text}")
        self.code = code
