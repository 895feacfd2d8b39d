"""Errors of the server's disk by their names."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

from atoll import errors


@contextlib.contextmanager
def translated(what: str) -> Iterator[None]:
    """Translate errors of the operating system while something of the server's is written.

    Args:
        what: begins the error's text, such as "the queue's directory".

    Raises:
        DiskFull, StateUnusable: there was such an error.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, errors.AtollError):
            raise
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise errors.DiskFull(f"the disk of {what} is full", hint="free space on it", retry_after=30) from error
        raise errors.StateUnusable(
            f"{what} cannot be written: {error.strerror or error}", hint="look at the disk, and mount it to be written"
        ) from error
