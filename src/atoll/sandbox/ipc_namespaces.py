"""System V shared memory that sandboxes of one user and one trust have in common.

Theory of operation. PostgreSQL keeps two servers from one data directory by a segment of shared memory: a server is
alive as long as somebody is attached to the segment that `postmaster.pid` names. A process id cannot tell, because
no sandbox sees the processes of another. So sandboxes that share `/data` share an IPC namespace as well.

A namespace is kept by a descriptor while a sandbox uses it. Starting a sandbox there needs CAP_SYS_ADMIN. Root's thread
enters it, starts bubblewrap, and goes back. A plain user has this capability in user namespaces only: one is made with
the IPC namespace, or is that of an outbound network, and `nsenter` starts bubblewrap in both. So a plain user's
sandboxes share as far as they have the same network. What is left in a namespace is bounded, and freed with it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from atoll import linux
from atoll.errors import SandboxUnavailable
from atoll.process import PIPE, Child
from atoll.sandbox import programs

log = logging.getLogger("atoll.sandbox")

PAGE_BYTES = 4096

MAKE_SECONDS = 2.0
"""Seconds until a namespace that is not ready is given up."""


def limits(shm_bytes: int) -> Mapping[str, str]:
    """Return the limits of a namespace by their names below `/proc/sys/kernel`: memory, segments, queues, semaphores."""
    return {"shmall": str(shm_bytes // PAGE_BYTES), "shmmni": "1024", "msgmni": "256", "sem": "250 32000 100 256"}


@dataclass
class Namespace:
    """An IPC namespace, and the user namespace that is entered with it; -1 for none."""

    ipc: int
    user: int = -1
    sandboxes: int = 0

    def close(self) -> None:
        for descriptor in (self.ipc, self.user):
            if descriptor >= 0:
                os.close(descriptor)


class IpcNamespaces:
    """The IPC namespaces of groups of sandboxes; to be used from the event loop's own thread.

    Args:
        shm_bytes: how much shared memory each may hold.
    """

    def __init__(self, shm_bytes: int) -> None:
        self._limits = limits(shm_bytes)
        self._made: dict[tuple[str, ...], Namespace] = {}
        self._failed = False

    def take(self, group: str, enter: Sequence[str]) -> Namespace | None:
        """Return the group's namespace, to be given back; None where there can be none.

        Args:
            enter: starts a program in the sandbox's network; empty for none.
        """
        key = (group, *(() if os.geteuid() == 0 else enter))
        found = self._made.get(key)
        if found is None and not self._failed:
            try:
                found = self._made[key] = self._make() if os.geteuid() == 0 else self._make_by_program(enter)
            except (OSError, SandboxUnavailable) as error:
                self._failed = True
                log.warning("ipc_namespace_failed reason=%s", error)
        if found is not None:
            found.sandboxes += 1
        return found

    def give_back(self, namespace: Namespace) -> None:
        """Forget a sandbox that has ended; with the last one its namespace goes."""
        namespace.sandboxes -= 1
        if not namespace.sandboxes:
            self._made = {key: one for key, one in self._made.items() if one is not namespace}
            namespace.close()

    def enter(self, namespace: Namespace | None, enter: Sequence[str]) -> Sequence[str]:
        """Return what starts a program in a network and a namespace, for a thread that is `inside` the namespace."""
        if namespace is None or os.geteuid() == 0:
            return enter
        directory = f"/proc/{os.getpid()}/fd"
        ipc = f"--ipc={directory}/{namespace.ipc}"
        if enter:
            return [*enter[:-1], ipc, enter[-1]]
        user = f"--user={directory}/{namespace.user}"
        return [programs.find_nsenter(), user, ipc, "--preserve-credentials", "--"]

    @contextlib.contextmanager
    def inside(self, namespace: Namespace | None) -> Iterator[None]:
        """Have what root's thread starts begin in a namespace.

        Raises:
            OSError: the thread may not enter it.
        """
        if namespace is None or os.geteuid() != 0:
            yield
            return
        own = os.open("/proc/thread-self/ns/ipc", os.O_RDONLY | os.O_CLOEXEC)
        try:
            linux.enter_namespace(namespace.ipc, linux.CLONE_NEWIPC)
            try:
                yield
            finally:
                linux.enter_namespace(own, linux.CLONE_NEWIPC)
        finally:
            os.close(own)

    def _make(self) -> Namespace:
        """Return a new namespace, made by a thread that leaves this process's own."""
        made: list[int] = []
        failed: list[OSError] = []

        def leave() -> None:
            try:
                linux.leave_namespaces(linux.CLONE_NEWIPC)
                for name, value in self._limits.items():
                    Path("/proc/sys/kernel", name).write_text(value)
                linux.skip_first_segment()
                made.append(os.open("/proc/thread-self/ns/ipc", os.O_RDONLY | os.O_CLOEXEC))
            except OSError as error:
                failed.append(error)

        thread = threading.Thread(target=leave)
        thread.start()
        thread.join()
        if failed:
            raise failed[0]
        return Namespace(made[0])

    def _make_by_program(self, enter: Sequence[str]) -> Namespace:
        """Return a new namespace, made by a program that ends when its namespaces are held here."""
        writes = "; ".join(f"echo {value} > /proc/sys/kernel/{name}" for name, value in self._limits.items())
        skip = "ipcrm -m $(ipcmk -M 1 | tr -dc 0-9)"  # PostgreSQL takes segment 0 for none
        own = [] if enter else ["--user", "--map-root-user"]
        with contextlib.ExitStack() as stack:
            read, write = os.pipe2(os.O_CLOEXEC)
            stack.callback(os.close, read)
            stack.callback(os.close, write)
            line = [
                *enter,
                programs.find_unshare(),
                *own,
                "--ipc",
                "--",
                "/bin/sh",
                "-c",
                f"{writes}; {skip}; echo; read end",
            ]
            child = Child(line, env={"PATH": os.defpath}, stdin=read, stdout=PIPE)
            assert child.stdout is not None
            stack.callback(child.stdout.close)
            if not select.select([child.stdout], [], [], MAKE_SECONDS)[0] or not os.read(child.stdout.fileno(), 1):
                raise OSError("no IPC namespace can be made by `unshare`")
            user = -1 if enter else os.open(f"/proc/{child.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
            return Namespace(os.open(f"/proc/{child.pid}/ns/ipc", os.O_RDONLY | os.O_CLOEXEC), user)
