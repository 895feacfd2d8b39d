"""A function reaches no other process of its sandbox: not the agent, pid 1, a preloader or another worker."""

from __future__ import annotations

import inspect
import os
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from atoll import isolated
from atoll.agent.landlock import SCOPES_ABI, Landlock
from tests.conftest import Home

from ..waiting import until

pytestmark = pytest.mark.as_user

FILES = {"mem", "maps", "smaps", "environ", "auxv", "syscall"}
SIGNALS = {"kill", "pidfd", "native kill", "native tgkill", "native pidfd"}
EVERYTHING = FILES | SIGNALS | {f"native {name}" for name in FILES} | {"write mem", "native write mem", "descriptors"}


def reach(pid: int) -> set[str]:
    """Try to reach a process, in Python and in native code; return the ways that have worked."""
    import ctypes
    import resource
    import signal

    libc = ctypes.CDLL(None, use_errno=True)
    native = libc.syscall
    found = set()

    def attempt(name: str, number: int) -> None:
        if number >= 0:
            found.add(name)

    for name in ("mem", "maps", "smaps", "environ", "auxv", "syscall"):
        path = f"/proc/{pid}/{name}"
        try:
            with open(path, "rb", buffering=0) as file:
                if name == "mem" or file.read(1):
                    found.add(name)
        except OSError:
            pass
        descriptor = libc.open(path.encode(), os.O_RDONLY)
        if descriptor >= 0:
            attempt(f"native {name}", 0 if name == "mem" else libc.read(descriptor, ctypes.create_string_buffer(9), 1))
            os.close(descriptor)
    try:
        os.close(os.open(f"/proc/{pid}/mem", os.O_RDWR))
        found.add("write mem")
    except OSError:
        pass
    descriptor = libc.open(f"/proc/{pid}/mem".encode(), os.O_RDWR)
    attempt("native write mem", descriptor)
    libc.close(descriptor)
    try:
        for number in os.listdir(f"/proc/{pid}/fd"):
            os.readlink(f"/proc/{pid}/fd/{number}")
            found.add("descriptors")
    except OSError:
        pass
    pidfd = os.pidfd_open(pid)
    for name, send, target, value in (
        ("kill", os.kill, pid, signal.SIGCONT),
        ("pidfd", signal.pidfd_send_signal, pidfd, signal.SIGCONT),
        ("limits", resource.prlimit, pid, resource.RLIMIT_CORE),
    ):
        try:
            send(target, value, *([(0, 0)] if name == "limits" else []))
            found.add(name)
        except OSError:
            pass
    prlimit = {"x86_64": 302, "aarch64": 261}[os.uname().machine]
    attempt("native limits", native(prlimit, pid, int(resource.RLIMIT_CORE), bytes(16), None))  # as they are
    attempt("native kill", libc.kill(pid, signal.SIGCONT))
    attempt("native pidfd", native(424, pidfd, int(signal.SIGCONT), None, 0))
    tgkill = {"x86_64": 234, "aarch64": 131}[os.uname().machine]
    attempt("native tgkill", native(tgkill, pid, pid, int(signal.SIGCONT)))
    os.close(pidfd)
    return found


def attack(others: list[int]) -> dict[str, set[str]]:
    """Try the agent or preloader above, pid 1, and others."""

    return {str(pid): reach(pid) for pid in {os.getppid(), 1, *others}}


def where() -> tuple[int, int, str]:
    """Return this worker's number, that of the process above, and the sandbox."""

    return os.getpid(), os.getppid(), os.readlink("/proc/self/ns/pid")


def shared() -> set[str]:
    """Return the inodes of memory that this worker and other processes can write."""
    with open("/proc/self/maps") as file:
        return {words[4] for words in map(str.split, file) if words[1] == "rw-s"}


def reach_a_child() -> set[str]:
    """Try the same with a process that this function has started, and that has left its session."""
    import subprocess

    with subprocess.Popen(["sleep", "60"], start_new_session=True) as child:
        found = reach(child.pid)
        os.kill(child.pid, 9)
    return found


