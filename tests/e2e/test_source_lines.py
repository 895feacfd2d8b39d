"""Lines of the caller's files in real workers, in their children and in nested calls."""

from __future__ import annotations

from pathlib import Path

import pytest

from ..conftest import Home
from ..waiting import soak

PROGRAM = """
import inspect, multiprocessing, traceback
from concurrent.futures import ProcessPoolExecutor
from atoll import isolated

class Kept:
    "A class."
    def method(self): return 1

def fails(x):
    return 1 / x  # the line

@isolated(keep_alive=20)
def source():
    return inspect.getsource(Kept), inspect.getsource(Kept.method), inspect.getsourcefile(fails) == __file__

@isolated(keep_alive=20)
def child():
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return "return 1 / x  # the line" in str(pool.submit(fails, 0).exception().__cause__)

@isolated(env={"OUTER": "1"}, keep_alive=20)
def outer():
    return source()[2]

if __name__ == "__main__":
    print([*source(), child(), outer()])
"""


def test_a_program_has_its_lines_everywhere(shared_home: Home, tmp_path: Path) -> None:
    """Sources of classes, tracebacks of a spawned child, and a nested call."""
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    done = shared_home.python(str(script))
    kept = 'class Kept:\n    "A class."\n    def method(self): return 1\n'
    assert done.stdout == f"{[kept, '    def method(self): return 1' + chr(10), True, True, True]}\n"


NUMBA = """
from atoll import isolated

@isolated(requirements=["numba"], keep_alive=0)
def compiled():
    import numba

    @numba.njit(cache=True)
    def add(x):
        return x + N

    return add(1), sum(add.stats.cache_hits.values()), add.stats.cache_path

if __name__ == "__main__":
    print(compiled())
"""


@pytest.mark.skipif(soak(short=True, long=False), reason="downloads a compiler; SOAK=1 runs it")
def test_numba_finds_compiled_code_of_a_program_again(shared_home: Home, tmp_path: Path) -> None:
    """In the next worker, and anew after an edit."""
    script = tmp_path / "program.py"
    found = []
    for number in (1, 1, 2):
        script.write_text(NUMBA.replace("N\n", f"{number}\n"))
        value, hits, path = eval(shared_home.python(str(script), timeout_seconds=300).stdout)
        assert path.startswith("/data/.cache/numba/")
        found.append((value, hits))
    assert found == [(2, 0), (2, 1), (3, 0)]
