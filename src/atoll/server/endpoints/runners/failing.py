"""Failures of an endpoint's runners, and the rest before the next one that nobody has asked for. Pure."""

from __future__ import annotations

LEAST_SECONDS, MOST_SECONDS = 1.0, 300.0
"""The rest after the first failure, and the longest one; each is twice as long as the one before."""
STABLE_SECONDS = 30.0
"""Seconds that a runner must live for the failures before it to be forgotten."""


class Failing:
    """Failures in a row; moments are those of a monotonic clock."""

    def __init__(self) -> None:
        self.failures = 0
        self.error = ""
        """Of the last one; empty once a runner has started."""
        self._next = 0.0

    def failed(self, error: str, now: float) -> None:
        """Note a failure; those that meet the rest after an earlier one make it no longer."""
        self.error = error
        if now >= self._next:
            self.failures += 1
            self._next = now + min(LEAST_SECONDS * 2.0 ** min(self.failures - 1, 30), MOST_SECONDS)

    def started(self) -> None:
        """Note that a runner has started; it may end soon, and so the next rest is no shorter yet."""
        self.error = ""

    def over(self) -> None:
        """Forget all failures: a runner has lived for long, or the revision is served anew."""
        self.failures, self.error, self._next = 0, "", 0.0

    def rest_seconds(self, now: float) -> float:
        """Return the seconds until a runner may be started that nobody has asked for; 0 for now."""
        return max(self._next - now, 0.0)
