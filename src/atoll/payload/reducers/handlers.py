"""Handlers of `logging`: without their lock, which each process makes for itself."""

from __future__ import annotations

import logging
from typing import Any


def reduce_handler(handler: logging.Handler) -> tuple[Any, ...]:
    """Reduce a handler; its stream travels by the name that the process has for it, or is refused."""
    return rebuild_handler, (type(handler),), {name: value for name, value in vars(handler).items() if name != "lock"}


def rebuild_handler(cls: Any) -> Any:
    handler = cls.__new__(cls)
    handler.createLock()
    return handler
