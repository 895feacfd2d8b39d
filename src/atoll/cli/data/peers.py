"""`atoll doctor --data --peer`: the shared file system between this machine and another."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

from atoll import errors, settings
from atoll.model.findings import Finding


def compare(peer: str, path: str, peer_path: str) -> list[Finding]:
    """Test the shared file system between here and the machine where a command starts programs.

    Args:
        peer: the command, such as `ssh gpu2`; one that names `atoll` itself is taken as it is.
        path: the shared directory here, empty for that of the settings.
        peer_path: the same there; empty for `path`.

    Raises:
        HostUnreachable: the other machine does not answer.
        VolumesUnavailable: the file system is not there, or is mounted with options that lose changes.
    """
    from atoll.node.shared.data import check_mount
    from atoll.storage.selftest import peer_link

    words = shlex.split(peer)
    command = words if any(Path(word).name == "atoll" for word in words) else [*words, "atoll"]
    command = [*command, "doctor", "--data", "--as-peer"]
    if there := peer_path or path:
        command.append(f"--path={shlex.quote(there) if words and words[0] == 'ssh' else there}")
    with _root(path) as root:
        check_mount(root)
        return list(peer_link.compare(root, command))


def serve(path: str) -> int:
    """Perform the steps of another machine's test until standard input ends."""
    from atoll.storage.selftest import peer_steps

    with _root(path) as root:
        peer_steps.serve(root, sys.stdin.buffer, sys.stdout.buffer)
    return 0


@contextlib.contextmanager
def _root(path: str) -> Iterator[Path]:
    """Give the root of the shared file system, which is mounted while the context is open."""
    from atoll.node.shared.preparation import mounted

    if path:
        yield Path(path)
        return
    options = settings.load()
    if not options.storage.is_shared:
        raise errors.StateUnusable(
            "`settings.toml` names no shared file system: `/data` is on this machine's disk",
            hint="set `storage.filesystem`, or name a directory with `--path`; see docs/server/shared-data.md",
        )
    with mounted(options) as root:
        yield root
