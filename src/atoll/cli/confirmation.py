"""Questions before something is removed: a terminal is asked, a script says `--yes` where nothing brings it back.

A question names counts, sizes, and the cost of having it again. Where no person can answer, a command that destroys
the only copy is refused without `--yes`; one whose loss is made good by a rebuild or a snapshot goes on.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Annotated

import cyclopts

from atoll.cli.programs.program import TargetError
from atoll.cli.terminal import ask, echo

Yes = Annotated[bool, cyclopts.Parameter(name=("--yes", "-y"), negative="")]
DryRun = Annotated[bool, cyclopts.Parameter(name="--dry-run", negative="")]

MOST_NAMED = 10
"""Lines of a question that name one thing each."""


def is_answerable() -> bool:
    """Return whether a person can read a question and answer it."""
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stderr))


def confirmed(things: Iterable[str], costs: Sequence[str], question: str, *, replaceable: bool) -> bool:
    """Ask on a terminal; elsewhere return True for that which can be had again.

    Args:
        things: lines that name what goes, of which the first `MOST_NAMED` are shown.
        costs: lines that say the total, and the cost of having it again.
        question: such as "remove them?".
        replaceable: it can be had again.

    Raises:
        TargetError: nobody can answer, and it cannot be had again.
    """
    if not is_answerable():
        if replaceable:
            return True
        raise TargetError(
            f"{'; '.join(costs)}: not done without a question, and this is no terminal", hint="say `--yes`"
        )
    named = list(things)
    for line in named[:MOST_NAMED]:
        echo(f"  {line}", error=True)
    if len(named) > MOST_NAMED:
        echo(f"  and {len(named) - MOST_NAMED} more", error=True)
    for line in costs:
        echo(line, error=True)
    if ask(f"{question} [y/N] ").strip().lower() in ("y", "yes"):
        return True
    echo("nothing was changed", error=True)
    return False


def counted(number: int, one: str, several: str = "") -> str:
    """Return a number with its noun: `1 file`, `3,000 files`."""
    return f"{number:,} {one if number == 1 else several or f'{one}s'}"
