"""Limits of network file systems between machines, by kind, for `atoll doctor --data`; no I/O.

One machine cannot try effects between two. The limits come from the documentation of each (`nfs(5)`,
`mount.cifs(8)`, Ceph's "Differences from POSIX", Lustre's manual on `flock`, the kernel's `9p.rst`), and of SQLite on
write-ahead logs: "all processes using a database must be on the same host computer".
"""

from __future__ import annotations

from collections.abc import Iterator

from atoll import linux
from atoll.model.findings import Finding

_ONE = "let functions of one machine at a time use such files, or keep them on a disk of the machine"
_COHERENT = frozenset({"ceph", "lustre", "gpfs", "ocfs2", "gfs2"})
"""Kinds whose machines see each other's writes at once, appends included."""

_LOCKS = {
    "nfs": "NFS 3 needs `lockd` on both sides, and `nolock` keeps locks on the machine",
    "nfs4": "`flock` is kept by the server as a lock of all bytes, and lost with the lease when the server is away",
    "cifs": "locks are mandatory there: who does not lock is refused",
    "smb3": "locks are mandatory there: who does not lock is refused",
    "lustre": "locks between machines need the mount option `flock`",
    "9p": "locks stay on the machine, unless the server keeps them",
    "virtiofs": "locks stay on the machine, unless the server keeps them",
    "fuse.sshfs": "locks stay on the machine",
    "fuse.s3fs": "locks stay on the machine",
    "fuse.rclone": "locks stay on the machine",
}


def promises(kind: str) -> Iterator[Finding]:
    """Yield a finding for each promise that a kind of file system does not keep between machines."""
    if not linux.is_network(kind):
        return
    yield Finding(
        "several machines: SQLite in WAL mode",
        False,
        False,
        f"`{kind}`: its index is shared memory, which machines do not share",
        "a database that two machines have open is damaged",
        "use `PRAGMA journal_mode=DELETE`, or a database server",
    )
    if kind not in _COHERENT:
        yield Finding(
            "several machines: appends",
            False,
            False,
            f"`{kind}`: each machine appends at its own idea of the end",
            "lines that two machines append to one file at the same time overwrite each other",
            "write a file for each machine, or append on one machine",
        )
        yield Finding(
            "several machines: fresh reads",
            False,
            False,
            f"`{kind}`: contents and attributes are kept for a while by each machine",
            "a function on another machine may see what was written seconds later, and a shared map not at all",
            "close files before others open them; replace files by `rename`",
        )
    if kind in _LOCKS or kind not in _COHERENT:
        detail = _LOCKS.get(kind, "it depends on the server whether locks hold between machines")
        yield Finding(
            "several machines: locks",
            False,
            False,
            f"`{kind}`: {detail}",
            "two machines may hold one lock at the same time",
            _ONE,
        )
