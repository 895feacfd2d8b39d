"""Names that are near to one that does not exist, for hints: the near one is likely meant, or none is named.

Near are a slip of the fingers (one for each four letters, by the edit distance that counts a swap of neighbours as
one), and a name that was begun, or is a whole word of the other. Similar letters alone are no reason: `top` is not
`stop`, and `image` is not `timeout`.
"""

from __future__ import annotations

from collections.abc import Iterable

LETTERS_PER_SLIP = 4
LEAST_BEGUN = 3
"""Letters of a name that was begun."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the known name that is likely meant; empty where none is.

    Args:
        known: in the order of preference.
    """
    asked = name.lower().replace("-", "_")
    best, least = "", LETTERS_PER_SLIP * len(asked)
    for one in known:
        wanted = one.lower().replace("-", "_")
        distance = _cost(asked, wanted)
        if distance < least:
            best, least = one, distance
    return best


def _cost(asked: str, wanted: str) -> int:
    """Return a number that is smaller the nearer a name is, and very large for one that is not near."""
    slips = distance(asked, wanted)
    swapped = slips == 1 and sorted(asked) == sorted(wanted)
    if slips <= min(len(asked), len(wanted)) // LETTERS_PER_SLIP or swapped:
        return slips
    if len(asked) >= LEAST_BEGUN and (wanted.startswith(asked) or asked in wanted.split("_")):
        return 2 + abs(len(wanted) - len(asked)) // 8
    return 1 << 30


def distance(one: str, other: str) -> int:
    """Return how many letters must be put in, taken out, replaced or swapped with their neighbour.

    The optimal string alignment distance; both texts are short.
    """
    if abs(len(one) - len(other)) > 64 or max(len(one), len(other)) > 256:
        return max(len(one), len(other))
    before: list[int] = []
    last = list(range(len(other) + 1))
    for row, letter in enumerate(one, 1):
        now = [row]
        for column, its in enumerate(other, 1):
            cost = min(last[column] + 1, now[-1] + 1, last[column - 1] + (letter != its))
            if row > 1 and column > 1 and letter == other[column - 2] and one[row - 2] == its:
                cost = min(cost, before[column - 2] + 1)
            now.append(cost)
        before, last = last, now
    return last[-1]
