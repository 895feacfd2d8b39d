"""The machine's part of every sandbox: system libraries and the public part of `/etc`.

Distributions differ: `/bin` is a directory or a link, certificates lie in `/etc/ssl`, `/etc/pki` or
`/etc/ca-certificates`, `/etc/resolv.conf` is often a link into `/run`, and NixOS keeps programs in `/nix/store`.
`read` looks once and gives a value; everything after it is pure. Each entry is named: a file of `/etc` that is not
listed here is in no sandbox, and private keys (`/etc/ssl/private`, `/etc/pki/tls/private`) never are.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass

from atoll.model.mounts import Bind

SYSTEM_DIRECTORIES = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
"""Links into `/usr` on a merged system, directories elsewhere."""

ETC = (
    # name resolution
    "/etc/resolv.conf",
    "/etc/hosts",
    "/etc/nsswitch.conf",
    "/etc/host.conf",
    "/etc/gai.conf",
    "/etc/services",
    "/etc/protocols",
    # certificates: Debian, Arch, openSUSE; then Fedora and RHEL
    "/etc/ssl/certs",
    "/etc/ssl/openssl.cnf",
    "/etc/ssl/cert.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ca-certificates.conf",
    "/etc/ca-certificates",
    "/etc/pki/ca-trust",
    "/etc/pki/tls/certs",
    "/etc/pki/tls/cert.pem",
    "/etc/pki/tls/openssl.cnf",
    "/etc/pki/tls/openssl.d",
    "/etc/crypto-policies",
    # time, types, libraries
    "/etc/localtime",
    "/etc/timezone",
    "/etc/mime.types",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/alternatives",
)
"""The files and directories of `/etc` that every sandbox is shown read-only, where they exist."""

NIX_BUNDLES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/ssl/certs/ca-bundle.crt")
"""On NixOS the directory around them holds links that lead nowhere in a sandbox; the files themselves are shown."""


@dataclass(frozen=True)
class Symlink:
    """A symbolic link inside a sandbox: `path` points to `target`."""

    path: str
    target: str


@dataclass(frozen=True)
class Machine:
    """The part of the host that every sandbox shares.

    Args:
        architecture: as `uname -m` says it.
        system: directories and files that are shown read-only at the path they have here.
        links: links that this machine has among its system directories.
        search_path: where system programs are, for `PATH`.
    """

    architecture: str
    system: tuple[Bind, ...]
    links: tuple[Symlink, ...] = ()
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
    for path in (*ETC, *NIX_BUNDLES) if nix else ETC:
        if not os.path.exists(path) or (nix and path == "/etc/ssl/certs"):
            continue
        target = os.readlink(path) if os.path.islink(path) else ""
        if target.startswith(("/usr/", "../usr/", "/nix/store/")):
            links.append(Symlink(path, target))  # kept as a link: the time zone's name is in it
        else:
            system.append(Bind(path, path))
    return Machine(platform.machine(), tuple(system), tuple(links), search_path)
