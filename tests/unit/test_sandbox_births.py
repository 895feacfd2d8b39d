"""Starts in control groups, and the groups of a sandbox, on machines that this is not: a directory stands for a group."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from atoll import linux
from atoll.process import DEVNULL, PIPE, STDOUT, Process, Start
from atoll.sandbox.limits import births, group_files
from atoll.sandbox.limits.cgroups import Place, hierarchies
from atoll.sandbox.limits.sandbox_group import SandboxGroup

from ..waiting import until


def echo(*words: str) -> Start:
    return Start(["/bin/echo", *words], {}, (), "/", (DEVNULL, PIPE, STDOUT))


def output(process: Process) -> str:
    assert process.stdout is not None
    with process.stdout:
        said = process.stdout.read().decode()
    until(lambda: process.poll() is not None)
    return said


def test_without_help_of_the_c_library_a_shell_moves_itself_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program begins after the move, with its arguments, in the process that was moved."""

    def refuse(*_: object) -> int:
        raise OSError("too old")

    monkeypatch.setattr(linux, "spawn_in_group", refuse)
    assert output(births.start_in(echo("a b", "c"), tmp_path)) == "a b c\n"
    assert (tmp_path / "cgroup.procs").read_text() == "0\n"


def test_a_group_that_cannot_be_entered_starts_nothing(tmp_path: Path) -> None:
    """No program runs outside of its group."""
    assert "c" not in output(births.start_in(echo("c"), tmp_path / "absent")).split()
    with pytest.raises(FileNotFoundError):
        births.start_by_thread(echo("c"), [(tmp_path / "absent", tmp_path)])


def test_this_thread_is_back_in_its_own_group_after_a_start(tmp_path: Path) -> None:
    """Version 1: the thread enters each group, the child starts, and the thread leaves again."""
    for name in ("group", "own"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tasks").touch()
    assert output(births.start_by_thread(echo("c"), [(tmp_path / "group", tmp_path / "own")])) == "c\n"
    assert (tmp_path / "group" / "tasks").read_text() == (tmp_path / "own" / "tasks").read_text() == "0"


@pytest.mark.root
def test_the_kernel_starts_a_program_in_a_group_of_version_2() -> None:
    """`/proc` of the program names the group, and no other descriptor than the given ones is open."""
    found = hierarchies(Path("/proc/self/mountinfo").read_text(), Path("/proc/self/cgroup").read_text())
    own = next((one.own for one in found if one.version == 2), None)
    if own is None or not os.access(own, os.W_OK):
        pytest.skip("no cgroup of version 2 can be made here")
    group = own / f"atoll-test-{os.getpid()}"
    group.mkdir()
    leak = os.dup(2)
    os.set_inheritable(leak, True)
    try:
        program = ["/bin/sh", "-c", "cat /proc/$$/cgroup; ls /proc/$$/fd"]
        said = output(births.start_in(Start(program, {}, (), "/", (DEVNULL, PIPE, STDOUT)), group))
    finally:
        os.close(leak)
        assert until(lambda: group_files.remove(group))
    assert f"/{group.name}\n" in said
    assert [word for word in said.split() if word.isdecimal() and int(word) == leak] == []


def test_version_2_has_the_agent_in_a_group_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits are those of the sandbox's group, its controllers are passed on, and workers are beside the agent."""
    monkeypatch.setattr(group_files, "write", lambda path, value: path.write_text(value) and None)
    places = [Place(2, tmp_path, frozenset({"memory", "pids", "cpu"}))]
    group = SandboxGroup(places, "s1", 100, 7)
    whole = tmp_path / "s1"
    assert ((whole / "memory.max").read_text(), (whole / "pids.max").read_text()) == ("100", "7")
    assert (whole / "memory.oom.group").read_text() == "1"
    assert (whole / "cgroup.subtree_control").exists()
    assert (whole / "agent").is_dir()
    assert [place.directory for place in group.places_of("w1")] == [whole / "w1"]
    started: list[Path] = []
    monkeypatch.setattr(births, "start_in", lambda _, group: started.append(group))
    group.start(echo())
    assert started == [whole / "agent"]
    group.resize(300, 9)
    assert ((whole / "memory.max").read_text(), (whole / "pids.max").read_text()) == ("300", "9")


def test_version_1_has_groups_of_a_sandbox_where_memory_or_processes_are_limited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hierarchy with nothing but processor time has the workers' groups alone."""
    monkeypatch.setattr(group_files, "write", lambda path, value: path.write_text(value) and None)
    for name in ("memory", "cpu"):
        (tmp_path / name / "home" / "daemon").mkdir(parents=True)
    places = [Place(1, tmp_path / name / "home" / "daemon", frozenset({name})) for name in ("memory", "cpu")]
    group = SandboxGroup(places, "s1", 100, 7)
    assert not (tmp_path / "cpu" / "home" / "daemon" / "s1").exists()
    assert [str(one.directory.relative_to(tmp_path)) for one in group.places_of("w1")] == [
        "memory/home/daemon/s1/w1",
        "cpu/home/daemon/w1",
    ]
    asked: list[tuple[Path, Path]] = []
    monkeypatch.setattr(births, "start_by_thread", lambda _, groups: asked.extend(groups))
    group.start(echo())
    assert asked == [(tmp_path / "memory" / "home" / "daemon" / "s1" / "agent", tmp_path / "memory")]
