"""The record of a finished call: its maker, its place, its usage, its outcome."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from atoll import errors

OUTCOMES = ("ok", "error", "exited", "killed", "out_of_memory", "timeout", "cancelled", "lost", "refused")
"""Outcomes of a call: it returned; it raised; it ended its worker itself; a signal ended the worker; it used more
memory than it may; it took longer than its `timeout`; its caller cancelled it or has left; its sandbox was lost; it
never started, because its environment cannot be built or the machine cannot serve it."""


def outcome_of(error: BaseException, other: str) -> str:
    """Return the outcome of a call that ended with an error of Atoll's; `other` for every other error."""
    for kind, outcome in (
        (errors.CallCancelled, "cancelled"),
        (errors.CallTimeout, "timeout"),
        (errors.OutOfMemory, "out_of_memory"),
    ):
        if isinstance(error, kind):
            return outcome
    if isinstance(error, errors.WorkerDied):
        return "killed" if error.signal is not None else "exited"
    return other


@dataclass(frozen=True)
class CallRecord:
    """One call that is over, or one attempt of it where it was made again.

    Args:
        call: the call's id, which its caller chose.
        function: the function's name.
        user: whose call it was.
        parent: the call whose function made this one; empty for a program's own.
        queued_at, started_at: seconds since the epoch; `started_at` is 0 for a call that never started.
        wall_seconds: from its arrival at the worker to its answer.
        cpu_seconds: user and system time of the worker and of those of its children that it has waited for.
        peak_bytes: the most memory that one process of the call had in use; the limit's own count where that ended it.
        bytes_in, bytes_out: the payload's size: function and arguments, result or exception.
        outcome: one of `OUTCOMES`.
        error: name of the exception's type; empty where there is none.
        message: the exception's text, with its frames.
        environment: the environment's key.
        sandbox, worker: their ids in the daemon that ran the call.
        gpus: the number of GPUs that its sandbox had.
    """

    call: str
    function: str = ""
    user: str = ""
    parent: str = ""
    queued_at: float = 0.0
    started_at: float = 0.0
    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_bytes: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    outcome: str = "ok"
    error: str = ""
    message: str = ""
    environment: str = ""
    sandbox: str = ""
    worker: str = ""
    gpus: int = 0

    @property
    def queue_seconds(self) -> float:
        """Seconds that the call waited for its environment, a slot and a worker."""
        return max(self.started_at - self.queued_at, 0.0) if self.started_at else 0.0

    def to_data(self) -> dict[str, Any]:
        """Return the record as JSON-compatible data, `queue_seconds` included."""
        return {**asdict(self), "queue_seconds": self.queue_seconds}
