"""Conditions and ranges of requests for files (RFC 9110, sections 13 and 14); pure."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from email.utils import formatdate, parsedate_to_datetime

from atoll.storage.files.tree import Status, version_of

MOST_RANGES = 16
"""Ranges of one request; more are answered with the whole file, as the RFC allows."""

_TAG = re.compile(r'(W/)?"([\x21\x23-\x7e\x80-\xff]*)"')
_RANGE = re.compile(r"(\d{0,19})[ \t]*+-[ \t]*+(\d{0,19})")  # possessive: a client's blanks are passed over once

Piece = tuple[int, int]
"""Offset and length of a part of a file, in bytes."""


class NotSatisfiable(Exception):
    """No byte of the file is in a range that was asked for."""


def etag(status: Status) -> str:
    """Return the strong entity tag of a file's state."""
    return f'"{version_of(status)}"'


def http_date(time_ns: int) -> str:
    """Return a time as headers have it, in whole seconds; times before 1970 become 1970, as most clients expect."""
    return formatdate(min(max(time_ns // 10**9, 0), 253402300799), usegmt=True)


def tags(header: str) -> list[str] | None:
    """Return the strong tags of `If-Match` or `If-None-Match`, without quotes; None for `*`. Weak ones lose `W/`."""
    if header.strip() == "*":
        return None
    return [tag for _, tag in _entries(header)]


def strong_tags(header: str) -> list[str] | None:
    """Return the tags of `If-Match` that can match, which weak ones cannot; None for `*`."""
    if header.strip() == "*":
        return None
    return [tag for weak, tag in _entries(header) if not weak]


def _entries(header: str) -> Iterator[tuple[bool, str]]:
    """Give each tag of a list with whether it is weak; what is no tag is left out. A tag may have commas in it."""
    end = 0
    for match in _TAG.finditer(header):
        if not header[end : match.start()].strip(" \t,"):
            yield match[1] is not None, match[2]
        end = match.end()


def seconds_of(header: str) -> int | None:
    """Return the time of a date header, in seconds since the epoch; None for one that is malformed."""
    try:
        return int(parsedate_to_datetime(header).timestamp())
    except (ValueError, TypeError, OverflowError):
        return None


def precondition(headers: Mapping[str, str], status: Status) -> int:
    """Return 412 or 304 where a condition for reading does not hold, else 200.

    Args:
        headers: names in lower case.
    """
    version, modified = version_of(status), status.mtime_ns // 10**9
    if "if-match" in headers:
        wanted = strong_tags(headers["if-match"])
        if wanted is not None and version not in wanted:
            return 412
    elif "if-unmodified-since" in headers:
        since = seconds_of(headers["if-unmodified-since"])
        if since is not None and modified > since:
            return 412
    if "if-none-match" in headers:
        unwanted = tags(headers["if-none-match"])
        if unwanted is None or version in unwanted:
            return 304
    elif "if-modified-since" in headers:
        since = seconds_of(headers["if-modified-since"])
        if since is not None and modified <= since:
            return 304
    return 200


def wanted_pieces(headers: Mapping[str, str], status: Status) -> list[Piece] | None:
    """Return the parts of a file that a request wants; None for all of it.

    Raises:
        NotSatisfiable: none of them is in the file.
    """
    header = headers.get("range")
    if header is None:
        return None
    condition = headers.get("if-range", "").strip()
    if condition and condition != etag(status):  # a date is no strong validator: the whole file is right, too
        return None
    unit, equals, texts = header.partition("=")
    if unit.strip().lower() != "bytes" or not equals:
        return None
    pieces: list[Piece] = []
    parts = texts.split(",")
    if len(parts) > MOST_RANGES:
        return None
    for part in parts:
        match = _RANGE.fullmatch(part.strip(" \t"))
        if match is None or match.groups() == ("", ""):
            return None
        piece = _piece(match[1], match[2], status.size)
        if piece is None:
            return None
        if piece[1] > 0:
            pieces.append(piece)
    if not pieces:
        raise NotSatisfiable
    return _merged(pieces)


def _piece(first: str, last: str, size: int) -> Piece | None:
    if not first:
        length = min(int(last), size)
        return size - length, length
    if last and int(last) < int(first):
        return None
    end = size if not last else min(int(last) + 1, size)
    return int(first), end - int(first)


def _merged(pieces: list[Piece]) -> list[Piece]:
    """Return the pieces in the order asked for; overlapping ones, which cost more than the file, become one span."""
    ordered = sorted(pieces)
    if all(one[0] + one[1] <= two[0] for one, two in itertools.pairwise(ordered)):
        return pieces
    first, end = ordered[0][0], max(offset + length for offset, length in ordered)
    return [(first, end - first)]
