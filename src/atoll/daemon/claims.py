"""Claims of clients about themselves and their calls, as messages have them: read, bounded, and otherwise unchecked."""

from __future__ import annotations

import math
from typing import Any

from atoll import errors
from atoll.daemon.records.recorder import Recorder
from atoll.daemon.request_arguments import is_text
from atoll.engine.call_claims import never_started
from atoll.model.specs import LeaseSpec

MAX_CLIENT = 64
"""Characters of the name of a client's process."""

MAX_CLAIM = 200
"""Characters of the ids in a client's description of its call."""

Claim = tuple[str, float, str]
"""A client's description of the call that it wants a lease for: id, time, and the parent's id; unchecked otherwise."""


def read_claim(data: object) -> Claim | None:
    """Return the description in a lease's message; None where there is none that can be used."""
    if not isinstance(data, dict):
        return None
    call, at, parent = data.get("call"), data.get("at"), data.get("parent")
    if not isinstance(call, str) or not isinstance(parent, str) or max(len(call), len(parent)) > MAX_CLAIM:
        return None
    if not is_text(call) or not is_text(parent):
        return None
    return call, at if isinstance(at, float) and math.isfinite(at) else 0.0, parent


def read_call(data: object) -> str:
    """Return the id of a call in a lease's message; empty where there is none that can be used."""
    return str(data) if is_text(data) and len(str(data)) <= MAX_CLAIM else ""


def read_client(data: object) -> str:
    """Return the name of a client's process, as it claims.

    Raises:
        ValueError: it is no short text.
    """
    if not is_text(data) or len(str(data)) > MAX_CLIENT:
        raise ValueError("`client` must be a short text")
    return str(data)


def record_refusal(
    recorder: Recorder, user: str, function: str, claim: Claim | None, error: BaseException, *, nested: bool
) -> None:
    """Record a call that got no worker, because of an error or because its client left."""
    data = None if claim is None else dict(zip(("call", "at", "parent"), claim, strict=True))
    record = never_started(data, function, user, nested, error)
    if record is not None:
        recorder.add(record)


def read_spec(data: Any) -> LeaseSpec:
    """Return the spec in a message.

    Raises:
        ResourcesUnavailable: it is none.
    """
    try:
        spec = LeaseSpec.from_data(data)
        for text in (spec.function, spec.identity):  # others see them
            if not is_text(text):
                raise ValueError("its function has a name that is no text")
        return spec
    except ValueError as error:
        raise errors.ResourcesUnavailable(
            f"the daemon does not take this call: {error}", hint="correct the option; large values belong in `/data`"
        ) from error
