"""A user's gate: while it is shut, no call of the user begins, but for those that calls which run are waiting for."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from atoll.engine.actions import Request


class Gates:
    """The gates of all users; all are open at first."""

    def __init__(self) -> None:
        self._held: dict[str, deque[Request]] = {}

    def shut(self, user: str) -> bool:
        """Shut a user's gate; False when it is shut already."""
        if user in self._held:
            return False
        self._held[user] = deque()
        return True

    def open(self, user: str, ask: Callable[[Request], None]) -> None:
        """Open it, and ask for what was held up, in the order in which it came."""
        for request in self._held.pop(user, ()):
            ask(request)

    def holds(self, user: str, request: Request) -> bool:
        """Hold a request up, if it comes to a gate that is shut; nested ones pass."""
        held = self._held.get(user)
        if held is None or request.parent is not None:
            return False
        held.append(request)
        return True

    def withdraw(self, request: str) -> None:
        """Forget a request that is not wanted any more."""
        for held in self._held.values():
            for one in [one for one in held if one.id == request]:
                held.remove(one)

    def is_shut(self, user: str) -> bool:
        return user in self._held
