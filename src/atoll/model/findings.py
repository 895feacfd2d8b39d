"""Findings of `atoll doctor`: the values that the self-tests of a machine and of `/data` return."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from atoll.errors import SyncError

_MAX_TEXT = 2000


@dataclass(frozen=True)
class Finding:
    """One ability of a machine or of the file system under `/data`, as a self-test found it.

    Args:
        name: name of the ability.
        needed: True when a documented promise depends on it.
        works: True when a trial showed it to work.
        detail: findings of the trial.
        loses: features that fail without it; empty where it works.
        fix: command or change that repairs it; empty where it works.
    """

    name: str
    needed: bool
    works: bool
    detail: str = ""
    loses: str = ""
    fix: str = ""

    def to_data(self) -> dict[str, Any]:
        """Return the finding as JSON-compatible data."""
        return asdict(self)


def check_finding(data: Any) -> Finding:
    """Return a finding that a storage peer sent as data; the inverse of `Finding.to_data`.

    Raises:
        SyncError: the data is malformed.
    """
    kinds = {field.name: bool if field.type == "bool" else str for field in fields(Finding)}
    if not isinstance(data, dict) or data.keys() != kinds.keys():
        raise SyncError("the storage peer's finding is malformed")
    for name, kind in kinds.items():
        if type(data[name]) is not kind or (kind is str and len(data[name]) > _MAX_TEXT):
            raise SyncError("the storage peer's finding is malformed")
    return Finding(**data)