def signals_within() -> list[str]:
    """Send signals to this process, to one of its threads and to a group of its children."""
    import signal
    import subprocess
    import threading

    seen = []
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, lambda number, _frame: seen.append(signal.Signals(number).name))
    os.kill(os.getpid(), signal.SIGUSR1)
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR2)
    with subprocess.Popen(["sh", "-c", "sleep 60 & wait"], start_new_session=True) as child:
        os.killpg(child.pid, signal.SIGTERM)
    return [*seen, str(child.returncode)]


@pytest.fixture
def landlock() -> None:
    found = Landlock()
    found.close()
    if found.abi < SCOPES_ABI:
        pytest.skip(f"this kernel has ABI {found.abi} of Landlock")


@pytest.mark.usefixtures("landlock", "one_machine")
def test_a_function_reaches_neither_the_agent_nor_another_worker() -> None:
    """Memory, maps, environment, descriptors and signals of other processes of its sandbox fail, natively too."""
    victim = isolated(network="none", keep_alive=600, preload=[], env={"LANDLOCK": "victim"})(where)
    attacker = isolated(network="none", keep_alive=0, preload=[], env={"LANDLOCK": "attacker"})
    pid, agent, sandbox = victim()
    for _ in range(3):  # the first worker, and spares
        assert attacker(where)()[1:] == (agent, sandbox)
        assert attacker(attack)([pid]) == {str(one): set() for one in (1, agent, pid)}
    assert victim() == (pid, agent, sandbox), "the victim lives"
    several = [attacker(shared)() for _ in range(3)] + [
        isolated(network="none", keep_alive=600, preload=[], env={"LANDLOCK": "victim"})(shared)()
    ]
    assert all(several)
    assert sum(map(len, several)) == len(set.union(*several)), "no memory is shared by two workers"
    assert attacker(reach_a_child)() == EVERYTHING, "a child is reached in each of these ways"


@pytest.mark.usefixtures("shared_home")
def test_signals_within_a_worker_arrive() -> None:
    """A worker may signal itself, its threads and its children."""
    assert isolated(network="none")(signals_within)() == ["SIGUSR1", "SIGUSR2", "-15"]


@pytest.mark.usefixtures("landlock", "one_machine")
def test_a_preloaded_package_and_its_workers_reach_nothing(tmp_path: Path) -> None:
    """Code of an import ahead is in a domain of its own, and a preloaded worker in one below."""
    wheel = tmp_path / "reaches-1-py3-none-any.whl"
    about = "reaches-1.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        text = f"{inspect.getsource(reach)}\n{inspect.getsource(attack)}\nimport os\nahead = os.getpid(), attack([])\n"
        archive.writestr("reaches.py", text)
        archive.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: reaches\nVersion: 1\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")

    def attack_above(agent: int) -> tuple[bool, Any, Any]:

        import reaches  # type: ignore[import-not-found]

        above, ahead = reaches.ahead
        return above == os.getppid(), ahead, reaches.attack([agent])

    preloading = {"requirements": [str(wheel)], "network": "none", "preload": ["reaches"]}
    staying = isolated(**preloading, keep_alive=600, env={"KEEPS": "the sandbox"})(where)  # type: ignore[call-overload]
    fresh = isolated(**preloading, keep_alive=0)(attack_above)  # type: ignore[call-overload]
    _, agent, _ = staying()
    found: Any = until(lambda: found if (found := fresh(agent))[0] else None)
    _, ahead, now = found
    assert ahead == {"1": set(), str(agent): set()}
    assert [ways for ways in now.values() if ways] == []
    assert {"1", str(agent)} < now.keys(), "the preloader besides"


def test_without_landlock_the_agents_files_stay_closed(atoll_home: Home) -> None:
    """On an old kernel a function cannot open the agent's memory, and everything else works."""
    program = (
        "from atoll import isolated\n"
        "from tests.security.test_landlock import reach_a_child, attack, signals_within\n"
        "on = isolated(network='none', keep_alive=0)\n"
        "agent, first = sorted(on(attack)([]).items(), key=lambda one: one[0] == '1')\n"
        "print(sorted(agent[1]), on(signals_within)(), on(reach_a_child)() >= agent[1])\n"
    )
    root = Path(__file__).parents[2]
    done = atoll_home.python(str(Path(__file__).parent / "old_kernel.py"), sys.executable, "-c", program, cwd=root)
    assert done.stdout.strip() == f"{sorted(SIGNALS)} ['SIGUSR1', 'SIGUSR2', '-15'] True"
