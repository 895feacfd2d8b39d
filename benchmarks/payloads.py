"""How fast large arrays cross, as argument and as result, beside other ways to run a function in another process.

    make bench SUITE=payloads
    make bench SUITE=payloads BENCH="--large"      with a result of 5 GiB

The function reads or writes one word of each page, so that memory that was only promised is paid for. The things that
are compared take turns in each round; the first round is not counted.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from peers import WarmPool, find_ray, stop_daemon
from table import Comparison, Samples, command_line, finish, say

PAGE_WORDS = 512
AIM = 1 / 3
"""Of the time that ProcessPoolExecutor takes: three times its throughput."""


def take(array: Any) -> float:
    return float(array[::PAGE_WORDS].sum())


def give(words: int) -> Any:
    import numpy as np

    return np.ones(words)


def blob(size: int) -> bytes:
    return b"x" * size


def name_of(size: int) -> str:
    return f"{size >> 30} GiB" if size >= 1 << 30 else f"{size // 1_000_000} MB"


def race(rounds: int, samples: list[Samples], runs: list[Callable[[], Any]], check: Callable[[Any], bool]) -> None:
    """Time each run once a round, in turn."""
    for number in range(rounds + 1):
        for sample, run in zip(samples, runs, strict=True):
            with sample.time():
                value = run()
            assert check(value), sample.name
            del value
            if number == 0:
                sample.clear()


def measure(size: int, rounds: int, ray: Any) -> list[Comparison]:
    """An array of `size` bytes as argument, and one as result."""
    from atoll import isolated

    words = size // 8
    packages = [f"numpy=={np.__version__}"]
    options: dict[str, Any] = {"requirements": packages, "keep_alive": 600}
    rows = []
    array = np.ones(words)
    pages = len(array[::PAGE_WORDS])
    for what, function, argument, check in (
        ("as argument", take, array, lambda value: value == pages),
        ("as result", give, words, lambda value: value.nbytes == words * 8 and take(value) == pages),
    ):
        say(f"{name_of(size)} {what}")
        ours = Samples(f"{name_of(size)} {what}")
        plain = Samples(f'{name_of(size)} {what}, results="data"')
        peers = [Samples("ProcessPoolExecutor")]
        isolated_function: Any = isolated(**options)(function)
        plain_function: Any = isolated_function.on(results="data")
        pool = WarmPool(function)
        runs: list[Callable[[], Any]] = [
            partial(isolated_function, argument),
            partial(plain_function, argument),
            partial(pool.call, argument),
        ]
        if ray is not None:
            remote = ray.remote(function)
            peers.append(Samples("Ray task"))
            runs.append(partial(_ray_call, ray, remote, argument))
        try:
            race(rounds, [ours, plain, *peers], runs, check)
        finally:
            pool.close()
        rows.append(Comparison(ours, peers[0], aim=AIM))
        rows += [Comparison(ours, peer) for peer in peers[1:]]
        if what == "as result":
            rows.append(Comparison(plain, peers[0]))
    return rows


def _ray_call(ray: Any, remote: Any, argument: Any) -> Any:
    return ray.get(remote.remote(argument))


def measure_bytes(size: int, rounds: int) -> list[Comparison]:
    """`bytes` have no buffers beside their pickle."""
    from atoll import isolated

    say(f"bytes of {name_of(size)}")
    ours, peer = Samples(f"bytes of {name_of(size)} as result"), Samples("ProcessPoolExecutor")
    function: Any = isolated(keep_alive=600)(blob)
    pool = WarmPool(blob)
    try:
        race(rounds, [ours, peer], [lambda: function(size), lambda: pool.call(size)], lambda value: len(value) == size)
    finally:
        pool.close()
    return [Comparison(ours, peer)]


def measure_large(size: int) -> list[Comparison]:
    """One result that is larger than other ways take, once."""
    from atoll import isolated

    say(name_of(size))
    ours = Samples(f"{name_of(size)} as result")
    function: Any = isolated(requirements=[f"numpy=={np.__version__}"])(give)
    race(1, [ours], [lambda: function(size // 8)], lambda value: value.nbytes == size)
    return [Comparison(ours)]


def main() -> int:
    parser = command_line("Measure how fast large arrays cross.", 5)
    parser.add_argument("--large", action="store_true", help="also a result of 5 GiB, which needs 12 GiB of memory")
    options = parser.parse_args()
    sizes, rounds = ([2_000_000], 1) if options.tiny else ([100_000_000, 1 << 30], max(1, options.rounds))
    with tempfile.TemporaryDirectory(prefix="atoll-bench-", ignore_cleanup_errors=True) as name:
        os.environ["ATOLL_HOME"] = str(Path(name) / "home")
        ray = None if options.tiny else find_ray(2)
        try:
            rows = [row for size in sizes for row in measure(size, rounds, ray)]
            rows += measure_bytes(sizes[0], rounds)
            if options.large:
                rows += measure_large(5 << 30)
        finally:
            stop_daemon()
            if ray is not None:
                ray.shutdown()
    notes = [
        f"{rounds} rounds after one that is not counted; NumPy arrays of 8-byte floats, one word of each page is read.",
        "Ray: arguments and results go through its object store. A ratio is Atoll's median time by the peer's.",
    ]
    if ray is None:
        notes.append("Ray is not installed here: `make bench` installs it.")
    return finish(rows, notes, options)


if __name__ == "__main__":
    sys.exit(main())
