"""Consent to a host uid that several users of a server share, where a plain user's daemon can give them no other.

The owner consents by `users.share_uid` in `settings.toml`, or with `atoll server --share-uid-between-users`. The server
notes its option in a file: the daemon may start before any server asks it, when the keeper makes detached calls.
"""

from __future__ import annotations

import contextlib
import os

from atoll import errors, ownership
from atoll.settings import Settings

FILE = "server", "share-uid"
"""Its path below the state directory."""


def remember(options: Settings, *, consents: bool) -> None:
    """Note whether the server was started with the consent.

    Raises:
        StateUntrusted: another user can change the state directory.
    """
    directory, name = FILE
    with ownership.directory(options.home / directory, make=True) as found:
        if consents:
            os.close(found.open(name, os.O_WRONLY | os.O_CREAT))
        else:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=found.descriptor)


def allowed(options: Settings) -> bool:
    """Return whether several users may share the host uid of a plain user's daemon."""
    if options.users.share_uid:
        return True
    try:
        ownership.read(options.home.joinpath(*FILE), 1)
    except (OSError, errors.StateUntrusted):
        return False
    return True
