"""The policy and the arguments that follow from it: pure."""

from __future__ import annotations

import dataclasses

import pytest

from atoll.model.mounts import Bind, Identity
from atoll.sandbox import bwrap
from atoll.sandbox.machine import Machine, Symlink, SyntheticFile
from atoll.sandbox.policy import RUN_BYTES, Directory, Policy, Tmpfs, accounts, confine

MACHINE = Machine(
    "x86_64",
    system=(Bind("/usr", "/usr"), Bind("/etc/hosts", "/etc/hosts")),
    links=(Symlink("/bin", "usr/bin"),),
)
SOMEONE = Identity(1234, 1235)
SMALL = Policy(("run", "me"), SOMEONE)


def lines(policy: Policy, *, as_root: bool = False) -> list[str]:
    """Return the options, one text for each option with its arguments."""
    fds = {file.target: 50 + number for number, file in enumerate(policy.files)}
    words = bwrap.options(policy, as_root=as_root, seccomp_fd=10, status_fd=11, orphan_pipe_fd=12, file_fds=fds)
    found: list[str] = []
    for word in words:
        if word.startswith("--"):
            found.append(word)
        else:
            found[-1] += f" {word}"
    return found


@pytest.mark.parametrize(
    ("what", "policy", "expected"),
    [
        (
            "a bind below a memory directory comes after it",
            dataclasses.replace(
                SMALL, tmpfs=(Tmpfs("/tmp", 7),), binds=(Bind("/a", "/tmp/x"), Bind("/b", "/data", True))
            ),
            ["--bind /b /data", "--perms 1777", "--size 7", "--tmpfs /tmp", "--ro-bind /a /tmp/x"],
        ),
        (
            "parents are made first, open to all",
            dataclasses.replace(SMALL, binds=(Bind("/a", "/root/x/y"),)),
            ["--perms 0755", "--dir /root", "--perms 0755", "--dir /root/x", "--ro-bind /a /root/x/y"],
        ),
        (
            "no parent is made below what is shown",
            dataclasses.replace(SMALL, binds=(Bind("/a", "/opt"), Bind("/b", "/opt/x/y"))),
            ["--ro-bind /a /opt", "--ro-bind /b /opt/x/y"],
        ),
        (
            "a system path that has gone is left out",
            dataclasses.replace(SMALL, system=(Bind("/usr", "/usr"),), links=(Symlink("/bin", "usr/bin"),)),
            ["--symlink usr/bin /bin", "--ro-bind-try /usr /usr"],
        ),
        (
            "a file is read from its descriptor, with its mode",
            dataclasses.replace(SMALL, files=(SyntheticFile("/etc/x", b"", 0o600),)),
            ["--perms 0755", "--dir /etc", "--perms 0600", "--file 50 /etc/x"],
        ),
        (
            "directories come after the file system that they are on, with their mode",
            dataclasses.replace(SMALL, tmpfs=(Tmpfs("/run", 7),), directories=(Directory("/run/lock", 0o1777),)),
            ["--perms 1777", "--tmpfs /run", "--perms 1777", "--dir /run/lock"],
        ),
        (
            "devices and sysfs are there when they are asked for",
            dataclasses.replace(SMALL, devices=("/dev/nvidia0",), sysfs=True),
            ["--dev-bind /dev/nvidia0 /dev/nvidia0", "--ro-bind /sys /sys"],
        ),
        (
            "variables are those of the policy",
            dataclasses.replace(SMALL, environment=(("A", "1"), ("B", "x y"))),
            ["--clearenv", "--setenv A 1", "--setenv B x y"],
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_policy_becomes_options(what: str, policy: Policy, expected: list[str]) -> None:
    """Each part of a policy gives its options, in the order in which bubblewrap must perform them."""
    found = [line for line in lines(policy) if line in expected]
    assert found == expected, what


def test_every_sandbox_has_its_own_namespaces_and_ends_with_its_parent() -> None:
    """The options that confine are there as root and as a plain user; root makes no user namespace."""
    for as_root in (False, True):
        found = lines(SMALL, as_root=as_root)
        for option in ("pid", "ipc", "uts", "cgroup-try"):
            assert f"--unshare-{option}" in found
        assert {"--die-with-parent", "--new-session", "--clearenv", "--seccomp 10"} <= set(found)
        assert ("--unshare-user" in found) == (not as_root)
        assert "--cap-drop ALL" in found
        assert not {"--as-pid-1", "--unshare-net"} & set(found)
        assert found[-3:] == ["--remount-ro /dev", "--remount-ro /", "--chdir /"]
    assert {"--uid 1234", "--gid 1235", "--disable-userns"} <= set(lines(SMALL))


def test_the_command_line_holds_no_option_that_others_could_read() -> None:
    """Only the command is on the command line; as root, behind setpriv, which gives everything up."""
    line = bwrap.arguments(SMALL, bwrap="/b", setpriv="/s", as_root=False, args_fd=9)
    assert line == ["/b", "--args", "9", "--", "run", "me"]
    line = bwrap.arguments(SMALL, bwrap="/b", setpriv="/s", as_root=True, args_fd=9)
    assert line[:9] == ["/b", "--args", "9", "--", "/s", "--reuid", "1234", "--regid", "1235"]
    assert {"--clear-groups", "--no-new-privs", "--bounding-set", "--inh-caps", "--ambient-caps"} <= set(line)
    assert line[-3:] == ["--", "run", "me"]


def test_an_unknown_network_is_refused() -> None:
    """A network policy that is not known never becomes a weaker one."""
    with pytest.raises(KeyError):
        lines(dataclasses.replace(SMALL, network="outside"))


def test_only_a_network_of_its_own_is_made_by_bubblewrap() -> None:
    """`none` makes a network namespace, `host` does not."""
    assert "--unshare-net" in lines(dataclasses.replace(SMALL, network="none"))
    assert "--unshare-net" not in lines(dataclasses.replace(SMALL, network="host"))


def test_the_base_is_in_every_policy() -> None:
    """`confine` adds system directories, accounts, bounded memory directories and the usual variables."""
    policy = confine(
        ["x"], machine=MACHINE, identity=SOMEONE, environment=[("HOME", "/data")], tmp_bytes=5, shm_bytes=6
    )
    assert policy.system == MACHINE.system
    assert policy.links[:1] == MACHINE.links
    assert {link.path: link.target for link in policy.links[1:]} == {
        "/var/tmp": "/tmp",
        "/var/run": "/run",
        "/var/lock": "/run/lock",
        "/app": "/home/user/.app",
    }
    sizes = {mount.target: mount.size_bytes for mount in policy.tmpfs}
    assert sizes == {"/tmp": 5, "/dev/shm": 6, "/home/user": 5, "/run": RUN_BYTES}
    assert {file.target for file in policy.files} == {"/etc/passwd", "/etc/group", "/etc/hosts", "/etc/hostname"}
    assert dict(policy.environment)["HOME"] == "/data"
    assert policy.workdir == "/home/user"


@pytest.mark.parametrize(
    "target",
    ["/", "/usr", "/usr/bin", "/bin", "/bin/sh", "/etc", "/etc/passwd", "/proc", "/dev/shm", "/dev/x", "/sys", "/tmp",
     "/home/user", "/home/../etc", "relative", "/run/x", "/var", "/var/tmp", "/var/run/x"],
)  # fmt: skip
def test_a_bind_cannot_replace_the_base(target: str) -> None:
    """A bind at, in or over a part of the base is refused: setpriv and the loader come from there."""
    with pytest.raises(ValueError, match=r"sandbox itself|normal paths"):
        confine(["x"], machine=MACHINE, identity=SOMEONE, binds=[Bind("/a", target)])


def test_binds_are_admitted_once() -> None:
    """What the base shows already is dropped, an equal bind counts once, two at one place are refused."""
    same = [Bind("/usr/local", "/usr/local"), Bind("/a", "/opt/a"), Bind("/a", "/opt/a")]
    assert confine(["x"], machine=MACHINE, identity=SOMEONE, binds=same).binds == (Bind("/a", "/opt/a"),)
    with pytest.raises(ValueError, match="/opt/a"):
        confine(["x"], machine=MACHINE, identity=SOMEONE, binds=[*same, Bind("/b", "/opt/a")])


@pytest.mark.parametrize(("target", "linked"), [("/app", 0), ("/app/.venv", 0), ("/apple", 1), ("/opt/app", 1)])
def test_a_bind_at_the_place_of_an_apps_files_is_shown(target: str, linked: int) -> None:
    """An interpreter or a mount below `/app` is shown as ever: the link to an app's files gives way."""
    policy = confine(["x"], machine=MACHINE, identity=SOMEONE, binds=iter([Bind("/a", target)]))
    assert policy.binds == (Bind("/a", target),)
    assert sum(link.path == "/app" for link in policy.links) == linked


@pytest.mark.parametrize("name", ["LD_PRELOAD", "LD_LIBRARY_PATH", "GLIBC_TUNABLES", "GCONV_PATH", "", "A=B"])
def test_a_variable_cannot_reach_the_loader(name: str) -> None:
    """Variables that would make setpriv, still uid 0, load code are refused."""
    with pytest.raises(ValueError, match="cannot be set"):
        confine(["x"], machine=MACHINE, identity=SOMEONE, environment=[(name, "/data/evil.so")])


@pytest.mark.parametrize("identity", [Identity(0, 5), Identity(5, 0)])
def test_root_is_never_an_identity(identity: Identity) -> None:
    """A policy for uid or gid 0 cannot be made."""
    with pytest.raises(ValueError, match="root"):
        confine(["x"], machine=MACHINE, identity=identity)


def test_accounts_know_three_names() -> None:
    """The synthetic files name root, the identity and nobody."""
    passwd, group = accounts(Identity(7, 8, "me"))
    assert [line.split(b":")[0] for line in passwd.content.splitlines()] == [b"root", b"me", b"nobody"]
    assert b"me:x:7:8:" in passwd.content
    assert b"me:x:8:" in group.content
