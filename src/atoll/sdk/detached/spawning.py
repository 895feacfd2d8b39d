"""From a function and arguments to detached calls that the host keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from atoll.host import detached, index_settings
from atoll.model import spool
from atoll.model.spool import RetryRule
from atoll.model.stored_call import StoredCall
from atoll.sdk.call import Request
from atoll.sdk.futures import new_id
from atoll.sdk.retries import Retries

if TYPE_CHECKING:
    from atoll.sdk.attempts import CallableFunction


def spawn(function: CallableFunction, args: Any, kwargs: Any) -> str:
    """Have a call kept and made; return its id.

    Raises:
        SerializationError: a part cannot be pickled.
        ResourcesUnavailable: a function asks.
        DetachedFull, DiskFull, StateUnusable, HostUnreachable: it is not kept.
    """
    detached.check(function.host)
    request = function._prepare().request(args, kwargs)
    return keep(function, [request])[0]


def keep(function: CallableFunction, requests: Sequence[Request], batch: str = "") -> list[str]:
    """Have requests of one function kept as calls; return their ids.

    Args:
        batch: the id of their batch; empty for a call that is in none.
    """
    first = requests[0]
    template = StoredCall(*first)
    rule = _rule(function.options.retries)
    digest = dict(first.spec.environment.index).get("certificates")
    trust = index_settings.certificates(digest) if digest else ""
    calls = [replace(request.call, terminal=None) for request in requests]
    return detached.accept(
        function.host,
        batch or new_id(),
        lambda: spool.pieces(template, calls, batch=batch, retries=rule, certificates=trust),
    )


def _rule(retries: Retries) -> RetryRule:
    names = tuple((kind.__module__, kind.__qualname__) for kind in retries.on)
    return RetryRule(retries.count, names, retries.wait_seconds, retries.factor, retries.most_seconds)
