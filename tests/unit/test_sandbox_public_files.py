"""The curated list of system files: what all users may read, where no symlink leads out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from atoll.sandbox import public_files
from atoll.sandbox.machine import LOCALHOST
from atoll.sandbox.policy import names


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("etc", "usr/share", "home/me"):
        (tmp_path / name).mkdir(parents=True)
    return tmp_path


def shown(root: Path) -> list[str]:
    return [path.removeprefix(str(root)) for path in public_files.public(f"{root}/")]


def write(path: Path, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("x")
    path.chmod(mode)


def test_listed_names_are_shown_and_no_others(root: Path) -> None:
    """A listed file, directory or version is there; a file that may hold secrets is not."""
    for name in ("mime.types", "java-17-openjdk/security/java.security", "fonts/fonts.conf"):
        write(root / "etc" / name)
    for name in ("shadow", "gitconfig", "pip.conf", "ld.so.preload", "environment", "java.secrets", "ssl/private/key"):
        write(root / "etc" / name)
    assert shown(root) == ["/etc/mime.types", "/etc/java-17-openjdk", "/etc/fonts"]


def test_a_file_that_not_all_may_read_is_not_shown(root: Path) -> None:
    """A private file takes its directory apart: the rest of it is shown, in as few parts as there can be."""
    write(root / "etc/services", 0o640)
    for name in (
        "security/java.security",
        "security/policy/unlimited",
        "management/jmxremote.access",
        "net.properties",
    ):
        write(root / "etc/java-17" / name)
    write(root / "etc/java-17/management/jmxremote.password", 0o600)
    write(root / "etc/fonts/fonts.conf")
    (root / "etc/fonts").chmod(0o750)
    assert shown(root) == [
        f"/etc/java-17/{name}" for name in ("management/jmxremote.access", "net.properties", "security")
    ]


def test_a_link_is_followed_into_the_system_only(root: Path) -> None:
    """A listed name that leads to someone's home, or to nothing, is left out."""
    write(root / "usr/share/zone")
    write(root / "home/me/types")
    os.symlink("../usr/share/zone", root / "etc/localtime")
    os.symlink("../home/me/types", root / "etc/mime.types")
    os.symlink("../home/me", root / "etc/fonts")
    os.symlink("nowhere", root / "etc/services")
    (root / "etc/perl").mkdir()
    os.symlink("../../home/me/types", root / "etc/perl/inner")
    assert shown(root) == ["/etc/localtime", "/etc/perl"], "a link below leads to what the sandbox has there"


def test_the_own_name_comes_first_in_the_list_of_hosts() -> None:
    """The sandbox's name has an address of its own on loopback, which no line of the machine names before."""
    hosts, name = names("atoll-1", b"127.0.1.1 machine\n" + LOCALHOST)
    assert (hosts.target, name.target, name.content) == ("/etc/hosts", "/etc/hostname", b"atoll-1\n")
    assert hosts.content.splitlines()[:2] == [b"127.0.1.1\tatoll-1", b"127.0.1.1 machine"]
