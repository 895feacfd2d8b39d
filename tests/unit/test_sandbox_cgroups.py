"""Where a memory group may be made, on machines that this is not: a directory tree stands for the kernel's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from atoll.sandbox.limits import cgroups
from atoll.sandbox.limits.cgroups import Group, Hierarchy, Place, hierarchies

pytestmark = pytest.mark.as_user

V2 = "30 24 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"
V1 = "35 31 0:32 {root} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory"
CPU = "34 31 0:31 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu"
PROC = "21 24 0:19 / /proc rw - proc proc rw"


@pytest.mark.parametrize(
    ("what", "mounts", "groups", "expected"),
    [
        ("version 2", [PROC, V2], "0::/user.slice/a.scope\n", [(2, "/sys/fs/cgroup/user.slice/a.scope")]),
        ("version 1", [CPU, V1.format(root="/")], "4:memory:/a\n0::/\n", [(1, "/sys/fs/cgroup/memory/a")]),
        ("two controllers", [CPU, V1.format(root="/")], "4:memory:/a\n3:cpu,cpuacct:/b\n", [(1, "/sys/fs/cgroup/cpu/b"), (1, "/sys/fs/cgroup/memory/a")]),
        ("both", [V1.format(root="/"), V2], "4:memory:/a\n0::/b\n", [(1, "/sys/fs/cgroup/memory/a"), (2, "/sys/fs/cgroup/b")]),
        ("a container", [V1.format(root="/docker/x")], "4:memory:/docker/x/y\n", [(1, "/sys/fs/cgroup/memory/y")]),
        ("outside of the namespace", [V2], "0::/../other\n", []),
        ("a removed group", [V2], "0::/a (deleted)\n", [(2, "/sys/fs/cgroup/a")]),
        ("none", [PROC], "3:cpu:/\n", []),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 30 else "",
)  # fmt: skip
def test_hierarchies_are_read(what: str, mounts: list[str], groups: str, expected: list[tuple[int, str]]) -> None:
    """Own group and version follow from the kernel's two files."""
    found = [(one.version, str(one.own)) for one in hierarchies("\n".join(mounts), groups)]
    assert found == expected, what


def group(path: Path, *, controllers: str = "memory", enabled: str = "", procs: str = "") -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "cgroup.controllers").write_text(controllers)
    (path / "cgroup.subtree_control").write_text(enabled)
    (path / "cgroup.procs").write_text(procs)
    return path


def test_version_2_takes_the_nearest_group_whose_children_can_be_limited(tmp_path: Path) -> None:
    """A group with other processes in it cannot have limited children; the delegated one above it can."""
    group(tmp_path, enabled="memory")
    above = group(tmp_path / "user", enabled="cpu memory")
    own = group(above / "scope", controllers="", procs=f"{os.getpid()}\n1\n")
    made = above / "atoll-x"
    group(made)  # the kernel fills a new group with files
    assert cgroups.place([Hierarchy(2, tmp_path, own)], "atoll-x") == [Place(2, made, frozenset({"memory"}))]
    assert (made / "cgroup.subtree_control").read_text() == "+memory"


def test_version_2_moves_a_lonely_daemon_one_level_down(tmp_path: Path) -> None:
    """A delegated group whose only process is the daemon itself is used after the daemon has stepped aside."""
    own = group(tmp_path / "service", procs=f"{os.getpid()}\n")
    group(own / "atoll-x")
    group(own / "atoll-daemon")
    assert cgroups.place([Hierarchy(2, tmp_path, own)], "atoll-x") == [Place(2, own / "atoll-x", frozenset({"memory"}))]
    assert (own / "atoll-daemon" / "cgroup.procs").read_text() == str(os.getpid())


def test_without_a_memory_controller_there_is_no_place(tmp_path: Path) -> None:
    """Where no group above has the controller, nothing is made."""
    own = group(tmp_path / "a", controllers="cpu", procs="1\n")
    assert cgroups.place([Hierarchy(2, tmp_path, own)], "atoll-x") == []
    assert not (own / "atoll-x").exists()


def test_the_name_follows_the_state_directory(tmp_path: Path) -> None:
    """Two state directories never share a group, and one has the same group by each of its names."""
    (tmp_path / "link").symlink_to(tmp_path)
    assert cgroups.name_for(tmp_path) == cgroups.name_for(tmp_path / "link")
    assert cgroups.name_for(tmp_path) != cgroups.name_for(tmp_path / "other")


@pytest.mark.parametrize(("millicores", "quota"), [(500, 50_000), (5, 1000), (4000, 400_000)])
def test_version_2_is_told_memory_and_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, millicores: int, quota: int
) -> None:
    """The limits that a function names are in the group's files: bytes, and microseconds of each tenth of a second."""
    for name in ("memory.max", "cpu.max"):
        (tmp_path / name).touch()
    monkeypatch.setattr(Path, "mkdir", lambda self: None)
    Group([Place(2, tmp_path, frozenset({"memory", "cpu"}))], 300_000_000, millicores)
    assert (tmp_path / "memory.max").read_text() == "300000000"
    assert (tmp_path / "cpu.max").read_text() == f"{quota} 100000"


@pytest.mark.parametrize(
    ("what", "events", "expected"),
    [
        ("killed for this limit", "low 0\nhigh 0\nmax 12\noom 1\noom_kill 1\n", (100, 99)),
        ("at the limit, not killed", "max 12\noom 0\noom_kill 0\n", None),
        ("killed because the machine was full", "max 0\noom 0\noom_kill 1\n", None),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 40 else "",
)
def test_version_2_tells_by_its_counters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, events: str, expected: tuple[int, int] | None
) -> None:
    """A worker exceeded its limit when the kernel counted both: the limit was met, and a process was killed."""
    path = tmp_path / "g"
    path.mkdir()
    (path / "memory.max").touch()
    monkeypatch.setattr(Path, "mkdir", lambda self: None)
    made = Group([Place(2, path, frozenset({"memory"}))], 100)
    (path / "memory.events").write_text(events)
    (path / "memory.peak").write_text("99\n" if expected else "5\n")
    assert made.exceeded() == expected, what
