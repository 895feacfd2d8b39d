"""From a function and arguments to detached calls that the host keeps."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from atoll.host import detached, index_settings
from atoll.model import spool
from atoll.model.spool import RetryRule
from atoll.model.stored_call import StoredCall
from atoll.sdk.call import Request, name_of
from atoll.sdk.detached import names
from atoll.sdk.futures import new_secret_id
from atoll.sdk.retries import Retries

if TYPE_CHECKING:
    from atoll.model.specs import LeaseSpec
    from atoll.sdk.attempts import CallableFunction


def spawn(function: CallableFunction, args: Any, kwargs: Any) -> str:
    """Have a call kept and made; return its id.

    Raises:
        TypeError: the function does not take such arguments.
        SerializationError: a part cannot be pickled.
        ResourcesUnavailable: a function asks.
        DetachedFull, DiskFull, StateUnusable, HostUnreachable: it is not kept.
    """
    detached.check(function.host)
    _check_arguments(function, _signature(function), args, kwargs)
    request = function._prepare().request(args, kwargs)
    return keep(function, [request])[0]


def spawn_map(function: CallableFunction, items: Iterable[tuple[Any, ...]]) -> str:
    """Have a call for each item kept and made; return the id of the batch.

    Raises:
        ValueError: there is no item, or there are too many.
        SerializationError, ResourcesUnavailable, DetachedFull, DiskFull, StateUnusable, HostUnreachable: as `spawn`.
    """
    detached.check(function.host)
    requests: list[Request] = []
    signature = _signature(function)
    for item in items:
        try:
            _check_arguments(function, signature, item, {})
            requests.append(function.request(item, requests[0] if requests else None))
        except Exception as error:
            error.add_note(f"from item {len(requests)} of the batch; nothing of it was kept")
            raise
        if len(requests) > spool.MOST_CALLS:
            raise ValueError(f"a batch has at most {spool.MOST_CALLS:,} items: split it")
    if not requests:
        raise ValueError("`spawn_map` needs at least one item")
    batch = new_secret_id()
    keep(function, requests, batch)
    return batch


def _signature(function: Any) -> inspect.Signature | None:
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):  # of a builtin
        return None


def _check_arguments(function: CallableFunction, signature: inspect.Signature | None, args: Any, kwargs: Any) -> None:
    """Refuse arguments that the function does not take, while their mistake can be seen: the call is made later."""
    if signature is not None:
        try:
            signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"`{name_of(function.__wrapped__)}`: {error}") from None


def renew(function: CallableFunction | None, host: Any, batch: str) -> int:
    """Have the items of a batch that failed made again; return how many.

    Args:
        function: takes the place of the batch's own function.
    """
    if function is None:
        asked = {
            "batch": batch,
            "request": new_secret_id(),
        }  # an id, as it is asked again when the daemon ends meanwhile
        return int(detached.request(host, "detached.renew", asked).value["calls"])
    detached.check(host)
    pieces = _pieces(function, [function._prepare().request((), {})], calls=False)
    return detached.renew(host, new_secret_id(), batch, pieces)


def keep(function: CallableFunction, requests: Sequence[Request], batch: str = "") -> list[str]:
    """Have requests of one function kept as calls; return their ids.

    Args:
        batch: the id of their batch; empty for a call that is in none.
    """
    pieces = _pieces(function, requests, batch)
    return detached.accept(
        function.host, batch or new_secret_id(), pieces, _needs(requests[0].spec) if requests else {}
    )


def spool_of(function: CallableFunction, request: Request | None = None, *, own: bool = False) -> Iterable[Any]:
    """Return the bytes of a spool with one call, for a host that makes such calls by itself.

    Args:
        request: the call; by default one without arguments.
        own: each such call has a sandbox and a network to itself.
    """
    made = request or function._prepare().request((), {})
    return _pieces(function, [made._replace(spec=replace(made.spec, own=True)) if own else made])()


def _needs(spec: LeaseSpec) -> dict[str, Any]:
    """Return what a server with several machines needs to know to choose one."""
    found: dict[str, Any] = {"machine_type": spec.machine_type, "numbers": spec.numbers._asdict()}
    if spec.max_concurrency:
        found |= {"max_concurrency": spec.max_concurrency, "identity": spec.identity}
    return found


def _pieces(
    function: CallableFunction, requests: Sequence[Request], batch: str = "", *, calls: bool = True
) -> Callable[[], Iterable[Any]]:
    """Return what makes the bytes of a spool; without `calls` of their function alone."""
    first = requests[0]
    digest = dict(first.spec.environment.index).get("certificates")
    trust = index_settings.certificates(digest) if digest else ""
    closed = names.closed(first.call.names)
    sent = [replace(request.call, id=new_secret_id()) for request in requests] if calls else []
    as_sent = first._replace(spec=travelling(first.spec)) if (travelling := _travelling(function)) else first
    template, rule, on_done = StoredCall(*as_sent), _rule(function.options.retries), function.options.on_done or ""
    deployed: str = getattr(function, "deployed", "") if hasattr(type(function), "deployed") else ""
    return lambda: spool.pieces(
        template, sent, batch=batch, retries=rule, certificates=trust, names=closed, on_done=on_done, deployed=deployed
    )


def _travelling(function: CallableFunction) -> Callable[[LeaseSpec], LeaseSpec] | None:
    """Return the function that makes specs for a host's place; None where they are as they are."""
    found: Callable[[LeaseSpec], LeaseSpec] | None = getattr(function.host, "travelling", None)
    return found


def _rule(retries: Retries) -> RetryRule:
    names = tuple((kind.__module__, kind.__qualname__) for kind in retries.on)
    return RetryRule(retries.count, names, retries.wait_seconds, retries.factor, retries.most_seconds)
