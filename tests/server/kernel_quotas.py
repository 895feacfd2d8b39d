"""A program for the first process of a Linux of its own: quotas on ext4 and XFS, printed as lines of JSON.

    python kernel_quotas.py SOURCE MODULES

SOURCE is the directory of `atoll`, MODULES that of the kernel's modules. The block devices `ubdb` and `ubdc` have ext4
and XFS.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import sys
from pathlib import Path
from typing import Any

UID = 1_879_100_001
MIB = 1 << 20


def load(modules: Path) -> None:
    """Load the kernel's modules of quotas and XFS, where they are not built in."""
    libc = ctypes.CDLL(None, use_errno=True)
    for name in ("quota_tree", "quota_v2", "libcrc32c", "xfs"):
        for path in modules.rglob(f"{name}.ko"):
            descriptor = os.open(path, os.O_RDONLY)
            libc.syscall(313, descriptor, b"", 0)
            os.close(descriptor)


def mount(device: str, target: Path, kind: str, options: str) -> None:
    """Mount a file system."""
    target.mkdir(parents=True, exist_ok=True)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(device.encode(), str(target).encode(), kind.encode(), 0, options.encode()) < 0:
        raise OSError(ctypes.get_errno(), f"mount {kind} {options}: {os.strerror(ctypes.get_errno())}")


def unmount(target: Path) -> None:
    """Unmount it."""
    ctypes.CDLL(None).umount2(str(target).encode(), 0)


def as_user(work: Any) -> int:
    """Run something as the user; return the number of its error, 0 for none."""
    child = os.fork()
    if not child:
        number = 0
        try:
            os.setgroups([])
            os.setgid(UID)
            os.setuid(UID)
            work()
        except OSError as error:
            number = error.errno or 1
        os._exit(number)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def fill(path: Path, mib: int) -> None:
    """Write a file."""
    with open(path, "ab", buffering=0) as file:
        file.writelines(b"x" * MIB for _ in range(mib))


def many(directory: Path, count: int) -> None:
    """Make files."""
    for number in range(count):
        (directory / f"f{number}").touch()


def tried(kind: str, device: str, options: str) -> dict[str, Any]:
    """Return the facts of a file system."""
    from atoll.model.quota import Quota
    from atoll.node.quotas import kernel
    from atoll.storage.peer.quota_guard import QuotaGuard

    target = Path("/mnt") / f"{kind}-{options}"
    mount(device, target, kind, options)
    try:
        volumes = target / f"volumes-{options}"
        data = volumes / "ann" / "data"
        data.mkdir(parents=True)
        for path in (volumes / "ann", data):
            os.chown(path, UID, UID)
        found = kernel.find(volumes)
        if found is None:
            return {"found": None}
        found.limit(UID, 20 * MIB, 200)
        if found.kind == kernel.PROJECT:
            kernel.put_into_project(volumes / "ann", UID)
        facts: dict[str, Any] = {"found": kernel.NAMES[found.kind], "device": found.device}
        facts["large"] = errno.errorcode.get(as_user(lambda: fill(data / "large", 30)), "")
        os.sync()
        facts["used"] = found.used(UID).bytes
        guard = QuotaGuard(str(volumes / "ann"), os.memfd_create("sheet"))
        guard._quota = Quota(20 * MIB, 200, kind=facts["found"])
        name = errno.ENOSPC if facts["large"] == "ENOSPC" else errno.EDQUOT
        facts["named"] = type(guard.named(OSError(name, "full"))).__name__
        facts["removed"] = as_user(lambda: os.unlink(data / "large"))
        facts["many"] = errno.errorcode.get(as_user(lambda: many(data, 300)), "")
        facts["files"] = found.used(UID).files
        found.limit(UID, 0, 0)
        facts["lifted"] = as_user(lambda: fill(data / "again", 25))
        return facts
    finally:
        unmount(target)


def main() -> None:
    """Print the facts of each file system."""
    load(Path(sys.argv[2]))
    sys.path.insert(0, sys.argv[1])
    for kind, device in (("ext4", "/dev/ubdb"), ("xfs", "/dev/ubdc")):
        for options in ("usrquota", "prjquota", ""):
            try:
                facts = tried(kind, device, options)
            except Exception as error:
                facts = {"error": repr(error)}
            print(f"FACTS {json.dumps({'fs': kind, 'options': options, **facts})}", flush=True)


if __name__ == "__main__":
    main()
