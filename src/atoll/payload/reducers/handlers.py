"""Handlers of `logging`, without their lock, which each process makes for itself, and loggers of a program's class."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import logging


def reduce_handler(handler: logging.Handler) -> tuple[Any, ...]:
    """Reduce a handler; its stream travels by the name that the process has for it, or is refused."""
    return rebuild_handler, (type(handler),), {name: value for name, value in vars(handler).items() if name != "lock"}


def rebuild_handler(cls: Any) -> Any:
    handler = cls.__new__(cls)
    handler.createLock()
    return handler


def reduce_logger(logger: logging.Logger) -> tuple[Any, ...] | None:
    """Reduce a logger of a class of its own as its name and class; None for one that no name leads to."""
    import logging  # 4 ms of every sandbox's start, and it is there where there is a logger

    if logging.getLogger(logger.name) is not logger:
        return None
    plain = vars(logging.root)
    more = {name: value for name, value in vars(logger).items() if name not in plain}
    return rebuild_logger, (logger.name, type(logger)), more


def rebuild_logger(name: str, cls: Any) -> Any:
    import logging  # as above

    logger = logging.getLogger(name)
    if not isinstance(logger, cls):
        logger.__class__ = cls
    return logger
