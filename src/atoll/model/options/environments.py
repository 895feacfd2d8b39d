"""The options `environments` of `settings.toml`: how environments are built, and where packages of users come from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EnvironmentsSettings:
    """Rules for building environments.

    Args:
        functions_use_credentials: whether a function's own requests may install what only the credentials of the
            program's indexes and proxies let in.
        build_memory_bytes: memory of one build's processes together; 0 means three quarters of the machine.
        build_processes: processes and threads of one build.
        build_seconds: wall time of one step of a build; 0 for no limit.
        build_disk_bytes: files that one build may write; 0 means three quarters of the free space when it starts.
        users_index_url: the package index of a server's users who name none, in place of PyPI: an address without
            credentials, or a directory of this machine.
        users_extra_index_urls: further ones, asked before it: the first that has a package gives it.
        users_find_links: directories or pages of packages beside them.
    """

    functions_use_credentials: bool = False
    build_memory_bytes: int = 0
    build_processes: int = 4096
    build_seconds: float = 4 * 3600.0
    build_disk_bytes: int = 0
    users_index_url: str = ""
    users_extra_index_urls: tuple[str, ...] = ()
    users_find_links: tuple[str, ...] = ()
