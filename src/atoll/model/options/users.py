"""The options `users` of `settings.toml`: bounds of each user of a server."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class UsersSettings:
    """Rules for the users of a server that this state directory serves. Each bound is one user's.

    Args:
        share_uid: several users although this daemon is a plain user's, whose host uid they then share; as
            `atoll server --share-uid-between-users`.
        share_network: functions of a single user share the machine's network where they name none.
        workers: calls at a time; 0 for no bound but the machine's.
        connections: to the daemon, leases among them.
        builds: of environments at a time; further ones wait.
        storage_clients: of `/data` at a time.
        shells: of `atoll shell` at a time; each is a sandbox of its own.
        request_bytes: memory of requests whose leases live.
        processes: processes and threads of all their functions together; 0 means half of the kernel's.
        memory_bytes: of all their functions together, far above what these reserve; 0 means that of the machine.
        reachable: private networks that functions may reach, such as `10.1.2.0/24`; all others are closed.
    """

    share_uid: bool = False
    share_network: bool = False
    workers: int = 0
    connections: int = 512
    builds: int = 2
    storage_clients: int = 16
    shells: int = 16
    request_bytes: int = 64 << 20
    processes: int = 0
    memory_bytes: int = 0
    reachable: tuple[str, ...] = ()
