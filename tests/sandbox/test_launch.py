"""Launching: what passes in and out, and what is said when no sandbox can be made."""

from __future__ import annotations

import os

import pytest

from atoll.sandbox.programs import find_bwrap

from .conftest import Someone

pytestmark = pytest.mark.as_user


def test_descriptors_pass_under_their_numbers(someone: Someone) -> None:
    """A descriptor reaches the command under its number, in order, and no other does."""
    pipes = [os.pipe() for _ in range(3)]
    numbers = [theirs for _ours, theirs in pipes]
    code = (
        "import os, sys\nfor number in sys.argv[1:]:\n    os.write(int(number), number.encode())\n"
        "def is_open(number):\n    try:\n        return os.fstat(number)\n    except OSError:\n        return None\n"
        "print(*(number for number in range(4096) if is_open(number)))"
    )
    done = someone.confine_python(code, *map(str, numbers), descriptors=numbers)
    for ours, theirs in pipes:
        os.close(theirs)
        assert os.read(ours, 16) == str(theirs).encode()
        assert os.read(ours, 16) == b"", "nobody else holds it"
        os.close(ours)
    assert done.output.split() == [str(number) for number in sorted([0, 1, 2, *numbers])]


def test_output_passes_and_status_is_the_commands(someone: Someone) -> None:
    """`run` gives stdout and stderr together, with the exit status."""
    done = someone.confine(["sh", "-c", "echo one; echo two >&2; exit 3"], run=True)
    assert done.report["status"] == 3
    assert done.report["output"] == "one\ntwo\n"
    assert done.output == "one\n"


def test_a_missing_bind_is_named(someone: Someone) -> None:
    """A bind whose source does not exist fails with an error that names it."""
    done = someone.confine(["true"], binds=[["/nonexistent/place", "/opt/x", False]])
    assert done.report["failure"]["code"] == "sandbox_unavailable"
    assert "/nonexistent/place" in done.report["failure"]["message"]


def test_a_failed_command_is_no_failure_of_the_sandbox(someone: Someone) -> None:
    """A command that exits with 1, as bubblewrap itself does when it fails, is told apart."""
    done = someone.confine(["false"])
    assert (done.report["status"], done.report["failure"]) == (1, None)


def test_a_wrong_bwrap_is_named(someone: Someone) -> None:
    """A configured bubblewrap that does not run is an error with the option's name."""
    done = someone.confine(["true"], bwrap="/bin/false")
    assert done.report["raised"]["code"] == "sandbox_unavailable"
    assert "sandbox.bwrap" in done.report["raised"]["message"]


def test_without_user_namespaces_the_cause_and_the_fix_are_told(someone: Someone) -> None:
    """Where the kernel refuses namespaces, the error says so and how to mend it."""
    around = [find_bwrap(), "--dev-bind", "/", "/", "--bind", "/tmp", "/tmp"]
    # Root without capabilities, or a user in a namespace that allows no further ones.
    around += ["--cap-drop", "ALL"] if someone.as_root else ["--unshare-user", "--disable-userns"]
    done = someone.confine(["true"], around=[*around, "--"])
    failure = done.report.get("failure") or done.report["raised"]
    assert failure["code"] == "sandbox_unavailable"
    assert "namespace" in failure["message"]
    assert any(fix in failure["hint"] for fix in ("--security-opt", "sysctl", "CAP_SYS_ADMIN", "doctor"))


def test_memory_directories_are_bounded(someone: Someone) -> None:
    """`/tmp`, `/dev/shm` and the home directory have the size that the settings say."""
    done = someone.confine(["sh", "-c", "df --output=size -B1 /tmp /dev/shm /home/user | tail -n 3"])
    assert done.output.split() == [str(4 << 30)] * 3


@pytest.mark.parametrize("own", [True, False])
def test_processes_count_from_a_number_of_their_own(someone: Someone, own: bool) -> None:
    """A sandbox that shares files has a range of process ids; its first process stays 1, and children count on."""
    done = someone.confine(["sh", "-c", "echo $$; sh -c 'echo $$'; echo $PPID"], own_pids=own)
    first, child, parent = map(int, done.output.split())
    assert parent == 1
    assert (first > 300) == own
    assert child > first
    assert "pid_range_failed" not in done.complaints


@pytest.mark.parametrize("group", ["", "one"])
def test_sandboxes_of_a_group_share_system_v_memory(someone: Someone, group: str) -> None:
    """A segment that one sandbox has made is seen in another of its group, is never number 0, and no other is seen."""
    data = someone.directory("data")
    wait = "while [ ! -e /data/{} ]; do sleep 0.01; done"
    make = f"ipcmk -M 4096 > /dev/null; touch /data/made; {wait.format('seen')}"
    show = "tail -n +2 /proc/sysvipc/shm | while read key number mode size rest; do echo $number $size; done"
    look = f"{wait.format('made')}; {show}; touch /data/seen"
    done = someone.confine(
        ["sh", "-c", make], beside=["sh", "-c", look], binds=[[str(data), "/data", True]], ipc_group=group
    )
    assert "ipc_namespace_failed" not in done.complaints
    if not group:
        assert done.output == ""
        return
    number, size = done.output.split()
    assert int(number) > 0
    assert int(size) == 4096
