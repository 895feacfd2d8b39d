"""The one check of what clients send: texts and numbers that SQLite, a path or a message can take.

JSON has more of both than others have: halves of surrogate pairs, NUL, numbers of any size, and NaN.
"""

from __future__ import annotations

import math
from itertools import chain
from typing import Any

LARGEST = (1 << 63) - 1
MOST_DEPTH = 64
MOST_DIGITS = 640
"""Digits of a whole number in JSON, the least bound that Python has: the time to read one goes by their square."""
MOST_ROWS = 1000
"""Rows of one answer to a user of a server: they are written on the node's loop, which serves other users too."""
_LISTS = {"calls.list", "detached.list", "detached.batches"}
_CHECKED_ELSEWHERE = {("secrets.set", "value")}
"""Values whose own check says in the user's words which part is wrong."""


def is_text(value: object) -> bool:
    """Return whether a value is a text that can be written as UTF-8, without NUL."""
    if not isinstance(value, str) or "\0" in value:
        return False
    if value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def read(message: dict[str, Any], *, relayed: bool = False) -> tuple[str, dict[str, Any]]:
    """Return the name and the arguments of a request, whichever it is.

    Args:
        relayed: a server asks for a user, who has at most `MOST_ROWS` of a list at a time.

    Raises:
        ValueError: they are none, or have a value that nothing here takes.
    """
    name, arguments = message.get("name"), message.get("arguments")
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise ValueError("a request has a `name` and `arguments`")
    if relayed and name in _LISTS and ("limit" in arguments or name != "calls.list"):  # which has a small one by itself
        limit = arguments.get("limit", MOST_ROWS)
        arguments = {**arguments, "limit": min(limit, MOST_ROWS) if type(limit) is int else limit}
    rest = {key: value for key, value in arguments.items() if (name, key) not in _CHECKED_ELSEWHERE}
    check({"name": name, "arguments": rest})
    return name, arguments


def check(arguments: dict[str, Any]) -> None:
    """Check every text and number in arguments.

    Raises:
        ValueError: there is a text, a number or a depth that nothing here takes.
    """
    left: list[tuple[Any, int]] = [(arguments, 0)]
    while left:  # of JSON's types alone; a text costs a tenth of a microsecond
        value, depth = left.pop()
        if depth > MOST_DEPTH:
            raise ValueError(f"the arguments have more than {MOST_DEPTH} levels")
        for one in value if type(value) is list else chain(value, value.values()):
            kind = type(one)
            if kind is str:
                if "\0" in one or not (one.isascii() or is_text(one)):
                    raise ValueError("the arguments have a text with NUL, or one that is no Unicode text")
            elif kind is list or kind is dict:
                left.append((one, depth + 1))
            elif kind is int:
                if not -LARGEST <= one <= LARGEST:
                    raise ValueError("the arguments have a number of more than 64 bits")
            elif kind is float and not math.isfinite(one):
                raise ValueError("the arguments have a number that is not finite")
