"""Amounts as people write them: bytes, cores and GPUs of a function's options. Pure.

Raises:
    TypeError, ValueError: from every reader here, with the option's name and a spelling that is right.
"""

from __future__ import annotations

import re
from typing import Any

from atoll.model.spec_fields import MAX_CARD, MOST_BYTES, MOST_GPUS, MOST_MILLICORES

UNITS = {
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 1 << 10,
    "MIB": 1 << 20,
    "GIB": 1 << 30,
    "TIB": 1 << 40,
}
"""Bytes of each unit, decimal and binary, by its name in capitals."""

LEAST_BYTES = 32_000_000
"""The least memory or disk of a function: an interpreter, or a file system, takes some of it."""

_AMOUNT = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*")
_GPU = re.compile(r"([A-Za-z0-9][A-Za-z0-9 ._+-]*)(?::([0-9]+))?")


def read_bytes(name: str, value: Any) -> int:
    """Return the bytes of an option: a number of bytes, or a text such as `12GB` or `12GiB`."""
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise TypeError(f'`{name}` must be a text such as "12GB" or a number of bytes, is {value!r}')
    found = value if isinstance(value, int) else _bytes(name, value)
    if found > MOST_BYTES:
        raise ValueError(f"`{name}` is more than any machine has: {value!r}")
    if found < LEAST_BYTES:
        meant = f'; write `{name}="{value}GB"` for gigabytes' if isinstance(value, int) and 0 < value < 10_000 else ""
        raise ValueError(f"`{name}` must be at least {shown(LEAST_BYTES)}, is {value!r}{meant}")
    return found


def _bytes(name: str, value: str) -> int:
    found = _AMOUNT.fullmatch(value)
    if found is None:
        raise ValueError(f'`{name}` must be a number with a unit, such as "12GB" or "12GiB", is {value[:40]!r}')
    number, unit = found.groups()
    if unit.upper() not in UNITS:
        if unit[:1].upper() in ("P", "E"):
            raise ValueError(f"{name}=`{value[:40]}`: the largest units are `TB` and `TiB`")
        near = unit[:1].upper() if unit and unit[0].upper() in "KMGT" else "G"
        raise ValueError(f"{name}=`{value[:40]}`: write `{number}{near}B` or `{number}{near}iB`")
    return round(float(number) * UNITS[unit.upper()]) if "." in number else int(number) * UNITS[unit.upper()]


def read_cores(name: str, value: Any) -> float:
    """Return the cores of an option: a number of at least 0.01."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"`{name}` must be a number of cores such as 4 or 0.5, is {value!r}")
    if not 0.01 <= value <= MOST_MILLICORES / 1000:
        raise ValueError(f"`{name}` must be from 0.01 to {MOST_MILLICORES // 1000}, is {value}")
    return float(value)


def read_gpus(name: str, value: Any) -> tuple[int, str]:
    """Return how many GPUs an option asks for and the name of each: a number, `A100`, or `A100:2`."""
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise TypeError(f'`{name}` must be a number of GPUs or a text such as "A100:2", is {value!r}')
    if isinstance(value, int):
        count, card = value, ""
    else:
        found = _GPU.fullmatch(value.strip())
        if value.strip().isdigit():
            raise ValueError(f'`{name}="{value[:20]}"` is a text: write `{name}={value.strip()[:20]}`')
        if found is None or len(found[1]) > MAX_CARD:
            raise ValueError(f'`{name}` must be such as 1, "A100" or "A100:2", is {value[:80]!r}')
        card, count = found[1].strip(), int(found[2] or 1)
        if not count:
            raise ValueError(f"`{name}` names a card and asks for none of it: {value[:80]!r}; write `{name}=0`")
    if not 0 <= count <= MOST_GPUS:
        raise ValueError(f"`{name}` must be from 0 to {MOST_GPUS} GPUs, is {value!r}")
    return count, card


def shown(count: int) -> str:
    """Return bytes as an option takes them, in whole units and never more than they are."""
    for unit in ("TiB", "TB", "GiB", "GB", "MiB", "MB"):
        size = UNITS[unit.upper()]
        if count >= size and (count % size == 0 or ("i" not in unit and count >= 10 * size)):
            return f"{count // size}{unit}"
    return f"{count // 1000}KB" if count >= 1000 else f"{count}B"


def names_card(card: str, product: str) -> bool:
    """Return whether the words of a wish are words of a product's name, in its order; `A10` is not `A100`."""
    words = iter(_words(product))
    return all(any(word == other for other in words) for word in _words(card))


def _words(text: str) -> list[str]:
    return re.split(r"[^a-z0-9.]+", text.lower().strip())
