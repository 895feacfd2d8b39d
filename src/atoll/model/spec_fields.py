"""Fields of specs that come from clients which are not trusted: each is read with its type checked and its size bounded.

Raises:
    ValueError: from every function here, with the field's name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from atoll.model.secret_values import MOST_SECRETS, check_name

MAX_REQUIREMENT_BYTES = 32 << 10
"""Of one requirement: a pinned package with the hashes of a hundred files fits."""

MAX_REQUIREMENTS = 2000
MAX_REQUIREMENTS_BYTES = 1 << 20
MAX_IDENTITY_BYTES = 8 << 10
MAX_PAIRS = 4096
"""Variables, mounts and index variables, each."""

MAX_PRELOAD = 2000
"""Modules to preload."""

MOST_GRACE_SECONDS = 600.0
"""The longest grace of a call."""

MOST_MILLICORES = 10_000_000
MOST_BYTES = 1 << 60
MOST_GPUS = 1024
MAX_CARD = 64
"""The largest numbers of a function's resources, and characters of a GPU's name."""

UMASK = 0o022
"""The file mode mask of functions that name none: the daemon's own would hide what they write from everybody else."""


def size_of(name: str, text: str) -> int:
    """Return the bytes of a text."""
    try:
        return len(text.encode())
    except UnicodeEncodeError as error:
        raise ValueError(f"`{name}` has text that is not Unicode") from error


def text(data: Mapping[str, Any], name: str, default: str = "") -> str:
    """Return a text."""
    value = data.get(name, default)
    if not isinstance(value, str) or "\0" in value:
        raise ValueError(f"`{name}` must be text without NUL")
    return value


def texts(data: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """Return a list of texts."""
    value = data.get(name, [])
    if not isinstance(value, list) or not all(isinstance(item, str) and "\0" not in item for item in value):
        raise ValueError(f"`{name}` must be a list of texts")
    return tuple(value)


def bounded(data: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """Return a list of requirements."""
    found = texts(data, name)
    if len(found) > MAX_REQUIREMENTS:
        raise ValueError(f"`{name}` has {len(found)} entries, more than {MAX_REQUIREMENTS}")
    sizes = [size_of(name, one) for one in found]
    if max(sizes, default=0) > MAX_REQUIREMENT_BYTES:
        raise ValueError(f"`{name}` has an entry of {max(sizes)} bytes, more than {MAX_REQUIREMENT_BYTES}")
    if sum(sizes) > MAX_REQUIREMENTS_BYTES:
        raise ValueError(f"`{name}` has {sum(sizes)} bytes, more than {MAX_REQUIREMENTS_BYTES}")
    return found


def pairs(data: Mapping[str, Any], name: str) -> tuple[tuple[str, str], ...]:
    """Return pairs of a name and a text, sorted."""
    value = data.get(name, {})
    if not isinstance(value, dict) or not all(
        isinstance(key, str) and isinstance(item, str) and "\0" not in key + item for key, item in value.items()
    ):
        raise ValueError(f"`{name}` must map texts to texts")
    if len(value) > MAX_PAIRS:
        raise ValueError(f"`{name}` has {len(value)} entries, more than {MAX_PAIRS}")
    return tuple(sorted(value.items()))


def seconds(data: Mapping[str, Any], name: str, default: float, most: float = 1e9) -> float:
    """Return a number of seconds."""
    value = data.get(name, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= most:
        raise ValueError(f"`{name}` must be a number of seconds from 0 to {most:g}")
    return float(value)


def mode(data: Mapping[str, Any], name: str, default: int) -> int:
    """Return a file mode's permissions."""
    value = data.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 0o777:
        raise ValueError(f"`{name}` must be permissions from 0 to 0o777")
    return value


def count(data: Mapping[str, Any], name: str) -> int:
    """Return a whole number."""
    value = data.get(name, 0)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 1_000_000:
        raise ValueError(f"`{name}` must be a whole number from 0 to a million")
    return value


def flag(data: Mapping[str, Any], name: str, default: bool) -> bool:
    """Return a truth value."""
    value = data.get(name, default)
    if not isinstance(value, bool):
        raise ValueError(f"`{name}` must be true or false")
    return value


def machine_type(data: Mapping[str, Any]) -> str:
    """Return the name of a machine type; empty for none."""
    name = text(data, "machine_type")
    if name:
        from atoll.model import machine_types

        return machine_types.find(name).name
    return name


def numbers(data: Mapping[str, Any]) -> tuple[int, int, int, str, int]:
    """Return a function's resources in plain numbers, as `specs.Numbers` has them."""
    value = data["numbers"]
    if not isinstance(value, dict):
        raise ValueError("`numbers` must be an object")

    def number(name: str, most: int, least: int = 0) -> int:
        found = value.get(name, least)
        if type(found) is not int or not least <= found <= most:
            raise ValueError(f"`{name}` must be a whole number from {least} to {most}")
        return found

    card = text(value, "card")
    if len(card) > MAX_CARD or not card.isprintable() or not card.isascii():
        raise ValueError(f"`card` must be at most {MAX_CARD} plain characters")
    gpus = number("gpus", MOST_GPUS, -1)
    if card and gpus < 1:
        raise ValueError("`card` goes with at least one GPU")
    return (
        number("millicores", MOST_MILLICORES),
        number("memory_bytes", MOST_BYTES),
        gpus,
        card,
        number("disk_bytes", MOST_BYTES),
    )


def modules(data: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of modules."""
    names = texts(data, "preload")
    if len(names) > MAX_PRELOAD:
        raise ValueError(f"`preload` has {len(names)} entries, more than {MAX_PRELOAD}")
    return names


def identity(data: Mapping[str, Any]) -> str:
    """Return a function's identity."""
    found = text(data, "identity")
    if size_of("identity", found) > MAX_IDENTITY_BYTES:
        raise ValueError(f"`identity` has more than {MAX_IDENTITY_BYTES} bytes")
    return found


def secrets(data: Mapping[str, Any]) -> tuple[str, ...]:
    """Return names of secrets, sorted."""
    found = texts(data, "secrets")
    if len(found) > MOST_SECRETS:
        raise ValueError(f"`secrets` has {len(found)} names, more than {MOST_SECRETS}")
    return tuple(sorted({check_name(name) for name in found}))


def check_port(name: str, value: Any) -> int:
    """Check the number of a port.

    Raises:
        ValueError: there is none of it.
    """
    if not 0 < value < 1 << 16:
        raise ValueError(f"`{name}` must be a port from 1 to 65535, is {value}")
    return int(value)
