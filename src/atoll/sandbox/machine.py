"""The machine's part of every sandbox: system libraries and the public part of `/etc` (see `public_files`).

Distributions differ: `/bin` is a directory or a link, certificates lie in `/etc/ssl`, `/etc/pki` or
`/etc/ca-certificates`, `/etc/resolv.conf` is often a link into `/run`, and NixOS keeps programs in `/nix/store`.
`read` looks once and gives a value; everything after it is pure.
"""

from __future__ import annotations

import os
import platform
import stat
from dataclasses import dataclass

from atoll.model.mounts import Bind
from atoll.sandbox import public_files

SYSTEM_DIRECTORIES = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
"""Links into `/usr` on a merged system, directories elsewhere."""

COPIED_BYTES = 1 << 16
"""A file up to this size is copied into a sandbox: a mount costs three times as much."""

FRESH = ("/etc/resolv.conf", "/etc/ld.so.cache")
"""Files that change while the daemon runs: each sandbox is shown them as they are when it starts."""

HOSTS = "/etc/hosts"
LOCALHOST = b"127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"
MOST_HOSTS_BYTES = 1 << 20
"""A larger list of hosts, as those that block advertisements, is not copied into sandboxes."""

NIX_BUNDLES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/ssl/certs/ca-bundle.crt")
"""On NixOS the directory around them holds links that lead nowhere in a sandbox; the files themselves are shown."""


@dataclass(frozen=True)
class Symlink:
    """A symbolic link inside a sandbox: `path` points to `target`."""

    path: str
    target: str


@dataclass(frozen=True)
class SyntheticFile:
    """A read-only file that exists inside only."""

    target: str
    content: bytes
    mode: int = 0o644


@dataclass(frozen=True)
class Machine:
    """The part of the host that every sandbox shares.

    Args:
        architecture: as `uname -m` says it.
        system: directories and files that are shown read-only at the path they have here.
        links: links that this machine has among its system directories.
        files: small files of the system, as copies.
        hosts: the machine's `/etc/hosts`.
        search_path: where system programs are, for `PATH`.
    """

    architecture: str
    system: tuple[Bind, ...]
    links: tuple[Symlink, ...] = ()
    files: tuple[SyntheticFile, ...] = ()
    hosts: bytes = LOCALHOST
    search_path: str = "/usr/local/bin:/usr/bin:/bin"


def read() -> Machine:
    """Look at this machine; costs some tens of file lookups."""
    system: list[Bind] = []
    links: list[Symlink] = []
    search_path = "/usr/local/bin:/usr/bin:/bin"
    for path in ("/usr", *SYSTEM_DIRECTORIES):
        if os.path.islink(path):
            links.append(Symlink(path, os.readlink(path)))
        elif os.path.isdir(path):
            system.append(Bind(path, path))
    nix = os.path.isdir("/nix/store") and os.path.lexists("/run/current-system")
    if nix:
        system.append(Bind("/nix/store", "/nix/store"))
        links.append(Symlink("/run/current-system", os.path.realpath("/run/current-system")))
        search_path += ":/run/current-system/sw/bin"
    files: list[SyntheticFile] = []
    for path in (*public_files.public(), *NIX_BUNDLES) if nix else public_files.public():
        if not os.path.exists(path) or (nix and path == "/etc/ssl/certs"):
            continue
        target = os.readlink(path) if os.path.islink(path) else ""
        if target.startswith(("/usr/", "../usr/", "/nix/store/")):
            links.append(Symlink(path, target))  # kept as a link: the time zone's name is in it
        elif path not in FRESH and (content := _small(path)) is not None:
            files.append(SyntheticFile(path, content))
        else:
            system.append(Bind(path, path))
    return Machine(platform.machine(), tuple(system), tuple(links), tuple(files), read_hosts(), search_path)


def new_hostname() -> str:
    """Return a name for one sandbox, which no other has: files that are locked by host and pid tell sandboxes apart."""
    return f"atoll-{os.urandom(5).hex()}"


def read_hosts() -> bytes:
    """Return the machine's list of hosts, which names `localhost` in any case."""
    content = _small(HOSTS, MOST_HOSTS_BYTES) or b""
    if not any(b"localhost" in line.split(b"#")[0].split()[1:] for line in content.splitlines()):
        content = LOCALHOST + content
    return content if content.endswith(b"\n") else content + b"\n"


def _small(path: str, most_bytes: int = COPIED_BYTES) -> bytes | None:
    """Return the content of a small file; None for a large one, and for what is no file that can be read."""
    try:
        with open(path, "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return None
            content = file.read(most_bytes + 1)
    except OSError:
        return None
    return content if len(content) <= most_bytes else None
