"""The row of a detached call, as the store keeps it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from atoll.model import mounts
from atoll.model.records import CallRecord
from atoll.model.spool import RetryRule

STATES = ("waiting", "running", "finished")
"""A call waits until it is sent to a worker; it runs until its outcome is known."""

OWNER = mounts.OWNER

_LEFT_OUT = {
    *("user", "spool", "place", "template", "identity", "max_concurrency", "retries", "error"),
    *("unwanted", "bundle", "bundle_bytes", "renewal", "request", "template_bytes"),
}


@dataclass(frozen=True)
class Row:
    """One detached call.

    Args:
        call, user, function: as in `model.records.CallRecord`.
        batch, number: the batch and the call's place in it; empty and 0 for a call that is in none.
        spool: the file with its arguments, which the node has named; `place` is its number there.
        template: the file with its function, where it is another one; named so as well.
        identity, max_concurrency: as in `model.specs.LeaseSpec`.
        results: how result and exception come back: `pickle` or `data`.
        stream: 1 if the answer has items before the result.
        retries: the rule as JSON.
        on_done: `notify` tells the owner of the call's end, or of its batch's.
        state: one of `STATES`.
        outcome: one of `model.records.OUTCOMES` for a finished call.
        error: JSON: Atoll's error as data, or `type` and `text` of the function's exception; empty for none.
        attempts: how often the call was sent to a worker.
        due_at: when it may be made, in seconds since the epoch.
        queued_at, started_at, ended_at: seconds since the epoch; 0 for not yet.
        spool_bytes, result_bytes, output_bytes: sizes on the disk.
        revision: grows with each change.
        ended: the number of its end among all calls; 0 for not yet.
        unwanted: 1 if it was cancelled while it ran.
        bundle, bundle_bytes: the file with the project's modules, while the call may need it, and its size.
        renewal: the id of the request that has last had it made again.
        request: the client's id of the spool; empty where an earlier version gave the file this name.
        template_bytes: the size of the template, while the call may need it.
        deployed: app and name of a deployed function, as in `app/name`; empty for others.
    """

    call: str
    user: str
    function: str = ""
    batch: str = ""
    number: int = 0
    spool: str = ""
    place: int = 0
    template: str = ""
    identity: str = ""
    max_concurrency: int = 0
    results: str = "pickle"
    stream: int = 0
    retries: str = ""
    on_done: str = ""
    state: str = "waiting"
    outcome: str = ""
    error: str = ""
    attempts: int = 0
    due_at: float = 0.0
    queued_at: float = 0.0
    started_at: float = 0.0
    ended_at: float = 0.0
    spool_bytes: int = 0
    result_bytes: int = 0
    output_bytes: int = 0
    revision: int = 0
    ended: int = 0
    unwanted: int = 0
    bundle: str = ""
    bundle_bytes: int = 0
    renewal: str = ""
    request: str = ""
    template_bytes: int = 0
    deployed: str = ""

    @property
    def asked(self) -> str:
        """The client's id of the spool."""
        return self.request or self.spool

    @property
    def rule(self) -> RetryRule:
        """The retries that are left out of `attempts`.

        Raises:
            ValueError: the row is damaged.
        """
        return RetryRule.from_data(json.loads(self.retries)) if self.retries else RetryRule()

    @staticmethod
    def rule_text(rule: RetryRule) -> str:
        """Return the text of `retries`."""
        return json.dumps(rule.to_data())

    @property
    def failure(self) -> dict[str, Any]:
        """The error as data; empty for none."""
        found = json.loads(self.error) if self.error else {}
        return found if isinstance(found, dict) else {}

    def record(self) -> CallRecord:
        """Return the record of a finished call that no worker has reported."""
        failure = self.failure
        return CallRecord(
            call=self.call,
            function=self.function,
            user=self.user,
            queued_at=self.queued_at,
            started_at=self.started_at,
            wall_seconds=max(self.ended_at - self.started_at, 0.0) if self.started_at else 0.0,
            bytes_out=self.result_bytes,
            outcome=self.outcome,
            error=str(failure.get("type") or failure.get("code") or ""),
            message=str(failure.get("text") or failure.get("message") or ""),
        )

    def to_data(self) -> dict[str, Any]:
        """Return the row for a client."""
        data = {name: value for name, value in asdict(self).items() if name not in _LEFT_OUT}
        return {**data, "error": self.failure}
