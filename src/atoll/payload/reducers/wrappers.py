"""Wrappers of functions that travel by value as the functions in them do."""

from __future__ import annotations

import functools
from typing import Any


def rebuild_lru_cache(function: Any, parameters: dict[str, Any]) -> Any:
    return functools.lru_cache(**parameters)(function)


def rebuild_cached_property(function: Any, name: str | None, doc: str | None) -> Any:
    rebuilt: Any = functools.cached_property(function)
    rebuilt.attrname = name
    rebuilt.__doc__ = doc
    return rebuilt
