"""Which kind of file system a directory is on, and which kinds are served by another machine."""

from __future__ import annotations

import os

_NETWORK = frozenset(
    [
        *("nfs", "nfs4", "cifs", "smb3", "smbfs", "ceph", "lustre", "gpfs", "beegfs", "glusterfs", "9p", "virtiofs"),
        *("afs", "coda", "ocfs2", "gfs2", "orangefs", "pvfs2", "vboxsf", "prl_fs", "vmhgfs", "davfs", "drvfs", "fuse"),
    ]
)
_LOCAL_FUSE = frozenset(
    f"fuse.{name}"
    for name in (
        "mergerfs",
        "gocryptfs",
        "encfs",
        "cryfs",
        "bindfs",
        "fuse-overlayfs",
        "ntfs-3g",
        "lowntfs-3g",
        "zfs-fuse",
    )
)


def kind_of(path: str | int) -> str:
    """Return the kind of the file system that a directory (a path, or an open one) is on, as `mount` names it.

    Empty where that cannot be found out: on another system than Linux, or where `/proc` is not.
    """
    try:
        descriptor = os.dup(path) if isinstance(path, int) else os.open(path, os.O_RDONLY)
    except OSError:
        return ""
    try:
        with open(f"/proc/self/fdinfo/{descriptor}") as file:
            mount = dict(line.split(":", 1) for line in file if ":" in line).get("mnt_id", "").strip()
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                before, _, after = line.partition(" - ")
                if mount and before.split(" ", 1)[0] == mount:
                    return after.split(" ", 1)[0]
    except OSError:
        pass
    finally:
        os.close(descriptor)
    return ""


def is_network(kind: str) -> bool:
    """Whether a kind of file system is, or may be, served by another machine, which changes files unseen."""
    return kind in _NETWORK or (kind.startswith("fuse.") and kind not in _LOCAL_FUSE)
