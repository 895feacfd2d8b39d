"""Files of a server with random bytes that its owner alone may read: made once, and never written again."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from atoll import errors, ownership


def read(path: Path, size: int, lost: str) -> bytes:
    """Return the bytes of a file, which is made where there is none.

    Args:
        size: of the file.
        lost: the hint for one that is damaged.

    Raises:
        StateUntrusted: another user can change it.
        StateUnusable: others can read it, or it has another size.
    """
    with ownership.directory(path.parent, make=True) as directory:
        temporary = f".{path.name}-{secrets.token_hex(8)}"
        with contextlib.suppress(FileExistsError):
            if path.name not in os.listdir(path.parent):
                with open(directory.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as file:
                    os.fchmod(file.fileno(), 0o600)
                    file.write(secrets.token_bytes(size))
                    file.flush()
                    os.fsync(file.fileno())
                try:  # another process may make one, too: the first name counts
                    os.link(path.with_name(temporary), path)
                finally:
                    os.unlink(path.with_name(temporary))
        with open(directory.open(path.name, os.O_RDONLY), "rb") as file:
            mode, value = os.fstat(file.fileno()).st_mode, file.read(size + 1)
    if mode & 0o077:
        raise errors.StateUnusable(f"`{path}` can be read by others", hint=f"run `chmod 600 {path}`")
    if len(value) != size:
        raise errors.StateUnusable(f"`{path}` is damaged", hint=lost)
    return value
