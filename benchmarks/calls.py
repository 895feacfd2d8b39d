"""What a call costs, from nothing running to a warm worker, beside what else could run the function.

    make bench SUITE=calls            all of it
    make bench SUITE=calls BENCH="--rounds 5"     quicker
    make bench SUITE=calls BENCH="--json calls.json"

One run, one table. The things that are compared take turns in each round, so that what else happens on the machine
meets all of them. The first round warms the page cache and the bytecode, and is not counted.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from peers import BarePython, Bubblewrap, Isolate, Uv, WarmPool, compiled_cloudpickle, has_isolate, stop_daemon
from table import Comparison, Figure, Row, Samples, command_line, finish, say

from atoll.errors import SandboxUnavailable
from atoll.sandbox import programs

WARM_CALLS = 300
MAP_SECONDS = 1.0
PACKAGES = ["numpy==2.2.6", "requests==2.32.3", "rich==13.9.4"]
"""What the measured environment holds: about 30 MB and 900 modules to compile."""


def add(a: int, b: int) -> int:
    return a + b


def add_with_pandas(a: int, b: int) -> int:
    import numpy  # noqa: ICN001, F401
    import pandas  # noqa: ICN001, F401

    return a + b


def has_pasta() -> bool:
    """Whether a program for outbound networks is here."""
    try:
        return bool(programs.find_pasta())
    except SandboxUnavailable:
        return False


def pause(seconds: float) -> None:
    time.sleep(seconds)


def wait_no_sandbox() -> None:
    """Wait until the daemon has none."""
    from atoll import local

    while (found := local.request_running("status", {})) and found["sandboxes"]:
        time.sleep(0.002)


def p99(samples: Samples) -> float:
    return sorted(samples.seconds)[int(0.99 * len(samples.seconds))]


def measure_warm(call: Callable[[int, int], Any], samples: Samples) -> None:
    """Time warm calls, and this process's CPU time for one of them."""
    for _ in range(20):
        call(1, 2)
    began = time.process_time()
    for _ in range(WARM_CALLS):
        with samples.time():
            call(1, 2)
    samples.cpu_seconds.append((time.process_time() - began) / WARM_CALLS)


