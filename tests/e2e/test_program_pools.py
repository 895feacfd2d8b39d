"""Helpers of process pools keep nothing of one call for the next one."""

from __future__ import annotations

from pathlib import Path

from tests.conftest import Home

from .test_program_names import results

PROGRAM = """
import multiprocessing as mp, os
from multiprocessing import resource_tracker, shared_memory

def begun(_): return os.environ.get("TOKEN"), os.umask(0o22)

def change(token):
    if token:
        os.environ["TOKEN"] = token
        os.umask(0o77)

def holders():
    held = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                held += [pid] if b"TOKEN=" in file.read() else []
        except OSError:
            pass
    return held

@isolated(keep_alive=60)
def served(token):
    left = holders()
    change(token)
    with mp.get_context("forkserver").Pool(1) as pool:
        return pool.map(begun, [1])[0], left
"""


def test_a_fork_server_serves_one_call(shared_home: Home, tmp_path: Path) -> None:
    """Neither the next call nor the next program gets variables or a umask of one that started a fork server."""
    first = results(shared_home, tmp_path, PROGRAM + "found['calls'] = served('a'), served(None)\n")
    second = results(shared_home, tmp_path, PROGRAM + "found['calls'] = served(None)\n")
    assert first == {"calls": [[["a", 0o77], []], [[None, 0o22], []]]}
    assert second == {"calls": [[None, 0o22], []]}


def test_what_is_held_between_calls_stays(shared_home: Home, tmp_path: Path) -> None:
    """A `@cached` pool works on after the call, and shared memory is not removed under a `@cached` value."""
    found = results(
        shared_home,
        tmp_path,
        PROGRAM
        + """
from atoll import cached

@cached
def pool():
    change("a")
    return mp.get_context("forkserver").Pool(1)

@cached
def memory(): return shared_memory.SharedMemory(create=True, size=8)

@isolated(keep_alive=60)
def pooled():
    kept = pool()
    with mp.get_context("forkserver").Pool(1) as fresh:
        return os.getpid(), kept.map(begun, [1])[0], fresh.map(begun, [1])[0]

@isolated(keep_alive=60)
def shared():
    held = memory()
    held.buf[0] += 1
    again = shared_memory.SharedMemory(held.name)
    count = again.buf[0]
    again.close()
    return os.getpid(), count

first, second = pooled(), pooled()
found["pool"] = [first[0] == second[0], second[1:]]
first, second = shared(), shared()
found["memory"] = [first[0] == second[0], second[1]]
""",
    )
    assert found == {"pool": [True, [["a", 0o22], [None, 0o22]]], "memory": [True, 2]}


def test_pools_of_loky_serve_one_program(shared_home: Home, tmp_path: Path) -> None:
    """The pool that loky uses again keeps no variables for the next call, though a `@cached` function has started it."""
    program = (
        PROGRAM
        + """
from atoll import cached

def parallel():
    from joblib import Parallel, delayed
    return Parallel(n_jobs=2)(delayed(begun)(number) for number in range(2))[0]

@cached
def warm(token):
    change(token)
    return parallel()

@isolated(requirements=["joblib"], keep_alive=60)
def used(token): return warm(token) if token else parallel()
"""
    )
    found = results(shared_home, tmp_path, program + "found['calls'] = used('a'), used(None)\n")
    assert found == {"calls": [["a", 0o77], [None, 0o22]]}
