"""Turns, by which requests that wait hold up other sides (`engine.waits`) and then do not. Pure.

The longer a request has waited, the longer are its turns: it gets in as soon as a turn is as long as a call. Turns are
the machine's: a new request begins no new one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from atoll.engine.actions import Request


@dataclass
class Turns:
    """Times in which requests that wait hold up other sides, and times in which they do not.

    Args:
        ends: when the present time is over; None while nobody holds up another side.
        open: it is one in which nobody does.
        seconds: of a time.
        wish: how long the next one is to be; None if nobody is held up.
    """

    ends: float | None = None
    open: bool = False
    seconds: float = 0.0
    wish: float | None = None

    def ask(self, now: float, wish: float | None) -> None:
        """Note how long requests that wait want to hold up others now; the first time begins with the first."""
        self.wish = wish
        if wish is not None and self.ends is None:
            self.ends, self.open, self.seconds = now + wish, False, wish

    def pass_time(self, now: float) -> bool:
        """Begin the next time if this one is over, and return whether it was."""
        if self.ends is None or now < self.ends:
            return False
        self.open = not self.open
        if not self.open:
            self.seconds = self.wish or 0.0
        self.ends = now + self.seconds if self.wish is not None else None
        self.open = self.open and self.ends is not None
        return True


class BothTurns:
    """Turns of programs' requests, and those of functions' requests: neither makes the other's longer or shorter."""

    def __init__(self) -> None:
        self._turns = {False: Turns(), True: Turns()}

    def of(self, request: Request) -> Turns:
        """Return the turns that a request takes part in."""
        return self._turns[request.parent is not None]

    def ask(self, now: float, wishes: Mapping[bool, float]) -> None:
        """Note how long requests want to hold up others, functions' under True."""
        for nested, turns in self._turns.items():
            turns.ask(now, wishes.get(nested))

    def pass_time(self, now: float) -> bool:
        """Begin what is due, and return whether that is anything."""
        passed = [turns.pass_time(now) for turns in self._turns.values()]
        return any(passed)

    def ends(self) -> list[float]:
        """Return when times end."""
        return [turns.ends for turns in self._turns.values() if turns.ends is not None]


def turn_of(request: Request, waited: float) -> float:
    """Return for how many seconds a request that has waited so long may hold up other sides."""
    if request.parent is not None:
        return min(max(waited / 2, FIRST_OF_FUNCTION), MOST_OF_FUNCTION)
    return max(waited / 2, FIRST_OF_PROGRAM)


FIRST_OF_PROGRAM = 30.0
FIRST_OF_FUNCTION = 5.0
MOST_OF_FUNCTION = 60.0
"""Seconds. A function's code is not trusted: its calls hold up others for a shorter time, and never for longer."""
