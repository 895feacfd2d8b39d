"""The terminal of a caller, as a call names it."""

from __future__ import annotations

from typing import NamedTuple

VARIABLES = (
    "TERM",
    "COLORTERM",
    "NO_COLOR",
    "FORCE_COLOR",
    "CLICOLOR",
    "CLICOLOR_FORCE",
    "PYTHON_COLORS",
    "COLUMNS",
    "LINES",
)
"""Variables of the caller's that a function on a terminal sees: they tell of its colours and size, and of no secret."""
MOST_CHARACTERS = 200
"""Characters of a variable that a call takes along."""


class Terminal(NamedTuple):
    """A terminal that is both standard output and standard error of a program.

    Args:
        descriptor: the caller's own, by which its size is read.
        variables: those of `VARIABLES` that are set, with their values.
    """

    descriptor: int
    variables: tuple[tuple[str, str], ...]
