"""A process's hold on the mount of JuiceFS: while one is held, the mount's keeper lives and keeps it mounted."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
import time
from pathlib import Path

from atoll import errors, ownership, process, settings
from atoll.node.shared import client
from atoll.node.shared.client import mount_state
from atoll.node.shared.keeper import KEEPER_LOCK, LOCK, LOG, MOUNT_SECONDS
from atoll.settings import Settings

_POLL_SECONDS = 0.02


class MountHold:
    """A hold on the mount of one state directory.

    Args:
        options: the state directory, and `storage`.
    """

    def __init__(self, options: Settings) -> None:
        self._options = options
        self._root = options.storage.root(options.home)
        self._hold = -1
        self._keeper = 0

    def take(self) -> None:
        """Have the keeper mount the file system, and wait for it.

        Raises:
            VolumesUnavailable: it cannot be mounted.
        """
        with ownership.directory(self._options.home, make=True) as home:
            for name in ("logs", "run"):
                with home.enter(name, make=True):
                    pass
        run, until = self._options.run_directory, time.monotonic() + MOUNT_SECONDS
        self._hold = os.open(run / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        while True:
            try:
                fcntl.flock(self._hold, fcntl.LOCK_SH | fcntl.LOCK_NB)
                break
            except BlockingIOError:  # a keeper is just unmounting
                if time.monotonic() > until:
                    raise unavailable(self._root, "it is being unmounted, and that does not end") from None
                time.sleep(_POLL_SECONDS)
        began = time.time()
        self.keep()
        while True:
            state = mount_state(self._options)
            if state.get("state") == "mounted" and client.is_current(state) and _is_kept(self._options):
                return
            if state.get("state") == "failed" and state.get("since", 0.0) > began:
                failed = errors.from_data(state.get("error") or {})
                raise failed if isinstance(failed, errors.VolumesUnavailable) else unavailable(self._root, str(failed))
            if time.monotonic() > until:
                said = f"it was not mounted within {MOUNT_SECONDS:.0f} s"
                if os.statvfs(run).f_bavail == 0:
                    said = f"the disk of `{run}` is full, and the keeper of the mount cannot say how it is"
                raise unavailable(self._root, said)
            time.sleep(_POLL_SECONDS)

    def keep(self) -> None:
        """Start the keeper of the mount, unless one lives."""
        if self._keeper:
            with contextlib.suppress(ChildProcessError):
                if os.waitpid(self._keeper, os.WNOHANG)[0]:
                    self._keeper = 0
        if self._keeper or _is_kept(self._options):
            return
        package = str(Path(__file__).parents[3])
        code = (
            f"import sys; sys.path.insert(0, {package!r}); from atoll.node.shared.keeper import main; sys.exit(main())"
        )
        with ownership.directory(self._options.logs_directory) as logs:
            written = logs.open(LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            line = [sys.executable, "-P", "-c", code, str(self._options.home)]
            environment = settings.daemon_environment()
            self._keeper = process.start_detached(line, env=environment, descriptors=[], log=written)
        finally:
            os.close(written)

    def release(self) -> None:
        """Let the mount go: the keeper unmounts it when nobody holds it."""
        if self._hold >= 0:
            os.close(self._hold)
            self._hold = -1


def _is_kept(options: Settings) -> bool:
    """Return whether a keeper lives."""
    try:
        descriptor = os.open(options.run_directory / KEEPER_LOCK, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def unavailable(root: Path, text: str) -> errors.VolumesUnavailable:
    """Return the error for a file system that cannot be used now."""
    return errors.VolumesUnavailable(
        f"the volumes on `{root}` cannot be used: {text}",
        hint="`atoll data filesystem status` looks at it; calls work again when it does",
    )
