"""One server for a state directory, and the file that says where it listens."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
from collections.abc import Iterator
from pathlib import Path

from atoll import __version__, errors, ownership
from atoll.settings import Settings

NAME = "server.json"


@contextlib.contextmanager
def only_one(options: Settings) -> Iterator[None]:
    """Hold the lock of the state directory's one server.

    Raises:
        StateUnusable: another server has it.
    """
    with ownership.directory(options.run_directory) as run:
        descriptor = run.open("server.lock", os.O_RDWR | os.O_CREAT)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise errors.StateUnusable(
                f"`{options.home}` has a running server", hint="end that one first, or give another `--home`"
            ) from None
        yield
    finally:
        os.close(descriptor)


def describe(options: Settings, url: str) -> None:
    """Write `run/server.json`: address and process.

    Raises:
        StateUnusable: it cannot be written.
    """
    path = options.run_directory / NAME
    temporary = path.with_name(f"{NAME}.{os.getpid()}")
    try:
        temporary.write_text(json.dumps({"pid": os.getpid(), "version": __version__, "url": url}))
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise errors.StateUnusable(
            f"cannot write `{path}`: {error.strerror}", hint="make room on the disk, or mount it to be written"
        ) from error


def url_for_machines(run_directory: Path) -> str:
    """Return the address of a running server as other machines may know it; empty where none runs."""
    try:
        url = str(json.loads((run_directory / NAME).read_bytes())["url"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    for every in ("//0.0.0.0:", "//[::]:"):
        url = url.replace(every, f"//{platform.node() or 'localhost'}:")
    return url


def forget(options: Settings) -> None:
    """Remove it again."""
    with contextlib.suppress(OSError):  # a disk that cannot be written any more
        (options.run_directory / NAME).unlink(missing_ok=True)
