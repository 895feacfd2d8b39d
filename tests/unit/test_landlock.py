"""Landlock's rules for each version of it, and findings on what they hold."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from atoll.agent.landlock import ACCESS_FS_REFER, SCOPE_SIGNAL, Landlock, Ruleset, ruleset
from atoll.node.promises import judge

PROGRAM = """
import ctypes, os, socket, sys
from atoll.agent import landlock
rules = landlock.ruleset(int(sys.argv[1]))
landlock.ruleset = lambda abi: rules
lock = landlock.Landlock()
ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
assert lock.enter() == (rules is not None)
lock.close()
os.chdir(sys.argv[2])
os.makedirs("one/deep")
os.mkdir("two")
with open("one/file", "w") as file:
    file.write("content")
os.rename("one/file", "two/file")
os.rename("one/deep", "two/deep")
os.link("two/file", "one/link")
os.symlink("../two/file", "one/symlink")
os.replace("two/file", "one/file")
os.mkfifo("one/fifo")
os.rename("one/fifo", "two/fifo")
with socket.socket(socket.AF_UNIX) as server:
    server.bind("one/socket")
os.rename("one/socket", "two/socket")
nameless = os.open("one", os.O_TMPFILE | os.O_RDWR)
here = os.open(".", os.O_RDONLY)
os.link(f"/proc/self/fd/{nameless}", "two/named", dst_dir_fd=here, follow_symlinks=True)
os.truncate("two/named", 5)
os.unlink("two/named")
os.rmdir("two/deep")
found = []
for name, act in (
    ("memory", lambda: open(f"/proc/{os.getppid()}/mem", "rb")),
    ("signal", lambda: os.kill(os.getppid(), 0)),
):
    try:
        act()
        found.append(name)
    except PermissionError:
        pass
print(*found)
"""


@pytest.mark.parametrize(
    ("abi", "expected"),
    [
        (0, None),
        (1, None),
        (2, Ruleset(ACCESS_FS_REFER, 0, 0)),
        (3, Ruleset(ACCESS_FS_REFER, 0, 0)),
        (4, Ruleset(ACCESS_FS_REFER, 0, 0)),
        (5, Ruleset(ACCESS_FS_REFER, 0, 0)),
        (6, Ruleset(0, SCOPE_SIGNAL, 0)),
        (7, Ruleset(0, SCOPE_SIGNAL, 1)),
        (8, Ruleset(0, SCOPE_SIGNAL, 1)),
    ],
)
def test_the_rules_for_each_abi(abi: int, expected: Ruleset | None) -> None:
    """Signals are scoped as soon as the kernel can, and no right on files is taken where one need not be."""
    assert ruleset(abi) == expected


@pytest.mark.parametrize(("abi", "left"), [(1, "memory signal"), (2, "signal"), (5, "signal"), (6, ""), (7, "")])
def test_a_domain_denies_a_program_nothing_on_its_own_files(tmp_path: Path, abi: int, left: str) -> None:
    """Renames and links between directories work by the rules of each ABI; other processes are out of reach."""
    lock = Landlock()
    lock.close()
    if lock.abi < abi:
        pytest.skip(f"this kernel has ABI {lock.abi}")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(abi), str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert (done.stdout.strip(), done.returncode) == (left, 0), done.stderr


def test_a_closed_ruleset_is_closed_once() -> None:
    """A second `close` leaves the number to its next owner."""
    lock = Landlock()
    lock.close()
    other = os.open(os.devnull, os.O_RDONLY)
    lock.close()
    os.fstat(other)
    os.close(other)


@pytest.mark.parametrize(
    ("abi", "opened", "signalled", "held", "word"),
    [
        (7, [], [], [True, True], "ABI 7"),
        (5, [], ["the agent", "another worker"], [True, False], "can signal the agent, another worker"),
        (0, ["another worker"], ["the agent"], [False, False], "no Landlock, and a worker opens the memory of another"),
    ],
)
def test_findings_name_what_an_attack_has_reached(
    abi: int, opened: list[str], signalled: list[str], held: list[bool], word: str
) -> None:
    """Each finding says whether its promise is held, why not, and what helps."""
    found = judge(abi, opened, signalled)
    assert [one.works for one in found] == held
    assert any(word in one.detail for one in found)
    for one in found:
        assert one.detail.startswith("held: " if one.works else "not held: ")
        assert one.works or (one.loses and one.fix)
