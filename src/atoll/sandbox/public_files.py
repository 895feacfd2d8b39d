"""Files of the system that programs in a sandbox look for below `/etc` and `/var`: a curated list.

A name that is not listed here is in no sandbox. Listed are the parts of installed programs and libraries that a
distribution keeps outside of `/usr`. Left out is what may hold secrets (`/etc/gitconfig`, `/etc/pip.conf`, `/etc/npmrc`,
`/etc/wgetrc`, `/etc/maven`, `/etc/my.cnf`, `/etc/odbc.ini`, `/etc/environment`, private keys), what belongs to the
machine's own services, and what loads code into every program (`/etc/ld.so.preload`).

Only what every user of the machine may read is shown. A listed name that leads elsewhere by a symlink is followed
into a system directory and no further. A symlink below a listed directory leads to what the sandbox itself has there.
"""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Iterator, Mapping

NAMES: Mapping[str, tuple[str, ...]] = {
    "names of hosts, services, protocols and users (`/etc/hosts` is made for each sandbox)": (
        *("/etc/resolv.conf", "/etc/nsswitch.conf", "/etc/host.conf", "/etc/gai.conf"),
        *("/etc/services", "/etc/protocols", "/etc/rpc", "/etc/ethertypes", "/etc/netconfig"),
    ),
    "certificates: Debian, Arch, openSUSE; then Fedora and RHEL": (
        *("/etc/ssl/certs", "/etc/ssl/openssl.cnf", "/etc/ssl/cert.pem", "/etc/ssl/ca-bundle.pem"),
        *("/etc/ca-certificates.conf", "/etc/ca-certificates", "/etc/crypto-policies"),
        *("/etc/pki/ca-trust", "/etc/pki/java", "/etc/pki/tls/certs", "/etc/pki/tls/cert.pem"),
        *("/etc/pki/tls/openssl.cnf", "/etc/pki/tls/openssl.d"),
    ),
    "the time zone": ("/etc/localtime", "/etc/timezone"),
    "types of files, for `mimetypes`, `file` and libmagic": (
        *("/etc/mime.types", "/etc/mailcap", "/etc/magic", "/etc/magic.mime"),
    ),
    "where the loader finds libraries, and which of several programs has a name": (
        *("/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/alternatives"),
    ),
    "the distribution's name and version": (
        *("/etc/os-release", "/etc/debian_version", "/etc/lsb-release", "/etc/redhat-release", "/etc/alpine-release"),
    ),
    "Java's security, management and logging properties, without which it does not start": ("/etc/java", "/etc/java-*"),
    "fontconfig, and its cache, without which text cannot be drawn": ("/etc/fonts", "/var/cache/fontconfig"),
    "which driver serves OpenCL, Vulkan, OpenGL and EGL": (
        *("/etc/OpenCL", "/etc/vulkan", "/etc/glvnd", "/etc/egl", "/etc/drirc"),
    ),
    "MPI and the networks under it": (
        *("/etc/openmpi", "/etc/openmpi-*", "/etc/pmix", "/etc/prrte", "/etc/mpich", "/etc/ucx"),
        *("/etc/libibverbs.d", "/etc/libnl", "/etc/libnl-3"),
    ),
    "ImageMagick's limits and delegates, Ghostscript's fonts, sizes of paper": (
        *("/etc/ImageMagick-*", "/etc/ghostscript", "/var/lib/ghostscript", "/etc/papersize", "/etc/paperspecs"),
    ),
    "languages that keep their start-up files there": (
        *("/etc/R", "/etc/perl", "/etc/julia", "/etc/octave.conf", "/etc/mono", "/etc/dotnet"),
    ),
    "TeX's configuration and formats": ("/etc/texmf", "/var/lib/texmf"),
    "catalogs by which XML and SGML find their schemas": ("/etc/xml", "/etc/sgml", "/var/lib/xml-core"),
    "documents, browsers and sound without a screen": (
        *("/etc/libreoffice", "/etc/chromium", "/etc/chromium.d", "/etc/alsa", "/etc/asound.conf"),
    ),
    "dictionaries": (
        *("/etc/dictionaries-common", "/var/lib/dictionaries-common", "/var/lib/aspell"),
        *("/etc/mecabrc", "/var/lib/mecab"),
    ),
    "Python packages of the distribution": ("/etc/matplotlibrc",),
    "the distribution's choice among versions of PostgreSQL's programs": ("/etc/postgresql-common",),
    "names of drivers for databases, without the data sources": ("/etc/odbcinst.ini",),
    "aliases of locales, and of terminals": ("/etc/locale.alias", "/etc/terminfo"),
}
"""Names by the reason for which they are there; `*` stands for a version."""

PLACES = ("/etc/", "/usr/", "/nix/store/", "/run/", "/var/lib/", "/var/cache/", "/var/run/", "/opt/")
"""System directories that a listed name may lead to."""

MOST_ENTRIES = 20_000
"""A directory with more entries is not looked through, and not shown."""


def public(root: str = "/") -> Iterator[str]:
    """Yield what there is to show, whole directories where all that they hold is public, each path once.

    Args:
        root: where the machine's files are.
    """
    seen: set[str] = set()
    for pattern in (pattern for patterns in NAMES.values() for pattern in patterns):
        found = sorted(glob.glob(os.path.join(root, pattern[1:]))) if "*" in pattern else [root + pattern[1:]]
        for path in found:
            if path not in seen and leads_to_the_system(path, root):
                seen.add(path)
                yield from _readable(path)


def leads_to_the_system(path: str, root: str = "/") -> bool:
    """Return whether a path exists, and every symlink in it leads to a system directory."""
    real = os.path.realpath(path)
    inside = "/" + os.path.relpath(real, os.path.realpath(root))
    return os.path.exists(real) and inside.startswith(PLACES)


def _readable(path: str) -> Iterator[str]:
    """Yield a path if everything in it is public; else the parts that are, as far as the directory itself is."""
    parts: list[str] = []
    if _collect(os.path.realpath(path), parts, [MOST_ENTRIES]):
        yield path
    else:
        yield from (path + part for part in parts)


def _collect(top: str, parts: list[str], left: list[int], below: str = "") -> bool:
    """Return whether all users may read everything at `top + below`; else add the largest parts that they may.

    Args:
        left: how many entries may still be looked at.
    """
    path = top + below
    try:
        mode = os.lstat(path).st_mode
        if stat.S_ISLNK(mode):
            return True  # it leads to what the sandbox has there
        if stat.S_ISREG(mode):
            return bool(mode & stat.S_IROTH)
        if not stat.S_ISDIR(mode) or mode & 0o005 != 0o005:
            return False
        names = sorted(os.listdir(path))
    except OSError:
        return False
    left[0] -= len(names)
    if left[0] < 0:
        return False
    found: list[str] = []
    whole = True
    for name in names:
        inner: list[str] = []
        if _collect(top, inner, left, f"{below}/{name}"):
            found.append(f"{below}/{name}")
        else:
            whole = False
            found += inner
    if not whole:
        parts += found
    return whole