def measure_map(rounds: int) -> list[Row]:
    """`map` of one long call for each slot, beside one such call: all slots are used at once."""
    from atoll import isolated

    slots = len(os.sched_getaffinity(0))
    pausing = isolated(keep_alive=600)(pause)
    one, wide = Samples("one call of 1 s"), Samples(f"map: {slots} calls of 1 s, {slots} slots")
    list(pausing.map([0.01] * slots))
    for number in range(max(1, rounds // 3)):
        say(f"map: round {number + 1} of {max(1, rounds // 3)}")
        with one.time():
            pausing(MAP_SECONDS)
        with wide.time():
            list(pausing.map([MAP_SECONDS] * slots))
    return [Comparison(wide, one, aim=1.1)]


def measure_calls(place: Path, rounds: int) -> list[Row]:
    """Calls in each state, and processes that do the same without Atoll."""
    from atoll import isolated

    home = Path(os.environ["ATOLL_HOME"])
    passing = isolated(keep_alive=0)(add)  # its worker ends with the call, and the sandbox with it
    connected = passing.on(network="outbound") if has_pasta() else None
    staying = isolated(keep_alive=600)(add)
    another = isolated(keep_alive=0, env={"ANOTHER": "worker"})(add)
    say("building the environment")
    assert passing(1, 2) == 3
    environment = next(path for path in (home / "environments").iterdir() if (path / "record.json").exists()) / "env"

    alone = compiled_cloudpickle(place)
    bare, confined = BarePython(environment, alone), Bubblewrap(home, environment, alone)
    pool, isolate = WarmPool(add), Isolate(add) if has_isolate() else None
    first, cold = Samples("first call, nothing running"), Samples("cold call, no sandbox")
    new, warm = Samples("call to a new worker"), Samples("warm call")
    outbound = Samples("cold call, outbound network")
    python, sandbox = Samples('python -c "import cloudpickle"'), Samples("bwrap + the same")
    executor, isolated_call = Samples("ProcessPoolExecutor"), Samples("isolate")
    everything = (first, cold, outbound, new, warm, python, sandbox, executor, isolated_call)
    for number in range(rounds + 1):
        say(f"calls: round {number} of {rounds}" if number else "calls: warm-up")
        stop_daemon()
        with first.time():
            assert passing(1, 2) == 3
        for _ in range(3):
            wait_no_sandbox()
            with cold.time():
                assert passing(1, 2) == 3
            if connected is not None:
                wait_no_sandbox()
                with outbound.time():
                    assert connected(1, 2) == 3
            with python.time():
                bare.run()
            confined.rewind()
            with sandbox.time():
                confined.run()
            if isolate is not None:
                with isolated_call.time():
                    assert isolate.call(1, 2) == 3
        staying(1, 2)
        for _ in range(10):
            with new.time():
                assert another(1, 2) == 3
        for call, samples in ((staying, warm), (pool.call, executor)):
            measure_warm(call, samples)
        if number == 0:
            for samples in everything:
                samples.clear()
    pool.close()
    if isolate is not None:
        isolate.close()
    rows: list[Row] = [
        Comparison(first, aim=300.0),
        Comparison(first, isolated_call),
        Comparison(cold, sandbox, aim=1.3),
        Comparison(outbound, sandbox, aim=1.5),
        Comparison(cold, python),
        Comparison(cold, isolated_call),
        Comparison(new, aim=4.0),
        Comparison(warm, executor, aim=0.7),
        Figure("warm call: client CPU", statistics.median(warm.cpu_seconds) * 1e6, "us", aim=45.0),
        Figure("warm call: p99 by the median", p99(warm) / warm.median, "times", aim=2.0),
        Comparison(warm, isolated_call),
    ]
    return [
        row for row in rows if isinstance(row, Figure) or (row.ours.seconds and (row.peer is None or row.peer.seconds))
    ]


def measure_preloading(rounds: int) -> list[Comparison]:
    """New workers in a live sandbox, whose function imports packages that earlier calls have imported."""
    from atoll import isolated

    packages = ["numpy==2.2.6", "pandas==2.2.3"]
    staying = isolated(requirements=packages, keep_alive=600, env={"KEEPS": "the sandbox"})(add)
    fresh = isolated(requirements=packages, keep_alive=0)(add_with_pandas)
    new = Samples("new worker, NumPy and pandas")
    say("preloading: building the environment")
    staying(1, 2)
    for _ in range(20):  # until the packages are preloaded
        fresh(1, 2)
        time.sleep(0.2)
    for _ in range(10 * rounds):
        with new.time():
            assert fresh(1, 2) == 3
    return [Comparison(new, aim=10.0)]


def measure_environments(place: Path, rounds: int, packages: list[str]) -> list[Comparison]:
    """An environment from wheels that are in the cache, beside uv doing the same."""
    from atoll import isolated, local

    spec = isolated(requirements=packages)(add).environment_spec()
    ours, peer = Samples("environment, cached wheels"), Samples("uv venv + uv pip install")
    uv = Uv(place, packages)

    def build(index: dict[str, str]) -> None:
        data: dict[str, Any] = {**spec.to_data(), "index": {**spec.to_data()["index"], **index}}
        local.request("environments.build", {"environment": data}, None)

    stop_daemon()  # with it the worker that stayed, whose environment could not be removed
    say("environments: filling both caches")
    build({})
    uv.build(offline=False)
    for number in range(rounds + 1):
        say(f"environments: round {number} of {rounds}" if number else "environments: warm-up")
        local.request("environments.prune", {"unused_seconds": 0.0}, None)
        with ours.time():
            build({"UV_OFFLINE": "1"})
        uv.clear()
        with peer.time():
            uv.build(offline=True)
        if number == 0:
            ours.clear()
            peer.clear()
    return [Comparison(ours, peer, aim=1.2)]


def measure_import(place: Path, rounds: int) -> list[Comparison]:
    """A new interpreter that imports Atoll, beside one that imports nothing; bytecode is cached, as it is installed."""
    ours, peer = Samples("python -c 'import atoll'"), Samples("python -c 'pass'")
    used = Samples("… and 'from atoll import isolated'")
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    env["PYTHONPYCACHEPREFIX"] = str(place / "bytecode")
    measured = ((ours, "import atoll"), (peer, "pass"), (used, "from atoll import isolated"))
    for number in range(2 * rounds + 1):
        for samples, code in measured:
            with samples.time():
                subprocess.run([sys.executable, "-c", code], env=env, check=True)
            if number == 0:
                samples.clear()
    return [Comparison(ours, peer, aim=60.0, difference=True), Comparison(used, peer, difference=True)]


def main() -> int:
    parser = command_line("Measure what a call costs.", 15)
    options = parser.parse_args()
    rounds = 1 if options.tiny else max(1, options.rounds)
    packages = PACKAGES[1:2] if options.tiny else PACKAGES
    # A state of its own, on one file system with the peers, so that both link files from their caches.
    with tempfile.TemporaryDirectory(prefix="atoll-bench-", ignore_cleanup_errors=True) as name:
        place = Path(name)
        os.environ["ATOLL_HOME"] = str(place / "home")
        try:
            rows = measure_calls(place, rounds)
            if not options.tiny:
                rows += measure_preloading(rounds)
            rows += measure_map(rounds)
            rows += measure_environments(place, max(1, rounds // 3), packages)
            rows += measure_import(place, rounds)
        finally:
            stop_daemon()
    notes = [
        f"{rounds} rounds after one that is not counted; the same function, `add(1, 2)`, everywhere.",
        "bwrap: with the binds, the system call filter and, as root, the change of user that a sandbox of Atoll has.",
        "isolate: its local environment and an open connection; it starts a process for each call.",
        f"environment: {', '.join(packages)}, both compiling bytecode, both offline from a cache of their own.",
        "A ratio is Atoll's median by the peer's; `+` is the difference.",
    ]
    return finish(rows, notes, options)


if __name__ == "__main__":
    sys.exit(main())
