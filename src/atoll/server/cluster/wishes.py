"""Wishes: the part of a client's first header that decides about its place. Pure.

The header is read here as a claim: the node checks it. So a spec that no node would take has some wish, and is refused
where it arrives.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from atoll.environments.asked.uploaded import SCHEME
from atoll.model.machine_types import MACHINE_TYPES
from atoll.server.cluster.contract import Wish
from atoll.server.cluster.placing.sizes import TYPES

_encode = json.JSONEncoder(separators=(",", ":"), sort_keys=True).encode
_WARM = ("env", "network", "mounts", "preload", "trusted", "numbers", "secrets")
"""Parts of a spec, beside its environment, that decide which sandbox can serve it."""


def wish_of(id: str, user: str, spec: Any, volumes: str, client: Any = "") -> Wish:  # noqa: A002 - as in the header
    """Return the wish of a lease's spec.

    Args:
        id: of the line.
        volumes: the file system that its node must have.
        client: the name of the process that asks.
    """
    found: dict[str, Any] = spec if isinstance(spec, dict) else {}
    name = found.get("machine_type")
    kind = MACHINE_TYPES.get(name) if isinstance(name, str) else None
    millicores = 1000 if kind is None else int(kind.cpu * 1000)
    memory = 0 if kind is None else kind.memory_bytes
    gpus = 0 if kind is None else kind.gpus
    numbers = found.get("numbers")
    if isinstance(numbers, dict):  # these are never taken down
        millicores = _number(numbers.get("millicores"), millicores)
        memory = _number(numbers.get("memory_bytes"), memory)
        given = numbers.get("gpus")
        gpus = given if type(given) is int and 0 <= given < 1 << 16 else gpus
    environment = found.get("environment")
    built = _digest(environment)
    warm = _digest([user, kind.name if kind is not None else "", built, [found.get(part) for part in _WARM]])
    return Wish(
        id,
        user,
        kind.name if kind is not None and TYPES[kind.name] == (millicores, memory, gpus) else "",
        max(millicores, 1),
        max(memory, 0),
        max(gpus, 0),
        warm,
        built,
        volumes,
        program=_digest([user, client, found]),
    )


def names_uploads(spec: Any) -> bool:
    """Return whether a lease's environment names packages that its user has uploaded."""
    return SCHEME in _encode(spec.get("environment") if isinstance(spec, dict) else None)


def _number(value: Any, other: int) -> int:
    return value if type(value) is int and 0 < value < 1 << 50 else other


def _digest(value: Any) -> str:
    return hashlib.blake2b(_encode(value).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
