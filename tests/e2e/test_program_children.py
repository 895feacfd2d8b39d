"""Child processes that a function starts anew find the names of the program's main module."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import Home

from .test_program_names import results

PROGRAM = """
import multiprocessing as mp
from concurrent.futures import ProcessPoolExecutor

counter, lock = 3, threading.Lock()

@dataclasses.dataclass
class Item:
    size: int

def scaled(item): return Item(item.size * counter)
def hidden(x): return x + counter
def guarded(x):
    with lock: return x
def begin(value):
    global counter
    counter = value
def put(queue, item): queue.put(item)
def nested(x):
    with mp.get_context("spawn").Pool(1) as pool: return pool.map(hidden, [x])[0]
def look(_):
    main = importlib.import_module("__main__")
    return [__name__, main.__file__ == __file__, hasattr(main, "counter"), called(lambda: main.lock)[:60]]
def by_text(name): return getattr(sys.modules["__main__"], name)
"""


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_children_that_begin_anew(method: str, shared_home: Home, tmp_path: Path) -> None:
    """Pools and processes of each start method find functions and classes, without running the program."""
    found = results(
        shared_home,
        tmp_path,
        PROGRAM
        + """
@isolated
def run(method):
    context = mp.get_context(method)
    with context.Pool(1) as pool:
        mapped = pool.map(scaled, [Item(1), Item(2)]) == [Item(3), Item(6)]
        by_name, seen = pool.map(by_text("hid" + "den"), [1]), pool.map(look, [1])[0]
    with context.Pool(1, begin, (10,)) as pool:
        begun = pool.map(hidden, [1])
    queue = context.SimpleQueue()
    process = context.Process(target=put, args=(queue, Item(4)))
    process.start()
    sent = queue.get().size
    process.join()
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        inner = pool.submit(nested, 5).result()
    return mapped, by_name, seen, begun, sent, process.exitcode, inner
"""
        + f"found['found'] = called(run, {method!r})\n",
    )
    reason = "AttributeError: module '__main__' has no attribute 'lock' in this child process"
    assert found == {
        "found": [True, [4], ["__mp_main__", True, True, reason[:60]], [11], 4, 0, 8],
    }


def test_a_child_without_its_function_ends_with_the_reason(shared_home: Home, tmp_path: Path) -> None:
    """A pool of processes does not wait for ever for a function that cannot be sent."""
    found = results(
        shared_home,
        tmp_path,
        PROGRAM
        + """
@isolated
def run():
    def guarded(x): return x
    guarded.__qualname__, guarded.lock = "guarded", threading.Lock()
    sys.modules["__main__"].guarded = guarded
    with mp.get_context("spawn").Pool(1) as pool:
        return called(pool.map, guarded, [1])
found["guarded"] = called(run)
""",
    )
    reason = "in this child process: a `function` cannot be sent: cannot pickle '_thread.lock' object"
    assert found == {"guarded": f"AttributeError: module '__main__' has no attribute 'guarded' {reason}"}


def test_children_of_joblib(shared_home: Home, tmp_path: Path) -> None:
    """The processes of loky find the program's functions and classes."""
    found = results(
        shared_home,
        tmp_path,
        PROGRAM
        + """
@isolated(requirements=["joblib"])
def run():
    from joblib import Parallel, delayed
    return [one.size for one in Parallel(n_jobs=2)(delayed(scaled)(Item(size)) for size in range(3))]
found["loky"] = called(run)
""",
    )
    assert found == {"loky": [0, 3, 6]}


def test_children_of_threads(shared_home: Home, tmp_path: Path) -> None:
    """Pools that threads start at the same moment find the names of the program."""
    found = results(
        shared_home,
        tmp_path,
        PROGRAM
        + """
from concurrent.futures import ThreadPoolExecutor
large = bytes(range(256)) * 40000

@isolated
def run():
    def pooled(number):
        with ProcessPoolExecutor(1, mp_context=mp.get_context("spawn")) as pool:
            return pool.submit(hidden, number).result()
    with ThreadPoolExecutor(4) as threads:
        return list(threads.map(pooled, range(4)))
found["threads"] = called(run)
""",
    )
    assert found == {"threads": [3, 4, 5, 6]}


def test_names_that_a_child_cannot_have(shared_home: Home, tmp_path: Path) -> None:
    """A name that is too large says so; one whose reducer exits costs the others nothing."""
    found = results(
        shared_home,
        tmp_path,
        PROGRAM
        + """
class Exits:
    def __reduce__(self): raise SystemExit(3)

exits = Exits()
large = bytearray(65 << 20)
def measured(_): return len(large)

@isolated
def run(name):
    with mp.get_context("spawn").Pool(1) as pool: return called(pool.map, by_text(name), [1])
found["fits"], found["large"] = called(run, "hid" + "den"), called(run, "measu" + "red")
""",
    )
    assert found["fits"] == [4]
    assert "`measured` with the names that it uses, `large` the largest, takes more than" in found["large"]
    assert "64 MiB" in found["large"]
