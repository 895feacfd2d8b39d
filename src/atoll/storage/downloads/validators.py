"""What the headers of an answer say of the file that it brings; no I/O."""

from __future__ import annotations

import email.utils
import re
from dataclasses import dataclass
from typing import Any

_LONGEST_WAIT_SECONDS = 60.0
_SETTLED_SECONDS = 60.0
"""A time of modification proves a state of a file only when it is this much older than the answer (RFC 9110, 8.8.2.2)."""


@dataclass(frozen=True)
class Validators:
    """What identifies one state of a file at its origin; empty texts where the origin does not say.

    Args:
        etag: a strong entity tag.
        modified: the time of modification, where it is old enough to be relied on.
        total: bytes in all; -1 where unknown.
    """

    etag: str = ""
    modified: str = ""
    total: int = -1

    @property
    def proof(self) -> str:
        """What `If-Range` is to have; empty for nothing."""
        return self.etag or self.modified


def validators_of(headers: Any) -> Validators:
    """Return what an answer says of the state that it is of, as far as it can be relied on; `total` is left open."""
    etag = headers.get("ETag", "").strip()
    if not re.fullmatch(r'"[\x21\x23-\x7e\x80-\xff]*"', etag):  # a weak one proves nothing about bytes
        etag = ""
    modified = headers.get("Last-Modified", "").strip()
    then, now = _moment(modified), _moment(headers.get("Date", ""))
    return Validators(etag, modified if then and now and now - then >= _SETTLED_SECONDS else "")


def _moment(text: str) -> float:
    try:
        return email.utils.parsedate_to_datetime(text).timestamp()
    except (TypeError, ValueError, OverflowError):
        return 0.0


def range_of(text: str) -> tuple[int, int]:
    """Return start and total (-1: not told) of a `Content-Range` that goes to the end; (-1, -1) for any other."""
    found = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", text.strip())
    if found is None:
        return -1, -1
    total = number(found[3])
    return (int(found[1]), total) if total < 0 or int(found[2]) == total - 1 else (-1, -1)


def number(text: str | None) -> int:
    """Return a number of bytes or seconds; -1 for what is none."""
    return int(text) if text and re.fullmatch(r"\d{1,30}", text.strip()) else -1


def retry_after(text: str) -> float:
    """Return how many seconds `Retry-After` asks for; 0 where it does not say, and bounded."""
    seconds = number(text)
    return float(min(seconds, _LONGEST_WAIT_SECONDS)) if seconds > 0 else 0.0
