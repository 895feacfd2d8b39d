"""The options `queue` and `webhooks` of `settings.toml`: requests that a server keeps, and addresses that it tells."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class QueueSettings:
    """Limits of queued requests.

    Args:
        keep_days: how long an answer is kept.
        max_bytes: the most that requests and answers take on the disk; the oldest answers go first, and a request that
            does not fit is refused.
        request_bytes, answer_bytes: the most of one body, and of one answer.
        max_waiting: requests that wait for one endpoint.
        attempts: how often a request is sent at most, where a runner is lost or has no time.
    """

    keep_days: float = 7.0
    max_bytes: int = 10 << 30
    request_bytes: int = 256 << 20
    answer_bytes: int = 1 << 30
    max_waiting: int = 100_000
    attempts: int = 10


@dataclass(frozen=True)
class WebhooksSettings:
    """Rules for the addresses that a server tells of answers.

    Args:
        allowed_networks: networks that may be told although they are not public, such as `10.1.0.0/16`.
        seconds: the most that one delivery may take.
    """

    allowed_networks: tuple[str, ...] = ()
    seconds: float = 15.0
