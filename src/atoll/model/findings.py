"""What the self-test of a volume's file system finds, as values, and how a client asks for it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from atoll.errors import SyncError

_MAX_TEXT = 2000


@dataclass(frozen=True)
class Finding:
    """One thing that a file system does or does not do.

    Args:
        name: what it is.
        needed: whether what the documents promise of `/data` rests on it.
        works: whether it was seen to work.
        detail: what was found.
        loses: what does not work without it; empty where it works.
        fix: what mends it; empty where it works.
    """

    name: str
    needed: bool
    works: bool
    detail: str = ""
    loses: str = ""
    fix: str = ""

    def to_data(self) -> dict[str, Any]:
        """Return it as JSON-compatible data; `check_finding` is the inverse."""
        return asdict(self)


def check_finding(data: Any) -> Finding:
    """Return what a peer found.

    Raises:
        SyncError: it is malformed.
    """
    kinds = {field.name: bool if field.type == "bool" else str for field in fields(Finding)}
    if not isinstance(data, dict) or data.keys() != kinds.keys():
        raise SyncError("the storage peer's finding is malformed")
    for name, kind in kinds.items():
        if type(data[name]) is not kind or (kind is str and len(data[name]) > _MAX_TEXT):
            raise SyncError("the storage peer's finding is malformed")
    return Finding(**data)
